"""Corners, edges and headings of boxes: the geometry that pictures, pages and files draw."""

from __future__ import annotations

import numpy as np

from tpvformer.data.detection.boxes import Boxes

# Corner k of a box, k from 0 to 7: bit 0 set is the front, bit 1 the left, bit 2 the top, seen along the heading.
_SIGNS = np.array([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)]) * 2.0 - 1
# (12, 2): the corners that each edge joins; 0 to 3 along the heading, 4 to 7 across, 8 to 11 upright
EDGES = np.array([[k, k | bit] for bit in (1, 2, 4) for k in range(8) if not k & bit])
LID = np.array([[4, 5], [6, 7], [4, 6], [5, 7]])  # the edges of the top: what is drawn of a box from above


def corners(boxes: Boxes) -> np.ndarray:
    """Return the corners (N, 8, 3) float64, metres, in the boxes' frame.

    Along the heading corner 0 is at the rear, right, bottom, 1 front, right, bottom, 2 rear, left, bottom, 3 front,
    left, bottom; 4 to 7 are those above them.
    """
    half = _SIGNS * boxes.sizes[:, None].astype(np.float64) / 2
    cos, sin = np.cos(boxes.yaws.astype(np.float64))[:, None], np.sin(boxes.yaws.astype(np.float64))[:, None]
    turned = np.stack(
        [half[..., 0] * cos - half[..., 1] * sin, half[..., 0] * sin + half[..., 1] * cos, half[..., 2]], 2
    )
    return boxes.centres[:, None] + turned


def headings(boxes: Boxes) -> np.ndarray:
    """Return a line (N, 2, 3) of each box, from the middle of its top to the middle of the top's front edge, metres."""
    top = corners(boxes)[:, 4:]
    return np.stack([top.mean(1), top[:, [1, 3]].mean(1)], 1)
