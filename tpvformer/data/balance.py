"""Balance classes over an epoch by drawing frames with rare classes more often (CBGS, arXiv:1908.09492).

CBGS draws each class equally often and, for a class, each of the frames that hold it equally often. With K classes in
the set and n_c frames that hold class c, a frame is drawn in proportion to the sum of 1 / (K n_c) over its classes.
Frames without any class, which CBGS never draws, are drawn here as often as without it. An epoch has as many draws as
the set has frames: CBGS makes it longer instead.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

import numpy as np

from tpvformer.config import GridConfig
from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.data.record import Record
from tpvformer.data.transforms import frame_of_grid


def box_classes(records: Sequence[Record], grid: GridConfig) -> Optional[List[np.ndarray]]:
    """Return the detection classes in each frame, sorted; None where the boxes of any frame are unknown.

    A box counts if lidar or radar hit it, as far as that is known, and if its middle lies over the grid. Raises
    DataError for a frame without the calibration that the grid's frame needs.
    """
    found: List[np.ndarray] = []
    for record in records:
        boxes = record.boxes
        if boxes is None:
            return None
        if grid.frame != "lidar":
            boxes = boxes.transformed(frame_of_grid(record, grid))
        x0, y0, _, x1, y1, _ = grid.pc_range
        x, y = boxes.centres[:, 0], boxes.centres[:, 1]
        there = (boxes.labels < len(DETECTION_CLASSES)) & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        if boxes.points is not None:
            there &= boxes.points > 0
        found.append(np.unique(boxes.labels[there]))
    return found


def frame_shares(classes: Sequence[np.ndarray]) -> np.ndarray:
    """Return how often an epoch draws each of N frames on average, (N,) float64 with sum N; ``classes`` of each."""
    counts = np.bincount(np.concatenate([*classes, np.zeros(0, np.int64)]).astype(np.int64))
    kinds = max(1, int((counts > 0).sum()))
    with_any = sum(len(held) > 0 for held in classes)
    return np.array([with_any * (1 / counts[held]).sum() / kinds if len(held) else 1.0 for held in classes])


def draw_frames(shares: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draw the frames of an epoch in a random order, (N,) int64: frame i as often as ``shares`` (N,) says.

    The number of draws of a frame is its share rounded down or up. The k-th draw of frame i is i + k N, so that the
    frame is augmented in another way each time.
    """
    count = len(shares)
    mixed = rng.permutation(count)  # systematic sampling, which rounds neighbours together
    ends = np.cumsum(shares[mixed])
    places = (np.arange(count) + rng.random_sample()) * (ends[-1] / count)
    picked = np.sort(mixed[np.searchsorted(ends, places, side="right").clip(max=count - 1)])
    first = np.searchsorted(picked, picked)  # where the draws of the same frame begin
    return (picked + (np.arange(count) - first) * count)[rng.permutation(count)]
