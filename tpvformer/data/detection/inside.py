"""Count the points that lie in boxes."""

from __future__ import annotations

import numpy as np

from tpvformer.data.detection.boxes import Boxes


def points_inside(boxes: Boxes, points: np.ndarray) -> np.ndarray:
    """Return (N,) int64: how many of ``points`` (P, 3), in the frame of the boxes, lie in each, its faces included."""
    counts = np.zeros(len(boxes), np.int64)
    flat = np.asarray(points, np.float64)
    flat = flat[np.argsort(flat[:, 0])]  # so that a box is compared with the points of its stretch of x alone
    for i, (centre, size, yaw) in enumerate(zip(boxes.centres, boxes.sizes, boxes.yaws)):
        reach = 0.51 * np.linalg.norm(size)  # half a diagonal, and rounding
        first, end = np.searchsorted(flat[:, 0], (centre[0] - reach, centre[0] + reach))
        near = flat[first:end] - centre
        along = near[:, 0] * np.cos(yaw) + near[:, 1] * np.sin(yaw)
        across = near[:, 1] * np.cos(yaw) - near[:, 0] * np.sin(yaw)
        length, width, height = size / 2
        inside = (np.abs(along) <= length) & (np.abs(across) <= width) & (np.abs(near[:, 2]) <= height)
        counts[i] = np.count_nonzero(inside)
    return counts
