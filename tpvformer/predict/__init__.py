"""Predict the classes of frames from weights, and store them in archives."""
