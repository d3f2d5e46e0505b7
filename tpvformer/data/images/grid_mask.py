"""GridMask (Chen et al., arXiv:2001.04086) as TPVFormer trains with it: stripes stay, the cells between them go."""

from __future__ import annotations

from typing import Tuple

import numpy as np

PROBABILITY = 0.7


def grid_mask(height: int, width: int, rng: np.random.RandomState) -> Tuple[np.ndarray, np.ndarray]:
    """Draw a mask, (height,) and (width,) bool: a pixel stays iff its row or its column is True. All True leaves the
    image whole.

    A pixel stays iff it lies in one of the horizontal or one of the vertical bands, each half a period wide. Bands are
    laid out on a canvas 1.5 times the image and its centre is used. The draws and their order are the reference's.
    """
    if rng.rand() > PROBABILITY:
        return np.ones(height, bool), np.ones(width, bool)
    period = int(rng.randint(2, height))
    band = min(max(int(period * 0.5 + 0.5), 1), period - 1)
    start_row, start_column = int(rng.randint(period)), int(rng.randint(period))
    rng.randint(1)  # the rotation, always 0 degrees; drawn so that the stream of random numbers stays the reference's
    return _bands(height, period, band, start_row), _bands(width, period, band, start_column)


def _bands(size: int, period: int, band: int, start: int) -> np.ndarray:
    canvas = int(1.5 * size)
    keep = np.zeros(canvas, bool)
    for i in range(canvas // period):
        keep[start + i * period : start + i * period + band] = True
    first = (canvas - size) // 2
    return keep[first : first + size]
