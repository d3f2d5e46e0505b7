"""Quaternions [w, x, y, z] and pose matrices ``a2b``, which take points of frame a to frame b (metres)."""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np


def rotation_matrix(q: Sequence[float]) -> np.ndarray:
    """(3, 3) rotation of a quaternion, normalised first."""
    w, x, y, z = np.asarray(q, np.float64) / math.sqrt(sum(v * v for v in q))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def pose(translation: Sequence[float], rotation: Sequence[float]) -> np.ndarray:
    """(4, 4) pose matrix of a translation in metres and a quaternion."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(rotation)
    matrix[:3, 3] = translation
    return matrix
