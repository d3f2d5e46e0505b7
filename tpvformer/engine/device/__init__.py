"""Choose the device, its precision, memory settings, kernels and compiled graphs."""
