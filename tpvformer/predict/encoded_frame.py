"""Predict the classes of a data set's frames from a checkpoint, and draw them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Generator, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from tpvformer.compat import load_weights
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import format_of
from tpvformer.data.loader import collate
from tpvformer.data.types import Sample
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.engine.device.precision import choose, prepare
from tpvformer.engine.device.preflight import check_cameras
from tpvformer.engine.forward import planes, point_places, predict
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.engine.train import build_model
from tpvformer.errors import ConfigError
from tpvformer.labels import IGNORED, classes_of
from tpvformer.model import TPVFormer
from tpvformer.viz.picture import frame_picture, write_png


@dataclass(frozen=True)
class FrameClasses:
    """Hold the classes of one frame, NumPy: ``point_labels`` (P,), ``voxel_labels`` and ``true_voxels`` (X,Y,Z).

    A lidar segmentation model does not learn free space. ``predict_frame`` sets ``voxel_labels`` to 0 where there is no
    point. ``predict_scene`` gives every voxel its most probable class and the probability of that class.
    """

    point_labels: np.ndarray
    voxel_labels: np.ndarray
    true_voxels: np.ndarray
    confidence: np.ndarray  # (X,Y,Z) float16: the probability of ``voxel_labels``; 0 where nothing was predicted


def predict_frame(
    model: nn.Module, dataset: FrameDataset, index: int, config: Config, device: torch.device
) -> FrameClasses:
    """Predict one frame of a data set."""
    batch = collate([dataset[index]], config.data.ignore_label).to(device)
    with _asking(model):
        logits = predict(model, batch, config)
    assert logits.point_logits is not None
    points = logits.point_logits.argmax(1)[0][batch.point2voxel[0]]
    voxels = logits.voxel_logits[0].argmax(0)
    confidence = logits.voxel_logits[0].softmax(0).amax(0).half()
    if logits.voxel_logits.dim() == 3:
        at, shape = tuple(batch.voxel_coords[0].T), batch.voxel_labels.shape[1:]
        voxels, confidence = (values.new_zeros(shape).index_put_(at, values) for values in (voxels, confidence))
    return FrameClasses(
        points.cpu().numpy(), voxels.cpu().numpy(), batch.voxel_labels[0].cpu().numpy(), confidence.cpu().numpy()
    )


class EncodedFrame:
    """Hold the encoded planes of a frame, from which any position is decoded without running the network again.

    The timer ``marks`` of this frame ends "preprocess" before the network and "model" in ``classify``.
    """

    def __init__(
        self, model: TPVFormer, sample: Sample, config: Config, device: torch.device, marks: Optional[PhaseTimer] = None
    ) -> None:
        self._model, self._config = model, config
        self._marks = PhaseTimer(device) if marks is None else marks
        batch = collate([sample], config.data.ignore_label).to(device)
        with _asking(model):
            features = planes(model, batch, config, lambda: self._marks.end("preprocess"))
            self._maps: Sequence[Tensor] = model.aggregator.plane_maps(features)

    def voxel_logits(self) -> Tensor:
        """Return the logits (K,X,Y,Z) of the whole grid."""
        with _asking(self._model):
            return self._model.aggregator.dense(self._here())[0]

    def points_in(self, voxels: Tensor) -> Tensor:
        """Return the classes (M,) int64 of points in voxels (M,3); all points of a voxel have the same class."""
        maps = self._here()
        places = point_places(voxels.to(maps[0].device), self._config)
        with _asking(self._model):
            return self._model.aggregator.at_points(maps, places[None])[0].argmax(0)

    def _here(self) -> Sequence[Tensor]:
        """Return the plane maps, moved to the model's current device."""
        device = next(self._model.parameters()).device
        self._maps = [plane.to(device) for plane in self._maps]
        return self._maps

    def classes(self, sample: Sample) -> FrameClasses:
        """Return the classes of the whole grid, and of the points of ``sample``."""
        return self.classify(self.voxel_logits(), sample)

    def classify(self, logits: Tensor, sample: Sample) -> FrameClasses:
        """Return the classes from given ``voxel_logits``, and those of the points of ``sample``."""
        points = self.points_in(sample.voxel_coords)[sample.point2voxel.to(logits.device)]
        self._marks.end("model")
        confidence = logits.softmax(0).amax(0).half()
        return FrameClasses(
            points.cpu().numpy(), logits.argmax(0).cpu().numpy(), sample.voxel_labels.numpy(), confidence.cpu().numpy()
        )


