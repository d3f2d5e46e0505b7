"""Encode a frame once, and decode the classes of its voxels and points."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Generator, List, Optional, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.detection.decode import decode_batch
from tpvformer.data.loader import collate
from tpvformer.data.types import Sample
from tpvformer.engine.forward import planes, point_places, predict
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer
from tpvformer.model.detection import DetectionMaps
from tpvformer.model.history import PlaneHistory, check_history, remember


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
    boxes: Optional[Boxes] = None  # with scores, the grid's frame; None of a model without a detection head


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
        points.cpu().numpy(),
        voxels.cpu().numpy(),
        batch.voxel_labels[0].cpu().numpy(),
        confidence.cpu().numpy(),
        _decoded(getattr(logits, "detection", None), config),
    )


class EncodedFrame:
    """Hold the encoded planes of a frame, from which any position is decoded without running the network again.

    ``history`` is what the drive looked like before, as this frame sees it; afterwards the attribute is the same with
    this frame included, for the next one: None of a model without ``model.history``. Raises ConfigError for the history
    of another model. The timer ``marks`` ends "preprocess" before the network and "model" in ``classify``. ``features``
    (1,Q,C) are those of the frame, where ``plane_features`` computed them with those of other frames.
    """

    def __init__(
        self,
        model: TPVFormer,
        sample: Sample,
        config: Config,
        device: torch.device,
        marks: Optional[PhaseTimer] = None,
        history: Optional[PlaneHistory] = None,
        features: Optional[Tensor] = None,
    ) -> None:
        self._model, self._config = model, config
        self._marks = PhaseTimer(device) if marks is None else marks
        if history is not None:
            history = _checked(history, config, device)
        if features is None:
            (features,) = plane_features(model, [sample], config, device, self._marks, [history])
        with _asking(model):
            remembers = config.model.history
            self.history = None if remembers is None else remember(features, history, remembers.frames)
            self._maps: Sequence[Tensor] = model.aggregator.plane_maps(features)
            self._detection = model.boxes(features, history)

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
            points.cpu().numpy(),
            logits.argmax(0).cpu().numpy(),
            sample.voxel_labels.numpy(),
            confidence.cpu().numpy(),
            _decoded(self._detection, self._config),
        )


def _decoded(maps: Optional[DetectionMaps], config: Config) -> Optional[Boxes]:
    """Return the boxes of the first sample; None of a model without a detection head."""
    return None if maps is None else decode_batch(maps, config.model)[0]


def plane_features(
    model: TPVFormer,
    samples: Sequence[Sample],
    config: Config,
    device: torch.device,
    marks: PhaseTimer,
    histories: Sequence[Optional[PlaneHistory]],
) -> List[Tensor]:
    """Return the features (1,Q,C) of each sample, computed as one batch; the timer ``marks`` ends "preprocess".

    ``histories``: what each drive looked like before, as the sample sees it. Raises DataError for images of different
    shapes, and ConfigError for the history of another model.
    """
    batch = collate(samples, config.data.ignore_label).to(device)
    known = [None if history is None else _checked(history, config, device) for history in histories]
    with _asking(model):
        features = planes(model, batch, config, lambda: marks.end("preprocess"), PlaneHistory.stack(known))
    return list(features.split(1))


def _checked(history: PlaneHistory, config: Config, device: torch.device) -> PlaneHistory:
    """Return the history of one sample on the device. Raises ConfigError for that of another model."""
    try:
        check_history(history, config.model, 1)
    except ValueError as err:
        raise ConfigError(f"{err}; a history belongs to the model that made it") from err
    return PlaneHistory(*(part.to(device) for part in history))


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
