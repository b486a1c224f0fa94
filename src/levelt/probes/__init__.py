"""Linear probes on arrays: solver, folds, certificates."""
