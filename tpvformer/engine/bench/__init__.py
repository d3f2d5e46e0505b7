"""Measure the time of a training step by part, on random inputs or on the configured data."""
