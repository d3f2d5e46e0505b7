"""What a run says and records: log, losses, times, summary."""
