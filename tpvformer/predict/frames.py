"""Predict frames and write a NumPy archive each, without labels and without lidar: ``tpvformer predict``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence

from tpvformer.compat import load_weights  # and PyTorch, before OpenCV: see "static TLS" in docs/ascend.md

# isort: split
import cv2
import numpy as np

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.transforms import frame_of_grid, make_sample, transform_points
from tpvformer.data.types import Frame, Sample
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.engine.device.precision import choose, prepare
from tpvformer.engine.device.preflight import check_cameras
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.engine.train import build_model
from tpvformer.errors import ConfigError, DataError
from tpvformer.files import atomic_file
from tpvformer.labels import class_names
from tpvformer.predict.encoded_frame import FrameClasses, predict_scene
from tpvformer.runtime import compiling

STORED_WIDTH, STORED_QUALITY = 800, 80  # pictures stored in an archive: pixels, JPEG quality


PARTS = ("decode", "preprocess", "model", "postprocess")  # parts of a frame's time, in their order


class FramePredictions:
    """Predict frames: each iteration writes ``out/<token>.npz`` and yields a line about it; ``len`` is their number.

    The frames are those of a rig file, or of a split of the configured set. ``index`` selects one. ``truth`` adds the
    labels of the set, which must have labels. docs/rig.md describes the archives.

    ``seconds`` has an entry for each finished frame: the time of each of PARTS, with a synchronisation at its end.
    ``notes`` are lines about device and precision, ``warning`` is about the cost of the precision. Raises ConfigError,
    DataError and CheckpointError.
    """

    def __init__(
        self,
        config: Config,
        weights: Path,
        out: Path,
        rig: Optional[str] = None,
        split: str = "val",
        index: Optional[int] = None,
        device: str = "auto",
        truth: bool = False,
    ) -> None:
        self._config, self._out, self._truth = config, out, truth
        self._data = config.data if rig is None else dataclasses.replace(config.data, test_infos=rig)
        split = split if rig is None else "test"
        self._dataset = dataset = FrameDataset(self._data, config.model.grid, split, 0, truth, require_scans=truth)
        check_cameras(dataset, config)
        if index is not None and not 0 <= index < len(dataset):
            raise ConfigError(f"index is {index}; {dataset.infos} holds frames 0 to {len(dataset) - 1}")
        self._chosen = range(len(dataset)) if index is None else range(index, index + 1)
        self._device, remarks = pick_device(device)
        precision = choose(config.train.precision, self._device)
        self.notes = [*remarks, str(precision), *prepare(config, self._device), *filter(None, [dataset.camera_note])]
        self.warning = precision.warning
        self._model = build_model(precision.applied(config), self._device)
        load_weights(self._model, weights)
        self.seconds: List[Dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[str]:
        for i in self._chosen:
            marks = PhaseTimer(self._device)
            with compiling.said_together():
                line = self._write(i, marks)
            self.seconds.append(seconds_of(marks))
            yield line

    def _write(self, i: int, marks: PhaseTimer) -> str:
        config, dataset = self._config, self._dataset
        frame = dataset.load_frame(i)
        marks.end("decode")
        path = self._out / f"{_file_name(frame.token)}.npz"
        sample = make_sample(frame, self._data, config.model.grid, None)
        classes = predict_scene(self._model, sample, config, self._device, marks)
        arrays = archive(frame, sample, classes, config, dataset.scenes[i], i)
        if self._truth:
            arrays.update(_truth(frame, classes, arrays.get("scanned"), config.data.fill_label))
            if dataset.has_labels and len(frame.points):
                arrays["true_point_labels"] = frame.labels
        write_archive(path, arrays)
        marks.end("postprocess")
        points = f"without points ({frame.no_scan})" if frame.no_scan else f"{len(classes.points)} points"
        return (
            f"{path}: {'x'.join(map(str, classes.voxels.shape))} voxels, {points}, "
            f"mean confidence {classes.confidence.mean(dtype=np.float64):.3f}{left_out(frame)}"
        )


def left_out(frame: Frame) -> str:
    """Return a remark on points without finite coordinates; empty if the scan has none."""
    return f", {frame.lost_points} points without finite coordinates left out" if frame.lost_points else ""


def seconds_of(marks: PhaseTimer) -> Dict[str, float]:
    """Return the time of one frame by part, in seconds."""
    return {part: marks.spent[part].wall for part in PARTS}


def time_split(seconds: Sequence[Mapping[str, float]]) -> str:
    """Return one line about the mean time by part, with the first frame, which also compiles kernels, apart."""
    later = seconds[1:] or seconds
    parts = {part: sum(frame[part] for frame in later) / len(later) for part in PARTS}
    split = ", ".join(f"{part} {value:.2f}" for part, value in parts.items())
    mean, first = sum(parts.values()), sum(seconds[0].values())
    if len(seconds) == 1:
        return f"1 frame, {first:.2f} s including one-time work: {split}"
    return f"{len(seconds)} frames, {mean:.2f} s a frame: {split}; first frame {first:.2f} s"


def _file_name(token: str) -> str:
    if not token or token.startswith(".") or "/" in token or "\\" in token:
        raise DataError(f"sample {token}: its token cannot be the name of a file; give it another in its info file")
    return token


def write_archive(path: Path, arrays: Dict[str, np.ndarray]) -> None:
    """Write the arrays of ``archive``. Raises ConfigError if the file cannot be written."""
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)  # ty: ignore[invalid-argument-type]  # the stub types them as options


def archive(
    frame: Frame, sample: Sample, classes: FrameClasses, config: Config, scene: str = "", number: int = 0
) -> Dict[str, np.ndarray]:
    """Return the arrays of one frame: the prediction, and what a viewer shows with it (docs/rig.md)."""
    arrays = _predicted(frame, classes, config)
    arrays.update(_around(frame, sample, config), scene=np.array(scene), number=np.array(number))
    return arrays


def _predicted(frame: Frame, classes: FrameClasses, config: Config) -> Dict[str, np.ndarray]:
    grid = config.model.grid
    arrays = {
        "token": np.array(frame.token),
        "voxels": classes.voxels.astype(np.uint8),
        "confidence": classes.confidence,
        "pc_range": np.array(grid.pc_range),
        "frame": np.array(grid.frame),
        "class_names": np.array(class_names(config.data.label_map)),
    }
    if len(frame.points):
        arrays.update(points=frame.points, point_labels=classes.points.astype(np.uint8))
    return arrays


def _around(frame: Frame, sample: Sample, config: Config) -> Dict[str, np.ndarray]:
    """Return what a viewer shows with the classes: small pictures, calibration, and the voxels that hold points."""
    grid, pictures = config.model.grid, frame.pictures()
    lidar2grid = np.eye(4) if grid.frame == "lidar" else frame_of_grid(frame, grid)
    points = transform_points(frame.points, lidar2grid)
    inside = ((points >= grid.pc_range[:3]) & (points < grid.pc_range[3:])).all(1)  # others were clipped
    arrays = {
        "lidar2grid": lidar2grid,
        "camera_names": np.array(frame.camera_names),
        "lidar2img": frame.lidar2img,
        "image_sizes": np.array([(picture.shape[1], picture.shape[0]) for picture in pictures]),
    }
    if len(points):
        arrays["scanned"] = np.unique(sample.grid_index.numpy()[inside], axis=0).astype(np.uint16)
    for i, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        if width > STORED_WIDTH:
            size = (STORED_WIDTH, max(1, round(height * STORED_WIDTH / width)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        arrays[f"image_{i}"] = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, STORED_QUALITY))[1].ravel()
    return arrays


def _truth(
    frame: Frame, classes: FrameClasses, scanned: Optional[np.ndarray], fill_label: int
) -> Dict[str, np.ndarray]:
    """Return the set's labels of voxels; labels that were voted by points only where there are points."""
    voxels = classes.true_voxels.astype(np.uint8)
    if frame.dense is None:
        voted = np.full_like(voxels, fill_label)
        at = tuple(np.zeros((3, 0), np.int64) if scanned is None else scanned.T.astype(np.int64))
        voted[at] = voxels[at]
        voxels = voted
    return {"true_voxels": voxels}
