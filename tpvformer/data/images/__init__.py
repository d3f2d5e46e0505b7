"""Decode, scale, cache and normalise camera images."""
