"""Voxels drawn as boxes in perspective, the far ones first, with OpenCV alone: no display and no graphics card."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.geometry import lattice
from tpvformer.labels import Classes
from tpvformer.viz.paint import palette_bgr

SKY = (36, 31, 28)  # BGR
_NEAR = 0.5  # metres: faces nearer than this are left out
_DARK = 0.35  # brightness of the stripes of hatched voxels
_STRIPES = (0.0, 0.25, 0.5, 0.75)  # where they begin and end, as parts of a face
# For each side of a voxel: its normal and two of its edges as steps along x, y, z, and its brightness.
_SIDES = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1), 0.80),
    ((-1, 0, 0), (0, 1, 0), (0, 0, 1), 0.72),
    ((0, 1, 0), (1, 0, 0), (0, 0, 1), 0.88),
    ((0, -1, 0), (1, 0, 0), (0, 0, 1), 0.66),
    ((0, 0, 1), (1, 0, 0), (0, 1, 0), 1.0),
    ((0, 0, -1), (1, 0, 0), (0, 1, 0), 0.5),
)


def look_at(
    eye: np.ndarray, target: np.ndarray, size: Tuple[int, int], angle: float, up: Sequence[float] = (0, 0, 1)
) -> np.ndarray:
    """Return the projection of a virtual camera at ``eye`` that looks at ``target``, both (3,) in metres.

    size: (width, height) of its picture in pixels; angle: vertical field of view in degrees; up: the direction that is
    up in the picture. Returns (4, 4) from metres to (u * depth, v * depth, depth, 1).
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, np.asarray(up, np.float64))
    right /= np.linalg.norm(right)
    view = np.eye(4)
    view[:3, :3] = right, np.cross(forward, right), forward
    view[:3, 3] = -view[:3, :3] @ eye
    focal = size[1] / 2 / np.tan(np.radians(angle) / 2)
    lens = np.eye(4)
    lens[:2, :3] = (focal, 0, size[0] / 2), (0, focal, size[1] / 2)
    return lens @ view


def render_voxels(
    voxels: np.ndarray,
    drawn: np.ndarray,
    pc_range: Sequence[float],
    to_pixels: np.ndarray,
    size: Tuple[int, int],
    classes: Classes,
    hatched: Optional[np.ndarray] = None,
) -> np.ndarray:
    """Draw the voxels of (X, Y, Z) where ``drawn``; ``to_pixels`` is a (4, 4) projection as ``look_at`` returns it.

    Dark stripes cross the faces of voxels where ``hatched`` (X, Y, Z) bool. Returns (height, width, 3) uint8 BGR.
    """
    low, pitch = lattice(pc_range, voxels.shape)
    padded = np.pad(drawn, 1)
    eye = -np.linalg.solve(to_pixels[:3, :3], to_pixels[:3, 3])
    corners, colors, distances, striped = [], [], [], []
    for normal, u, v, light in _SIDES:
        behind = padded[tuple(slice(1 + step, 1 + step + n) for step, n in zip(normal, drawn.shape))]
        cells = np.argwhere(drawn & ~behind)
        first = low + (cells + np.maximum(normal, 0)) * pitch
        edges = np.asarray([u, v], np.float64) * pitch
        middle = first + edges.sum(0) / 2
        seen = (eye - middle) @ np.asarray(normal, np.float64) > 0
        first, cells = first[seen], cells[seen]
        corners.append(first[:, None] + np.stack([0 * edges[0], edges[0], edges.sum(0), edges[1]]))
        colors.append(palette_bgr(classes)[voxels[tuple(cells.T)]] * light)
        distances.append(np.linalg.norm(middle[seen] - eye, axis=1))
        striped.append(np.zeros(len(cells), bool) if hatched is None else hatched[tuple(cells.T)])
    image = np.empty((size[1], size[0], 3), np.uint8)
    image[:] = SKY
    faces, paint = np.concatenate(corners), np.concatenate(colors).astype(int)
    homogeneous = faces @ to_pixels[:3, :3].T + to_pixels[:3, 3]
    depth = homogeneous[..., 2]
    pixels = homogeneous[..., :2] / np.where(depth > _NEAR, depth, 1)[..., None]
    left, right = pixels.min(1), pixels.max(1)
    inside = (depth > _NEAR).all(1) & (right > 0).all(1) & (left < size).all(1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-np.concatenate(distances)[order])]
    stripes = np.concatenate(striped)[order].tolist()
    for corner, color, crossed in zip(_fixed(pixels[order]), paint[order].tolist(), stripes):
        cv2.fillConvexPoly(image, corner, color, cv2.LINE_8, 4)
        for stripe in _stripes(corner) if crossed else ():
            cv2.fillConvexPoly(image, stripe, [int(part * _DARK) for part in color], cv2.LINE_8, 4)
    return image


def _fixed(pixels: np.ndarray) -> np.ndarray:
    return np.rint((pixels - 0.5) * 16).astype(np.int32)


def _stripes(corner: np.ndarray) -> List[np.ndarray]:
    """Return two stripes (4, 2) of a face with corners (4, 2), along its second edge."""
    first, last = corner[[0, 3]].astype(np.float64), corner[[1, 2]]
    edges = [np.rint(first + (last - first) * part).astype(np.int32) for part in _STRIPES]
    return [np.concatenate([edges[k], edges[k + 1][::-1]]) for k in (0, 2)]
