"""Log and record a run: lines, losses, times, summary."""
