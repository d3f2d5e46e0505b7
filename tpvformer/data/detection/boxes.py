"""Define 3-D boxes and the classes of nuScenes' detection task.

Sources of the classes, groups and attributes: nuScenes' detection task (detection_cvpr_2019), CenterPoint
(arXiv:2006.11275).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np

from tpvformer.labels import CLASS_NAMES, RAW_NAMES, RAW_TO_CLASS

DETECTION_CLASSES: Tuple[str, ...] = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
BICYCLE_RACK = 10  # label of a rack in the truth: no class, but the metric leaves out cycles that stand in one
# classes that share a branch of the head and suppress each other in decoding
GROUPS: Tuple[Tuple[int, ...], ...] = ((0,), (1, 2), (3, 4), (5,), (6, 7), (8, 9))
GROUP_OF: Tuple[int, ...] = tuple(g for g, group in enumerate(GROUPS) for _ in group)

ATTRIBUTES: Tuple[str, ...] = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
NO_ATTRIBUTE = -1

# nuScenes' category -> detection label; the other categories are not detected
CATEGORY_LABELS: Dict[str, int] = {
    raw: DETECTION_CLASSES.index(CLASS_NAMES[number])
    for raw, number in zip(RAW_NAMES, RAW_TO_CLASS)
    if CLASS_NAMES[number] in DETECTION_CLASSES
}
CATEGORY_LABELS["static_object.bicycle_rack"] = BICYCLE_RACK


@dataclass(frozen=True)
class Boxes:
    """Hold N boxes of one frame, all in one frame of reference (x, y, z with z up; metres, radians, m/s)."""

    centres: np.ndarray  # (N, 3) float32, the middle of the box ("gravity centre")
    sizes: np.ndarray  # (N, 3) float32: length (along the heading), width, height
    yaws: np.ndarray  # (N,) float32, from the x axis counter-clockwise to the heading
    velocities: np.ndarray  # (N, 2) float32, x and y; NaN where unknown
    labels: np.ndarray  # (N,) int64, index of DETECTION_CLASSES; a truth may hold BICYCLE_RACK
    scores: Optional[np.ndarray] = None  # (N,) float32 in [0, 1]; None for the truth
    points: Optional[np.ndarray] = None  # (N,) int64, lidar and radar points inside; None if unknown, or predicted
    attributes: Optional[np.ndarray] = None  # (N,) int64, index of ATTRIBUTES or NO_ATTRIBUTE; None if unknown

    def __len__(self) -> int:
        return len(self.centres)

    def take(self, index: np.ndarray) -> Boxes:
        """Return the boxes at ``index``: integers or a mask, as NumPy takes them."""
        held = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **{name: value[index] for name, value in held.items()})

    def transformed(self, matrix: np.ndarray) -> Boxes:
        """Return the boxes in another frame; ``matrix`` (4, 4) is a rigid transform of points to it.

        The heading and the velocity are rotated in 3-D, and of the results x and y count.
        """
        rotation = matrix[:3, :3]
        heading = np.stack([np.cos(self.yaws), np.sin(self.yaws)], 1) @ rotation[:2, :2].T
        return dataclasses.replace(
            self,
            centres=(self.centres @ rotation.T + matrix[:3, 3]).astype(np.float32),
            yaws=np.arctan2(heading[:, 1], heading[:, 0]).astype(np.float32),
            velocities=(self.velocities @ rotation[:2, :2].T).astype(np.float32),
        )

    @classmethod
    def none(cls, scores: bool = False) -> Boxes:
        """Return zero boxes, with scores if asked."""
        flat, wide = np.zeros(0, np.float32), np.zeros((0, 3), np.float32)
        labels = np.zeros(0, np.int64)
        return cls(wide, wide, flat, wide[:, :2], labels, flat if scores else None)
