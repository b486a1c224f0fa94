"""Resampling, sign-flip tests, rank correlation and nested selection on arrays."""
