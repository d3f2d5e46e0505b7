"""Read the points of lidar scans: raw float32, NumPy, PCD and PLY files."""
