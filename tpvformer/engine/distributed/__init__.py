"""Start the processes of a run, connect them, exchange values and stop them."""
