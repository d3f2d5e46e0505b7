"""Hold the prediction of one frame in NumPy, with ways to show and save it; several frames form a list."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Union

import numpy as np
import torch

from tpvformer.config import Config
from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.data.rig.from_arrays import checked_points
from tpvformer.data.transforms import frame_of_grid
from tpvformer.data.types import Frame, Sample
from tpvformer.data.voxels.voxelize import voxelize
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.geometry import lattice, transform_points
from tpvformer.predict import show as looking
from tpvformer.predict.archive import archive_arrays, frame_prediction, in_lidar_frame, write_archive
from tpvformer.predict.encoded_frame import EncodedFrame
from tpvformer.predict.frames import seconds_of
from tpvformer.predict.remembered import Sight, seen_only_before
from tpvformer.predict.stream import Memory

if TYPE_CHECKING:
    from tpvformer.viz.frame_prediction import FramePrediction as Viewed

PathLike = Union[str, "os.PathLike[str]"]
TITLE = "TPVFormer"


@dataclass(frozen=True, repr=False)
class Voxels:
    """Hold the classes of all voxels. K classes; X, Y, Z voxels along x, y, z of ``frame``.

    ``frame`` "lidar": x right, y forward, z up from the lidar, as in nuScenes; "ego": x forward, y left, z up from the
    ground under the rear axle.
    """

    labels: np.ndarray  # (X,Y,Z) uint8
    probabilities: np.ndarray  # (K,X,Y,Z) float32
    axes: Tuple[np.ndarray, np.ndarray, np.ndarray]  # voxel centres along x (X,), y (Y,) and z (Z,), metres
    pc_range: Tuple[float, ...]  # low x, y, z, high x, y, z, metres
    frame: str
    class_names: Tuple[str, ...]  # by label

    @property
    def confidence(self) -> np.ndarray:
        """Return the probability of each label, (X,Y,Z) float32."""
        return self.probabilities.max(0)

    def __repr__(self) -> str:
        shape, r = "x".join(map(str, self.labels.shape)), self.pc_range
        spans = ", ".join(f"{axis} {r[i]:g} to {r[i + 3]:g}" for i, axis in enumerate("xyz"))
        return f"Voxels({shape}, {len(self.class_names)} classes, {self.frame} frame, metres: {spans})"


class Result:
    """Hold the predicted ``voxels`` and the classes of ``points``, if given; ``label`` classifies further points.

    ``boxes`` are the detected objects in the lidar frame, as ``points`` are, for a model with a detection head; None
    otherwise. They have metres, radians and m/s: ``centres`` (N,3), ``sizes`` (N,3) as length, width, height, ``yaws``
    (N,) from x counter-clockwise, ``velocities`` (N,2), ``labels`` (N,) and ``scores`` (N,) from 0 to 1, with all that
    passed the decoder's threshold. ``box_names`` holds the class name of each of their labels.

    ``seconds`` is the time by part: "decode", "preprocess", "model", "postprocess"; a model's first prediction takes
    longer. ``token`` is the frame's name: that of a rig's frame, or "given". ``history`` is what a model with
    ``model.history`` remembers for the next frame. A notebook shows a result as a picture.
    """

    def __init__(
        self,
        scene: EncodedFrame,
        frame: Frame,
        sample: Sample,
        config: Config,
        marks: PhaseTimer,
        drive: str = "",
        number: int = 0,
        history: Optional[Memory] = None,
        sight: Optional[Sight] = None,
    ) -> None:
        self._sight = sight
        self._scene, self._frame, self._sample, self._config = scene, frame, sample, config
        self._place = drive, number  # scene and number of the frame in the rig
        self.token = frame.token
        # what ``predict`` takes with the next frame; None of a model without model.history, or without pose and time
        self.history = history
        grid = config.model.grid
        logits = scene.voxel_logits()
        self._classes = scene.classify(logits, sample)
        low, pitch = lattice(grid.pc_range, grid.shape)
        axes = tuple(low[i] + (np.arange(n) + 0.5) * pitch[i] for i, n in enumerate(grid.shape))
        self.voxels = Voxels(
            self._classes.voxel_labels.astype(np.uint8),
            logits.float().softmax(0).cpu().numpy(),
            (axes[0], axes[1], axes[2]),
            grid.pc_range,
            grid.frame,
            config.data.label_classes.names,
        )
        self.points = frame.points  # (P,3) float32, metres, lidar frame
        self.point_labels = self._classes.point_labels.astype(np.uint8)  # (P,)
        found = self._classes.boxes
        # N boxes with scores, lidar frame; None of a model without a detection head
        self.boxes: Optional[Boxes] = None if found is None else in_lidar_frame(found, frame, config)
        marks.end("postprocess")
        self.seconds: Dict[str, float] = seconds_of(marks)

    def label(self, points: Any) -> np.ndarray:
        """Return the classes (P,) uint8 of points (P, 3 or more), metres, lidar frame; the network does not run again.

        A point outside the grid gets the class of the nearest position on its border. Raises DataError.
        """
        grid, places = self._config.model.grid, checked_points(points)
        if grid.frame != "lidar":
            places = transform_points(places, frame_of_grid(self._frame, grid)).astype(np.float32)
        even, none = self._config.data.cells_are_even, np.zeros(len(places), np.uint8)
        cells = voxelize(places, none, grid.shape, grid.pc_range, 0, divide_by_n=even)
        classes = self._scene.points_in(torch.from_numpy(cells.occupied)).cpu().numpy()
        return classes[cells.point_row].astype(np.uint8)

    @property
    def names(self) -> Dict[int, str]:
        """Return the class name of each label."""
        return dict(enumerate(self.voxels.class_names))

    @property
    def remembered(self) -> Optional[np.ndarray]:
        """Return the mask (X,Y,Z), bool, of the voxels that no camera of this frame sees, but one of a past frame did.

        It is computed from the calibrations alone when it is asked for; None where no past frame was read.
        """
        return None if self._sight is None else seen_only_before(self._sight, self._config.model.grid)

    @property
    def box_names(self) -> Dict[int, str]:
        """Return the class name of each label of ``boxes``."""
        return dict(enumerate(DETECTION_CLASSES))

    def save(self, path: PathLike) -> Path:
        """Write the archive of ``tpvformer predict`` (docs/rig.md), with the given points; return the path.

        Raises ConfigError if it cannot be written.
        """
        file = Path(path)
        write_archive(file, self._arrays())
        return file

    def to_html(self, path: Optional[PathLike] = None, title: str = TITLE) -> Union[Path, str]:
        """Write the page of ``tpvformer view`` (docs/viewer.md), a file for any browser, to ``path``; return the path.

        Without ``path``, return the page as text. Raises ConfigError if it cannot be written.
        """
        return looking.page([self._viewed()], path, title)

    def plot(self, path: Optional[PathLike] = None) -> np.ndarray:
        """Return the picture of ``tpvformer view --png``, (H, 2930, 3) uint8 RGB; also write it to ``path``, a .png.

        It shows cameras, voxels from several viewpoints, and the classes with their colours. Raises ConfigError if it
        cannot be written.
        """
        return looking.picture(self._viewed(), path)

    def show(self) -> Path:
        """Open the page in a browser, or in a notebook below the cell; return its temporary file."""
        return looking.show([self._viewed()], TITLE)

    def _repr_html_(self) -> str:
        return looking.inline([self._viewed()], repr(self))

    def _arrays(self) -> Dict[str, np.ndarray]:
        return archive_arrays(self._frame, self._sample, self._classes, self._config, *self._place, self._sight)

    def _viewed(self) -> Viewed:
        return frame_prediction(self._arrays())

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.voxels.labels.shape))
        boxes = "" if self.boxes is None else f", {len(self.boxes)} boxes"
        return f"Result({shape} voxels, {len(self.voxels.class_names)} classes, {len(self.points)} points{boxes})"


class Results(List[Result]):
    """Hold the frames of a batch or of a rig, in order: a list that can be shown and saved as a whole."""

    def save(self, folder: PathLike) -> List[Path]:
        """Write ``<token>.npz`` for each frame, as ``tpvformer predict`` does; return the files. Raises ConfigError."""
        return [result.save(Path(folder) / f"{result.token}.npz") for result in self]

    def to_html(self, path: Optional[PathLike] = None, title: str = TITLE) -> Union[Path, str]:
        """Write one page with a slider over the frames; arguments as for ``Result.to_html``."""
        return looking.page(self._viewed(), path, title)

    def show(self) -> Path:
        """Open that page, as ``Result.show`` does."""
        return looking.show(self._viewed(), TITLE)

    def _repr_html_(self) -> str:
        return looking.inline(self._viewed(), repr(self)) if self else repr(self)

    def _viewed(self) -> List[Viewed]:
        return [result._viewed() for result in self]

    def __repr__(self) -> str:
        many = "1 frame" if len(self) == 1 else f"{len(self)} frames"
        return f"Results({many}: {', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"
