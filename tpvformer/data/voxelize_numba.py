"""``voxelize`` as one Numba kernel: serial, because the loader's workers are forked and each is one core."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, error_model="numpy")
def voxelize(points, labels, low, high, pitch, last, fill):  # type: ignore[no-untyped-def]
    """The four arrays of ``Cells`` for points (P,3) with labels (P,).

    The others are what voxelize.py makes of its arguments: for each axis the bounds and the pitch (metres), and the
    last index. Nothing is written outside of the arrays made here, whatever the arguments: a place that is no number
    belongs to cell 0.
    """
    count, size = len(points), (last[0] + 1) * (last[1] + 1) * (last[2] + 1)
    if min(last[0], last[1], last[2]) < 0 or len(labels) != count or points.shape[1] < 3:
        raise ValueError("voxelize: a grid without cells, or as many labels as points are needed")
    hit = np.zeros((size + 7) // 8 * 8, np.uint8)
    index = np.empty((count, 3), np.int64)
    cell = np.empty(count, np.int64)
    kinds = np.int64(1)
    for p in range(count):
        c = np.int64(0)
        for axis in range(3):
            inside = min(max(np.float64(points[p, axis]), low[axis]), high[axis])
            i = max(min(np.int64(np.floor((inside - low[axis]) / pitch[axis])), last[axis]), np.int64(0))
            index[p, axis] = i
            c = c * (last[axis] + 1) + i
        cell[p] = c
        hit[c] = 1
        kinds = max(kinds, np.int64(labels[p]) + 1)
        if labels[p] < 0 or labels[p] > 255:
            raise ValueError("voxelize: a label is outside of 0 to 255")

    row_of = np.empty(len(hit), np.int32)
    row = np.int32(0)
    eights = hit.view(np.uint64)  # most cells are empty, so they are passed over by eights
    for eight in range(len(eights)):
        if eights[eight]:
            for c in range(8 * eight, 8 * eight + 8):
                row_of[c] = row
                row += hit[c]

    occupied = np.empty((row, 3), np.int64)
    point_row = np.empty(count, np.int64)
    ballots = np.zeros((row, kinds), np.int32)
    most = np.zeros(row, np.int32)
    grid = np.full(size, fill, np.uint8)
    for p in range(count):
        r, label = row_of[cell[p]], labels[p]
        point_row[p] = r
        for axis in range(3):
            occupied[r, axis] = index[p, axis]
        ballots[r, label] += 1
        votes = ballots[r, label]
        if votes > most[r] or (votes == most[r] and label < grid[cell[p]]):  # the smallest of equals wins
            most[r] = votes
            grid[cell[p]] = label
    return index, occupied, point_row, grid.reshape(last[0] + 1, last[1] + 1, last[2] + 1)
