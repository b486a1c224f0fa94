"""Resampling and rank correlation on arrays."""
