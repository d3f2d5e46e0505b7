"""Voxelize points in one Numba kernel: serial, because the loader's workers are forked and each is one core."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from tpvformer.runtime.compiling import kernel


def voxelize(
    points: np.ndarray,
    labels: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    pitch: np.ndarray,
    last: np.ndarray,
    fill: int,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the four arrays of ``Cells`` for points (P,3) with labels (P,) uint8.

    The other arguments come from voxelize.py: for each axis the bounds and the pitch (metres), and the
    last index. Arrays are allocated here, because allocation inside the kernel takes time to compile. The kernel never
    writes outside them: a NaN coordinate belongs to cell 0.
    """
    if min(last) < 0 or len(labels) != len(points) or points.shape[1] < 3 or labels.dtype != np.uint8:
        raise ValueError("voxelize: a grid with cells, points (P,3) and as many labels, uint8, are needed")
    count, shape = len(points), tuple(int(n) + 1 for n in last)
    size, kinds = int(np.prod(shape)), int(labels.max(initial=0)) + 1
    hit = np.zeros((size + 7) // 8 * 8, np.uint8)
    index, point_row = np.empty((count, 3), np.int64), np.empty(count, np.int64)
    occupied, most = np.empty((count, 3), np.int64), np.zeros(count, np.int32)
    ballots, grid = np.zeros((count, kinds), np.int32), np.full(size, fill, np.uint8)
    row_of = np.empty(len(hit), np.int32)
    rows = _count(
        points, labels, low, high, pitch, last, hit, hit.view(np.uint64), row_of, index, point_row, occupied, most,
        ballots, grid,
    )  # fmt: skip
    return index, occupied[:rows].copy(), point_row, grid.reshape(shape)


@kernel(nogil=True, error_model="numpy")
def _count(  # type: ignore[no-untyped-def]
    points, labels, low, high, pitch, last, hit, eights, row_of, index, point_row, occupied, most, ballots, grid
):
    """Fill the arrays; returns how many cells are occupied. ``point_row`` first holds the cells of the points."""
    for p in range(len(points)):
        c = 0
        for axis in range(3):
            x = np.float64(points[p, axis])
            x = low[axis] if x < low[axis] else x
            x = high[axis] if x > high[axis] else x
            i = int(np.floor((x - low[axis]) / pitch[axis]))
            i = last[axis] if i > last[axis] else i if i > 0 else 0  # NaN as well
            index[p, axis] = i
            c = c * (last[axis] + 1) + i
        point_row[p] = c
        hit[c] = 1

    row = 0
    for eight in range(len(eights)):  # most cells are empty, so eight are skipped at a time
        if eights[eight]:
            for c in range(8 * eight, 8 * eight + 8):
                row_of[c] = row
                row += hit[c]

    for p in range(len(points)):
        c, label = point_row[p], labels[p]
        r = row_of[c]
        point_row[p] = r
        for axis in range(3):
            occupied[r, axis] = index[p, axis]
        ballots[r, label] += 1
        votes = ballots[r, label]
        if votes > most[r] or (votes == most[r] and label < grid[c]):  # the smallest of equals wins
            most[r] = votes
            grid[c] = label
    return row
