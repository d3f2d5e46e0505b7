"""Lidar scans of several file kinds as points: raw float32, NumPy, PCD and PLY."""
