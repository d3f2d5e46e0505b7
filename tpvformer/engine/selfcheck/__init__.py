"""Check new hardware: the operations of training work on the device and agree with the CPU."""
