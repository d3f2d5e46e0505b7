"""Check untrusted input for every reader: the size and depth of pickles, names, JSON."""
