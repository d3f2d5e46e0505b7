"""The projection of lidar points to pixels."""

from __future__ import annotations

from typing import Tuple

import numpy as np

NEAREST = 1.0  # metres: what is nearer to a camera than this is not drawn or counted


def project(points: np.ndarray, lidar2img: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Project points (P, 3), metres in the lidar frame, by lidar2img (4, 4).

    Returns pixels (P, 2) as (u, v) and depth (P,) in metres.
    """
    homogeneous = np.concatenate([np.asarray(points, np.float64), np.ones((len(points), 1))], axis=1)
    a, b, depth = (homogeneous @ np.asarray(lidar2img, np.float64).T)[:, :3].T
    safe = np.where(depth == 0, np.finfo(np.float64).tiny, depth)
    with np.errstate(over="ignore"):  # points in the camera's own plane have no pixel; `inside` leaves them out
        return np.stack([a / safe, b / safe], axis=1), depth


def inside(pixels: np.ndarray, depth: np.ndarray, height: float, width: float) -> np.ndarray:
    """Return a mask (P,), bool: more than 1 m in front of the camera, 0 <= u < width and 0 <= v < height."""
    u, v = pixels.T
    return (depth > NEAREST) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
