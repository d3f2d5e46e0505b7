"""Checks of what comes from others, used by every reader: the size and depth of pickles, names, JSON."""
