"""Prepare the work dir of a run and lock it against a second run."""
