"""One pass through a model: what to read, and greedy answers."""
