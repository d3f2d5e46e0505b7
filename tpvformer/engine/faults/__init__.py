"""Handle faults of a run: bad samples, non-finite numbers, hangs, crashes."""
