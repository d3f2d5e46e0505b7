"""Score a model, compare it with baselines, and write predictions for the test server."""
