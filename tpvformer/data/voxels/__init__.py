"""Voxelize points."""
