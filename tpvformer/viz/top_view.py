"""Voxels seen from above."""

from __future__ import annotations

from typing import Tuple

import cv2
import numpy as np

from tpvformer.labels import NUSCENES, Classes
from tpvformer.viz.paint import INK, class_colors

FLOOR = (66, 60, 56)  # grey, because sidewalk is nearly black and manmade nearly white; lighter than the page around it


def voxel_top_view(
    voxel_labels: np.ndarray,
    size: int = 640,
    classes: Classes = NUSCENES,
    vehicle: Tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Draw labels (X, Y, Z) seen from above as a (size, size, 3) uint8 BGR picture: +y is up, +x is to the right.

    An arrow marks the vehicle at ``vehicle``: (from the left, from the top) as fractions of the picture. Each column
    shows its highest voxel of an evaluated class, the brighter the higher it lies. Ignored and free voxels are not
    drawn.
    """
    drawn = np.isin(voxel_labels, classes.evaluated)
    levels = drawn.shape[2]
    top = levels - 1 - np.argmax(drawn[..., ::-1], axis=2)  # (X, Y)
    label = np.take_along_axis(np.asarray(voxel_labels), top[..., None], axis=2)[..., 0]
    light = 0.75 + 0.25 * top / max(levels - 1, 1)
    color = class_colors(np.where(drawn.any(axis=2), label, 0), classes) * light[..., None]
    color[~drawn.any(axis=2)] = FLOOR
    image = np.ascontiguousarray(color.astype(np.uint8).transpose(1, 0, 2)[::-1])  # rows from far ahead to far behind
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST)
    _draw_vehicle(image, vehicle)
    return image


def _draw_vehicle(image: np.ndarray, place: Tuple[float, float]) -> None:
    half = max(image.shape[0] // 60, 3)
    centre = np.clip([int(part * image.shape[0]) for part in place], half, image.shape[0] - half)
    arrow = np.array([[0, -half], [0.7 * half, half], [0, 0.5 * half], [-0.7 * half, half]])
    outline = np.rint(arrow + centre).astype(np.int32)
    cv2.fillPoly(image, [outline], INK, cv2.LINE_AA)
    cv2.polylines(image, [outline], True, (0, 0, 0), 1, cv2.LINE_AA)
