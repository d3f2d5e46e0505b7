"""Draw crops: each image of a training sample is scaled, mirrored, and cut or filled to the size it has without.

A crop is (rows, columns, top, left, flipped), five whole numbers: the image is scaled to rows x columns, mirrored left
to right where ``flipped`` is 1, and shown from row ``top`` and column ``left`` on. Negative ones leave room before it.
Room has the mean colour, as padding has. Pixels have their centres at halves: u of a mirrored image is columns - u.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np


def draw_crops(
    rng: np.random.RandomState, images: int, height: int, width: int, resize: Tuple[float, float], flip: bool
) -> np.ndarray:
    """Draw crops (images, 5) int32 of images that would be scaled to (height, width), with a factor in ``resize``.

    Each image is drawn by itself. What is too large is cut at a random place; what is too small is put at one.
    """
    low, high = resize
    crops = np.zeros((images, 5), np.int32)
    for crop, (factor, down, right, mirror) in zip(crops, rng.random_sample((images, 4))):
        grown = low + (high - low) * factor
        rows, columns = max(1, round(height * grown)), max(1, round(width * grown))
        crop[:] = rows, columns, _start(rows - height, down), _start(columns - width, right), flip and mirror < 0.5
    return crops


def _start(spare: int, share: float) -> int:
    """Return a whole number from 0 to ``spare``, which may be negative; ``share`` lies in [0, 1)."""
    start = int(share * (abs(spare) + 1))
    return start if spare > 0 else -start


def crop_matrices(crops: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (N, 4, 4) float64, factors from the left for the projections into stored images of (height, width)."""
    made = np.tile(np.eye(4), (len(crops), 1, 1))
    for matrix, (rows, columns, top, left, flipped) in zip(made, crops.tolist()):
        matrix[0, 0], matrix[0, 2] = columns / width, -left
        matrix[1, 1], matrix[1, 2] = rows / height, -top
        if flipped:
            matrix[0, 0], matrix[0, 2] = -columns / width, columns - left
    return made
