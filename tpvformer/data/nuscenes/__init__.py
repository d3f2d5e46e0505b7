"""nuScenes from the disk: tables, info files, scans, labels."""
