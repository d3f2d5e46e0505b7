"""The prediction of one frame, in the form that the viewer, the videos and the PLY files are written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.geometry import transform_points
from tpvformer.labels import COLORS, LABEL_MAPS, Classes
from tpvformer.viz.boxes import DETECTION_CLASSES, EDGES, Boxes, Lines, joined, moved, predicted_lines, true_lines


class CameraView(NamedTuple):
    """One camera's picture, a JPEG file, and the projection into it."""

    name: str
    jpeg: bytes
    size: Tuple[int, int]  # (width, height) in pixels of ``lidar2img``; the JPEG may be smaller, in the same shape
    lidar2img: np.ndarray  # (4, 4) float64: lidar metres -> (u * depth, v * depth, depth, 1)
    stored_width: int  # pixels of the JPEG

    def picture(self) -> np.ndarray:
        """Decode the JPEG file: (H, W, 3) uint8 BGR, ``stored_width`` pixels wide."""
        picture = cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None, "checked when the result was read"
        return picture


@dataclass(frozen=True)
class FramePrediction:
    """P points and boxes in the lidar frame, (X, Y, Z) voxels in the grid's frame; ``lidar2grid`` maps lidar to grid.

    On an axis of n voxels from low to high, voxel i begins at low + i (high - low) / n and is (high - low) / n long.
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
    remembered: Optional[np.ndarray] = (
        None  # (X, Y, Z) bool: no camera sees them now, one of a past frame that was read did
    )
    true_voxels: Optional[np.ndarray] = None  # (X, Y, Z) uint8
    true_point_labels: Optional[np.ndarray] = None  # (P,) uint8
    boxes: Optional[Boxes] = None  # predicted, with scores; None of a model without a detection head
    true_boxes: Optional[Boxes] = None
    box_names: Tuple[str, ...] = DETECTION_CLASSES  # by label of boxes
    classes: Optional[Classes] = None  # of a label map of one's own; None: as their names say
    labels_of: str = ""  # the data set, where ``voxels`` are its labels; empty where a model predicted them

    def grid_points(self) -> np.ndarray:
        """Return the points in the grid's frame: (P, 3) float64, metres."""
        return transform_points(self.points, self.lidar2grid)

    def box_lines(self, in_grid: bool, edges: np.ndarray = EDGES) -> Lines:
        """Return the lines of the true boxes, white, and of the predicted ones, in the grid's frame or the lidar's."""
        matrix = self.lidar2grid if in_grid else np.eye(4)
        predicted = predicted_lines(moved(self.boxes, matrix), self.box_names, edges)
        return joined(true_lines(moved(self.true_boxes, matrix), edges), predicted)

    def grid2img(self, camera: CameraView) -> np.ndarray:
        """Return the (4, 4) projection of metres in the grid's frame to the camera's pixels times depth."""
        return camera.lidar2img @ np.linalg.inv(self.lidar2grid)


class Shown(NamedTuple):
    """The classes of a prediction: which of them are drawn, and which one means free space."""

    classes: Classes
    drawn: Tuple[int, ...]
    free: int  # the class of free space; -1 where there is none
    forward: str  # the axis of the grid that points ahead: "x" or "y"
    ground: float  # metres: z of the ground in the grid's frame; it follows from the height of the data set's lidar


def shown(class_names: Sequence[str], frame: str, own: Optional[Classes] = None) -> Shown:
    """Return how to draw classes of these names on a grid in ``frame`` ("lidar" or "ego"); ``own`` says it if given.

    Names of a label map are drawn as that map says. Other names get nuScenes' colours in turn, and all of them are
    drawn but "free" (or "empty").
    """
    names = tuple(class_names)
    if own is not None:
        free = own.empty if own.empty < len(names) else -1
        return Shown(own, own.evaluated, free, "x" if frame == "ego" else "y", 0.0 if frame == "ego" else -1.84)
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
    """Return a mask (X, Y, Z), bool, of the voxels that are predicted as occupied by a drawn class.

    A model without a class for free space predicts a class for every voxel. Then only the voxels that hold lidar points
    count, or, without lidar, the tenth of all voxels with the highest confidence.
    """
    there = np.isin(result.voxels, kinds.drawn)
    if kinds.free >= 0:
        return there
    if result.scanned is not None:
        return there & result.scanned
    if result.confidence is not None:
        return there & (result.confidence >= np.quantile(result.confidence.astype(np.float32), 0.9))
    return there
