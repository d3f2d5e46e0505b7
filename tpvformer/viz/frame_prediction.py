"""What was predicted for one frame, as the viewer, the videos and the PLY files take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.geometry import transform_points
from tpvformer.labels import COLORS, LABEL_MAPS, Classes


class CameraView(NamedTuple):
    """One camera's picture and where it looks from."""

    name: str
    jpeg: bytes
    size: Tuple[int, int]  # (width, height) in pixels of ``lidar2img``; the JPEG may be smaller, in the same shape
    lidar2img: np.ndarray  # (4, 4) float64: lidar metres -> (u * depth, v * depth, depth, 1)
    stored_width: int  # pixels of the JPEG

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR, ``stored_width`` wide."""
        picture = cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None, "checked when the result was read"
        return picture


@dataclass(frozen=True)
class FramePrediction:
    """P points in the lidar frame, (X, Y, Z) voxels in that of the grid, where ``lidar2grid`` leads.

    Voxel i of an axis of n spans low + i (high - low) / n and the next.
    """

    token: str
    scene: str
    number: int  # of the frame in its set; the order within a scene
    voxels: np.ndarray  # (X, Y, Z) uint8
    confidence: Optional[np.ndarray]  # (X, Y, Z) float16, the probability of ``voxels``
    pc_range: Tuple[float, ...]  # low x, y, z, high x, y, z in metres
    frame: str  # of the grid: "lidar" or "ego"
    class_names: Tuple[str, ...]
    points: np.ndarray  # (P, 3) float32, metres
    point_labels: np.ndarray  # (P,) uint8
    lidar2grid: np.ndarray  # (4, 4) float64
    cameras: Sequence[CameraView] = ()
    scanned: Optional[np.ndarray] = None  # (X, Y, Z) bool: voxels that hold points
    true_voxels: Optional[np.ndarray] = None  # (X, Y, Z) uint8
    true_point_labels: Optional[np.ndarray] = None  # (P,) uint8
    labels_of: str = ""  # the data set whose labels ``voxels`` are; empty where a model predicted them

    def grid_points(self) -> np.ndarray:
        """(P, 3) float64, metres, in the frame of the grid."""
        return transform_points(self.points, self.lidar2grid)

    def grid2img(self, camera: CameraView) -> np.ndarray:
        """(4, 4) from metres in the frame of the grid to the camera's pixels."""
        return camera.lidar2img @ np.linalg.inv(self.lidar2grid)


class Shown(NamedTuple):
    """The classes of a result: what is drawn of them, and what stands for free space."""

    classes: Classes
    drawn: Tuple[int, ...]
    free: int  # -1 where the model was not taught free space
    forward: str  # the axis of the grid that points ahead: "x" or "y"
    ground: float  # metres: z of the ground in the frame of the grid, as the data sets mount their lidar


def shown(class_names: Sequence[str], frame: str) -> Shown:
    """Of the label map that has these names; others share the colours of nuScenes, and all but "free" are drawn."""
    names = tuple(class_names)
    for label_map, classes in LABEL_MAPS.items():
        if classes.names == names:
            free = classes.empty if classes.empty < len(names) else -1
            drawn = ((0,) if names[0] == "others" else ()) + classes.evaluated
            kitti = label_map == "semantickitti"
            ground = 0.0 if frame == "ego" else -1.73 if kitti else -1.84
            return Shown(classes, drawn, free, "x" if kitti or frame == "ego" else "y", ground)
    free = next((names.index(word) for word in ("free", "empty") if word in names), -1)
    drawn = tuple(i for i in range(len(names)) if i != free)
    colors = tuple(COLORS[1 + i % 16] for i in range(len(names)))
    known = Classes(names, drawn, free if free >= 0 else len(names), (*colors, (255, 255, 255)))
    return Shown(known, drawn, free, "x" if frame == "ego" else "y", 0.0 if frame == "ego" else -1.84)


def believed(result: FramePrediction, kinds: Shown) -> np.ndarray:
    """(X, Y, Z) bool: where the prediction says that something is. A model that was not taught free space has a class
    for every voxel; of those, the voxels that hold points count, or without lidar the tenth that it is surest of."""
    there = np.isin(result.voxels, kinds.drawn)
    if kinds.free >= 0:
        return there
    if result.scanned is not None:
        return there & result.scanned
    if result.confidence is not None:
        return there & (result.confidence >= np.quantile(result.confidence.astype(np.float32), 0.9))
    return there
