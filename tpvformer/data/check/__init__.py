"""Check whether a nuScenes download is complete and readable; report every fault and change nothing."""
