"""Is a nuScenes download complete and readable? Every fault is named; nothing is changed."""
