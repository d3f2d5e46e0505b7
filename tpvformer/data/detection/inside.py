"""Count the points that lie in boxes."""

from __future__ import annotations

import numpy as np

from tpvformer.data.detection.boxes import Boxes


def points_inside(boxes: Boxes, points: np.ndarray) -> np.ndarray:
    """Return (N,) int64: how many of ``points`` (P, 3), in the frame of the boxes, lie in each, its faces included."""
    counts = np.zeros(len(boxes), np.int64)
    flat = np.asarray(points, np.float64)
    for i, (centre, size, yaw) in enumerate(zip(boxes.centres, boxes.sizes, boxes.yaws)):
        near = flat[np.abs(flat - centre).max(1) <= np.linalg.norm(size) / 2] - centre
        along = near[:, 0] * np.cos(yaw) + near[:, 1] * np.sin(yaw)
        across = near[:, 1] * np.cos(yaw) - near[:, 0] * np.sin(yaw)
        own = np.abs(np.stack([along, across, near[:, 2]], 1))
        counts[i] = int((own <= size / 2).all(1).sum())
    return counts
