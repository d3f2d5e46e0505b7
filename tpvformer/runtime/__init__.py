"""What this machine offers: its processor, its cores, compiled kernels."""
