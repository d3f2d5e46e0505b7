"""Where the time of a training step goes, on made-up inputs of the right shape or on the configured data."""