def predict_scene(
    model: TPVFormer, sample: Sample, config: Config, device: torch.device, marks: Optional[PhaseTimer] = None
) -> FrameClasses:
    """Predict every voxel of the grid, with or without a point in it.

    Neither labels nor lidar are needed: without a scan ``point_labels`` is empty and ``true_voxels`` holds
    data.fill_label.
    """
    return EncodedFrame(model, sample, config, device, marks).classes(sample)


@contextlib.contextmanager
def _asking(model: nn.Module) -> Generator[None, None, None]:
    """Disable gradients and dropout inside the context; restore the model's mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def draw_frame(config: Config, weights: Path, index: int, out: Path, device: str = "auto") -> str:
    """Write a PNG of validation frame ``index`` with the predictions of ``weights``; return a line about it.

    Raises ConfigError, DataError and CheckpointError.
    """
    return next(draw_frames(config, weights, {out: index}, device))


def draw_frames(
    config: Config, weights: Path, frames: Mapping[Path, int], device: str = "auto", split: str = "val"
) -> Iterator[str]:
    """Write a PNG for each of ``frames`` (file: number of the frame in its split); yield a line about each.

    ``split`` "train" draws training frames, without augmentation. Raises ConfigError, DataError and CheckpointError.
    """
    place, remarks = pick_device(device)
    infos = config.data.train_infos if split == "train" else config.data.val_infos
    data = dataclasses.replace(config.data, val_infos=infos)
    dataset = FrameDataset(data, config.model.grid, "val", config.train.seed)
    check_cameras(dataset, config)
    for index in frames.values():
        if not 0 <= index < len(dataset):
            raise ConfigError(f"index is {index}; {infos} holds frames 0 to {len(dataset) - 1}")
    precision = choose(config.train.precision, place)
    for line in (*remarks, precision.warning, dataset.camera_note):
        if line:
            logging.getLogger(__name__).warning(line)
    prepare(config, place)
    model = build_model(precision.applied(config), place)
    load_weights(model, weights)
    kind = "training" if split == "train" else "validation"
    for out, index in frames.items():
        yield _draw(model, dataset, index, out, f"{config.name}, {kind} frame {index}", config, place)


def _draw(
    model: nn.Module, dataset: FrameDataset, index: int, out: Path, name: str, config: Config, device: torch.device
) -> str:
    """Write one picture; return the line about it."""
    classes = predict_frame(model, dataset, index, config, device)
    frame = dataset.load_frame(index)
    known = classes_of(config.data.label_map)
    if dataset.has_points:
        labelled = (frame.labels != config.data.ignore_label) & (frame.labels != IGNORED)
        correct, what = (classes.point_labels == frame.labels)[labelled], "points"
    else:
        labelled = np.isin(classes.true_voxels, known.evaluated)
        correct, what = (classes.voxel_labels == classes.true_voxels)[labelled], "occupied voxels"
    right = float(correct.mean()) if labelled.any() else 0.0
    title = f"{name}: {100 * right:.1f} % of {int(labelled.sum())} {what} right"
    ahead = format_of(dataset.infos, config.data.format).lidar_forward
    axes = "ego" if ahead == "x" else config.model.grid.frame  # both point forwards and left
    picture = frame_picture(
        frame.pictures(),
        frame.camera_names,
        frame.lidar2img,
        frame.points,
        classes.point_labels,
        seen_from_above(classes.voxel_labels, axes),
        seen_from_above(classes.true_voxels, axes),
        title,
        known,
        vehicle_place(config.model.grid.pc_range, axes),
    )
    try:
        write_png(out, picture, title)
    except OSError as err:
        raise ConfigError(f"out is {out}, which cannot be written ({err.strerror}); name another file") from err
    return f"{out}: {title}"


def seen_from_above(voxels: np.ndarray, frame: str) -> np.ndarray:
    """Turn voxels (X,Y,Z) so that x points right and y forwards, as in the lidar frame; the ego's x points forwards."""
    return voxels if frame == "lidar" else voxels.swapaxes(0, 1)[::-1]


def vehicle_place(pc_range: Sequence[float], frame: str) -> Tuple[float, float]:
    """Return the position of the frame's origin in that view: fraction of width from left, of height from the top."""
    x, y = (-pc_range[axis] / (pc_range[axis + 3] - pc_range[axis]) for axis in (0, 1))
    return (x, 1 - y) if frame == "lidar" else (1 - y, 1 - x)
