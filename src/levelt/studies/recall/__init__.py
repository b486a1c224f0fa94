"""The recall study: how a model lists several answers without repeating itself (promote, then suppress)."""
