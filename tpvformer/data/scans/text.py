"""Read columns of numbers from the text of ascii PCD and PLY files."""

from __future__ import annotations

from typing import List, Sequence

import numpy as np


def columns_of(lines: Sequence[bytes], places: Sequence[int], width: int) -> np.ndarray:
    """Return the columns ``places`` of lines with ``width`` numbers each: (P, len(places)) float64.

    Raises ValueError with the number of the point.
    """
    rows: List[List[float]] = []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if len(parts) < width:
            raise ValueError(f"its point {number} has {len(parts)} of {width} numbers")
        rows.append([float(parts[place]) for place in places])
    return np.array(rows, np.float64).reshape(-1, len(places))
