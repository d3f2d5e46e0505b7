"""Read nuScenes: tables, info files, scans, labels."""
