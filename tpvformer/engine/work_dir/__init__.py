"""The folder of a run, and the lock that keeps a second run out of it."""
