"""Describe this machine (processor, cores), and cache its compiled kernels."""
