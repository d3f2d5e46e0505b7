"""Many processes: how they start, find each other, exchange values and end."""
