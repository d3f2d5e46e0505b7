"""Compute rotations, poses and projections of many sensors on a moving vehicle at once, and the cells of a grid.

Quaternions are [w, x, y, z]; a pose is stored as seven numbers, translation (metres) before quaternion. ``a2b`` takes
points of frame a to frame b: p_b = R p_a + t.
"""

from __future__ import annotations

from typing import Sequence, Tuple, Union

import numpy as np

NEAREST = 1.0  # metres: points nearer to a camera are neither drawn nor counted
LARGEST = 1e50  # larger than any projection's numbers, and products of a few are finite; comparisons with NaN are false


def rotations(quaternions: np.ndarray) -> np.ndarray:
    """Return the rotation matrices (..., 3, 3) of quaternions (..., 4), which are normalised first."""
    with np.errstate(all="ignore"):  # a zero quaternion is no rotation: is_degenerate() detects the result
        w, x, y, z = np.moveaxis(quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternions(rotation: np.ndarray) -> np.ndarray:
    """Return the quaternion (4,) of a rotation matrix (3, 3). Raises ValueError where it is no rotation."""
    if not np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 or np.linalg.det(rotation) < 0:
        raise ValueError("a 3x3 matrix that is no rotation where a rotation belongs")
    # the eigenvector of the largest eigenvalue, which is accurate at every angle (Bar-Itzhack 2000)
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.linalg.eigh(matrix)[1][:, -1]


def matrices(poses: np.ndarray) -> np.ndarray:
    """Return (..., 4, 4) pose matrices of (..., 7) poses."""
    made = np.zeros((*poses.shape[:-1], 4, 4))
    made[..., :3, :3], made[..., :3, 3], made[..., 3, 3] = rotations(poses[..., 3:]), poses[..., :3], 1
    return made


def relative(
    sensor2ego: np.ndarray, ego2global: np.ndarray, lidar2ego: np.ndarray, lidar_ego2global: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Return sensor2lidar as rotation (K, 3, 3) and translation (K, 3); all arguments are (K, 7) poses.

    ``ego2global`` is the vehicle's pose at the sensor's time, ``lidar_ego2global`` that at the lidar's: the motion in
    between is part of the result. The two positions are subtracted before any rotation, because map coordinates of
    kilometres would cost precision.
    """
    sensor, ego = rotations(sensor2ego[:, 3:]), rotations(ego2global[:, 3:])
    lidar, lidar_ego = rotations(lidar2ego[:, 3:]), rotations(lidar_ego2global[:, 3:])
    to_lidar_ego, to_lidar = np.swapaxes(lidar_ego, -1, -2), np.swapaxes(lidar, -1, -2)
    moved = _apply(ego, sensor2ego[:, :3]) + (ego2global[:, :3] - lidar_ego2global[:, :3])
    translation = _apply(to_lidar, _apply(to_lidar_ego, moved) - lidar2ego[:, :3])
    return to_lidar @ to_lidar_ego @ ego @ sensor, translation


def now_to_past(now2global: np.ndarray, past2global: np.ndarray) -> np.ndarray:
    """Return (..., 4, 4) float64 from a vehicle's frame of now to its frame of the past: inverse(past) now.

    Poses (..., 4, 4) take points of the frame to the global one (``FrameDataset.grid2global``). The two positions are
    subtracted before any rotation, as in ``relative``.
    """
    back = np.linalg.inv(np.asarray(past2global, np.float64)[..., :3, :3])
    moved = np.zeros(np.broadcast_shapes(now2global.shape, past2global.shape))
    moved[..., :3, :3] = back @ now2global[..., :3, :3]
    moved[..., :3, 3] = _apply(back, now2global[..., :3, 3] - past2global[..., :3, 3])
    moved[..., 3, 3] = 1
    return moved


def _apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (matrix @ vector[..., None])[..., 0]


def lidar_to_image(rotation: np.ndarray, translation: np.ndarray, intrinsic: np.ndarray) -> np.ndarray:
    """Return (..., 4, 4) float64 from lidar metres to (u * depth, v * depth, depth, 1) in pixels.

    rotation (..., 3, 3) and translation (..., 3) take camera to lidar coordinates (p_lidar = R p_cam + t); they contain
    the vehicle's motion between the two sensors' times. intrinsic (..., 3, 3) or (..., 4, 4) pixels.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # is_degenerate() detects values that are not finite
        inverse = np.linalg.inv(np.asarray(rotation, np.float64))
        to_camera = np.zeros((*inverse.shape[:-2], 4, 4))
        to_camera[..., :3, :3] = inverse
        to_camera[..., :3, 3] = -_apply(inverse, np.asarray(translation, np.float64))
        to_camera[..., 3, 3] = 1
        return pixels_of(intrinsic) @ to_camera


def pixels_of(intrinsic: np.ndarray) -> np.ndarray:
    """Return intrinsics (..., 3, 3) padded to (..., 4, 4) float64, with 1 on the diagonal; (..., 4, 4) as they are."""
    intrinsic = np.asarray(intrinsic, np.float64)
    if intrinsic.shape[-1] == 4:
        return intrinsic
    to_pixels = np.zeros((*intrinsic.shape[:-2], 4, 4))
    to_pixels[..., :3, :3] = intrinsic
    to_pixels[..., 3, 3] = 1
    return to_pixels


def is_degenerate(lidar2img: np.ndarray) -> np.ndarray:
    """Return (...) bool: which projections (..., 4, 4) are not finite or have no inverse."""
    linear = lidar2img[..., :3, :3]
    finite = np.asarray((np.abs(lidar2img) < LARGEST).all((-1, -2)))
    safe = np.where(finite[..., None, None], linear, 0)
    lengths = np.linalg.norm(safe, axis=-1)
    # the volume between the rows' directions: 1 for a long lens, about 0.6 for nuScenes' cameras, 0 for a singular one
    volume = np.abs(np.linalg.det(safe)) / np.maximum(lengths.prod(-1), 1e-300)
    return ~finite | (volume < 1e-6)


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Transform points (P, 3) by a rigid transform (4, 4), float64."""
    return points.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def project(points: np.ndarray, lidar2img: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Project points (P, 3) metres, lidar frame, by lidar2img (4, 4).

    Returns pixels (P, 2) float64 as (u, v), and depth (P,) in metres.
    """
    homogeneous = np.concatenate([np.asarray(points, np.float64), np.ones((len(points), 1))], axis=1)
    a, b, depth = (homogeneous @ np.asarray(lidar2img, np.float64).T)[:, :3].T
    safe = np.where(depth == 0, np.finfo(np.float64).tiny, depth)
    with np.errstate(over="ignore"):  # points in the camera's own plane have no pixel; `inside` leaves them out
        return np.stack([a / safe, b / safe], axis=1), depth


def inside(pixels: np.ndarray, depth: np.ndarray, height: float, width: float, nearest: float = NEAREST) -> np.ndarray:
    """(P,) bool: further than ``nearest`` metres in front of the camera, and 0 <= u < width, 0 <= v < height."""
    u, v = pixels.T
    return (depth > nearest) & (u >= 0) & (u < width) & (v >= 0) & (v < height)


def lattice(pc_range: Sequence[float], cells: Union[Sequence[int], np.ndarray]) -> Tuple[np.ndarray, np.ndarray]:
    """Return the lower corner (3,) and the pitch (3,), metres, of a grid that divides ``pc_range`` into ``cells``."""
    low, high = np.asarray(pc_range[:3], np.float64), np.asarray(pc_range[3:], np.float64)
    return low, (high - low) / np.asarray(cells)


def segments_in_image(
    segments: np.ndarray, to_pixels: np.ndarray, size: Sequence[float], nearest: float = 0.1
) -> Tuple[np.ndarray, np.ndarray]:
    """Project lines and cut off what is nearer than ``nearest`` metres or outside of the image.

    segments (S, 2, 3) metres; to_pixels (4, 4), as ``project`` takes it; size: (width, height) in pixels. Returns the
    ends (V, 2, 2) float64 as (u, v) of the V lines that are seen, and their rows (V,) in ``segments``.
    """
    ends = np.asarray(segments, np.float64) @ np.asarray(to_pixels, np.float64)[:3, :3].T + to_pixels[:3, 3]
    a, b, depth = np.moveaxis(ends, -1, 0)  # (S, 2) each: u * depth, v * depth, depth
    start, stop = np.zeros(len(ends)), np.ones(len(ends))  # the part that is seen, as fractions of each line
    # all limits are linear in homogeneous coordinates, so lines are cut before the division by depth
    for side in (depth - nearest, a, size[0] * depth - a, b, size[1] * depth - b):
        first, last = side.T
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = first / (first - last)
        start = np.where((first < 0) & (last >= 0), np.maximum(start, crossing), start)
        stop = np.where((first >= 0) & (last < 0), np.minimum(stop, crossing), stop)
        stop = np.where((first < 0) & (last < 0), -1, stop)
    kept = np.flatnonzero(start < stop)
    parts = np.stack([start[kept], stop[kept]], 1)[..., None]
    cut = ends[kept, :1] * (1 - parts) + ends[kept, 1:] * parts
    return cut[..., :2] / cut[..., 2:], kept
