"""Samples in, prompts out: templates, variations, chat rendering and exact token groups."""
