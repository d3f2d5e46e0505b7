"""Scores of a model, what they are held against, and predictions for the test server."""
