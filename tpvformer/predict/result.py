"""What a model says about one moment, in NumPy, and ways to look at it; several moments in one list."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Union

import numpy as np
import torch

from tpvformer.config import Config
from tpvformer.data.rig.from_arrays import checked_points
from tpvformer.data.transforms import frame_of_grid, transform_points
from tpvformer.data.types import Frame, Sample
from tpvformer.data.voxels.voxelize import voxelize
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.labels import class_names
from tpvformer.predict import show as looking
from tpvformer.predict.encoded_frame import EncodedFrame
from tpvformer.predict.frames import archive, seconds_of, write_archive

if TYPE_CHECKING:
    from tpvformer.viz.frame_prediction import FramePrediction as Viewed

PathLike = Union[str, "os.PathLike[str]"]
TITLE = "TPVFormer"


@dataclass(frozen=True, repr=False)
class Voxels:
    """The classes of all voxels. K classes; X, Y, Z voxels along x, y, z of ``frame``.

    ``frame`` "lidar": x right, y forward, z up from the lidar, as in nuScenes; "ego": x forward, y left, z up from
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

    def __repr__(self) -> str:
        shape, r = "x".join(map(str, self.labels.shape)), self.pc_range
        spans = ", ".join(f"{axis} {r[i]:g} to {r[i + 3]:g}" for i, axis in enumerate("xyz"))
        return f"Voxels({shape}, {len(self.class_names)} classes, {self.frame} frame, metres: {spans})"


class Result:
    """``voxels``, the classes of ``points`` where some were given, and of any others on request.

    ``seconds``: what it took, by part: "decode", "preprocess", "model", "postprocess"; a model's first takes longer.
    ``token`` is the frame's name, that of a rig's frame or "given". In a notebook it shows itself as a picture.
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
    ) -> None:
        self._scene, self._frame, self._sample, self._config = scene, frame, sample, config
        self._place = drive, number  # in the rig's frames
        self.token = frame.token
        grid = config.model.grid
        logits = scene.voxel_logits()
        self._classes = scene.decided(logits, sample)
        r = grid.pc_range
        axes = tuple(r[i] + (np.arange(n) + 0.5) * ((r[i + 3] - r[i]) / n) for i, n in enumerate(grid.shape))
        self.voxels = Voxels(
            self._classes.voxels.astype(np.uint8),
            logits.float().softmax(0).cpu().numpy(),
            (axes[0], axes[1], axes[2]),
            grid.pc_range,
            grid.frame,
            class_names(config.data.label_map),
        )
        self.points = frame.points  # (P,3) float32, metres, lidar frame
        self.point_labels = self._classes.points.astype(np.uint8)  # (P,)
        marks.end("postprocess")
        self.seconds: Dict[str, float] = seconds_of(marks)

    def label(self, points: Any) -> np.ndarray:
        """(P,) uint8: the classes of points (P, 3 or more) metres, lidar frame; the images are not looked at again.

        A point outside of the grid has the class of the nearest place on its border. Raises DataError.
        """
        grid, places = self._config.model.grid, checked_points(points)
        if grid.frame != "lidar":
            places = transform_points(places, frame_of_grid(self._frame, grid)).astype(np.float32)
        whole, none = self._config.data.cells_are_even, np.zeros(len(places), np.uint8)
        cells = voxelize(places, none, grid.shape, grid.pc_range, 0, whole=whole)
        classes = self._scene.points_in(torch.from_numpy(cells.occupied)).cpu().numpy()
        return classes[cells.point_row].astype(np.uint8)

    @property
    def names(self) -> Dict[int, str]:
        """The class of each label."""
        return dict(enumerate(self.voxels.class_names))

    def save(self, path: PathLike) -> Path:
        """Write what ``tpvformer predict`` writes (docs/rig.md), points included where some were given; returns the
        path. Raises ConfigError where it cannot be written."""
        file = Path(path)
        write_archive(file, self._arrays())
        return file

    def to_html(self, path: Optional[PathLike] = None, title: str = TITLE) -> Union[Path, str]:
        """The page of ``tpvformer view`` (docs/viewer.md), one file for any browser: written to ``path``, which is
        returned, or as text where none is given. Raises ConfigError where it cannot be written."""
        return looking.page([self._viewed()], path, title)

    def plot(self, path: Optional[PathLike] = None) -> np.ndarray:
        """The picture of ``tpvformer view --png``, (H, 2930, 3) uint8 RGB: cameras, voxels from several places, classes
        with their colours. ``path``, a .png, is written too. Raises ConfigError where it cannot be."""
        return looking.picture(self._viewed(), path)

    def show(self) -> Path:
        """Open the page in a browser, in a notebook below the cell; returns its file, which is a temporary one."""
        return looking.show([self._viewed()], TITLE)

    def _repr_html_(self) -> str:
        return looking.inline([self._viewed()], repr(self))

    def _arrays(self) -> Dict[str, np.ndarray]:
        return archive(self._frame, self._sample, self._classes, self._config, *self._place)

    def _viewed(self) -> Viewed:
        from tpvformer.predict.archive import result_of

        return result_of(self._arrays())

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.voxels.labels.shape))
        return f"Result({shape} voxels, {len(self.voxels.class_names)} classes, {len(self.points)} points)"


class Results(List[Result]):
    """The frames of a batch or of a rig, in order: a list, that can be looked at and saved as a whole."""

    def save(self, folder: PathLike) -> List[Path]:
        """Write ``<token>.npz`` a frame, as ``tpvformer predict --out`` does; returns the files. Raises ConfigError."""
        return [result.save(Path(folder) / f"{result.token}.npz") for result in self]

    def to_html(self, path: Optional[PathLike] = None, title: str = TITLE) -> Union[Path, str]:
        """One page with a slider over the frames; as ``Result.to_html``."""
        return looking.page(self._viewed(), path, title)

    def show(self) -> Path:
        """Open that page; as ``Result.show``."""
        return looking.show(self._viewed(), TITLE)

    def _repr_html_(self) -> str:
        return looking.inline(self._viewed(), repr(self)) if self else repr(self)

    def _viewed(self) -> List[Viewed]:
        return [result._viewed() for result in self]

    def __repr__(self) -> str:
        many = "1 frame" if len(self) == 1 else f"{len(self)} frames"
        return f"Results({many}: {', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"
