"""What a model says about one moment, in NumPy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Tuple, Union

import numpy as np
import torch

from tpvformer.config import Config
from tpvformer.data.given import checked_points
from tpvformer.data.transforms import frame_of_grid, moved
from tpvformer.data.types import Frame, Sample
from tpvformer.data.voxelize import voxelize
from tpvformer.engine.bench.marks import Marks
from tpvformer.labels import class_names
from tpvformer.predict import Scene
from tpvformer.predict_files import archive, seconds_of, write_archive


@dataclass(frozen=True)
class Voxels:
    """The classes of all voxels. K classes; X, Y, Z voxels along x, y, z of ``frame``.

    ``frame`` "lidar": x right, y forward, z up from the LiDAR, as in nuScenes; "ego": x forward, y left, z up from
    the ground under the rear axle.
    """

    labels: np.ndarray  # (X,Y,Z) uint8
    probabilities: np.ndarray  # (K,X,Y,Z) float32
    axes: Tuple[np.ndarray, np.ndarray, np.ndarray]  # the centres along x (X,), y (Y,) and z (Z,), metres
    pc_range: Tuple[float, ...]  # low x, y, z, high x, y, z, metres
    frame: str
    class_names: Tuple[str, ...]  # by label

    @property
    def confidence(self) -> np.ndarray:
        """(X,Y,Z) float32: the probability of each label."""
        return self.probabilities.max(0)


class Result:
    """``voxels``, the classes of ``points`` where some were given, and of any others on request.

    ``seconds``: what it took, by part: "decode", "preprocess", "model", "postprocess"; a model's first takes longer.
    """

    def __init__(self, scene: Scene, frame: Frame, sample: Sample, config: Config, marks: Marks) -> None:
        self._scene, self._frame, self._sample, self._config = scene, frame, sample, config
        grid = config.model.grid
        logits = scene.voxel_logits()
        self._classes = scene.decided(logits, sample)
        r = grid.pc_range
        axes = tuple(r[i] + (np.arange(n) + 0.5) * ((r[i + 3] - r[i]) / n) for i, n in enumerate(grid.voxels))
        self.voxels = Voxels(
            self._classes.voxels.astype(np.uint8),
            logits.float().softmax(0).cpu().numpy(),
            (axes[0], axes[1], axes[2]),
            grid.pc_range,
            grid.frame,
            class_names(config.data.label_map),
        )
        self.points = frame.points  # (P,3) float32, metres, LiDAR frame
        self.point_labels = self._classes.points.astype(np.uint8)  # (P,)
        marks.end("postprocess")
        self.seconds: Dict[str, float] = seconds_of(marks)

    def label(self, points: Any) -> np.ndarray:
        """(P,) uint8: the classes of points (P, 3 or more) metres, LiDAR frame; the images are not looked at again.

        A point outside of the grid has the class of the nearest place on its border. Raises DataError.
        """
        grid, places = self._config.model.grid, checked_points(points)
        if grid.frame != "lidar":
            places = moved(places, frame_of_grid(self._frame, grid)).astype(np.float32)
        whole, none = self._config.data.cells_are_even, np.zeros(len(places), np.uint8)
        cells = voxelize(places, none, grid.voxels, grid.pc_range, 0, whole=whole)
        classes = self._scene.points_in(torch.from_numpy(cells.occupied)).cpu().numpy()
        return classes[cells.point_row].astype(np.uint8)

    def save(self, path: Union[str, "os.PathLike[str]"]) -> Path:
        """Write what ``tpvformer predict`` writes (docs/rig.md), points included where some were given; returns the
        path. Raises ConfigError where it cannot be written."""
        file = Path(path)
        write_archive(file, archive(self._frame, self._sample, self._classes, self._config))
        return file

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.voxels.labels.shape))
        return f"Result({shape} voxels, {len(self.voxels.class_names)} classes, {len(self.points)} points)"
