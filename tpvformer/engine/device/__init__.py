"""The device: which one, its precision, its memory, its kernels and compiled graphs."""
