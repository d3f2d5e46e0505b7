"""Predict frames and write a NumPy archive each, without labels and without lidar: ``tpvformer predict``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence

import numpy as np

from tpvformer.compat import load_weights  # and PyTorch, before OpenCV: see "static TLS" in docs/ascend.md
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import Frame
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.engine.device.precision import choose, prepare
from tpvformer.engine.device.preflight import check_cameras
from tpvformer.engine.logging.log import progress
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.engine.train import build_model
from tpvformer.errors import ConfigError
from tpvformer.predict.archive import archive_arrays, archive_path, truth_arrays, write_archive
from tpvformer.predict.encoded_frame import EncodedFrame, FrameClasses
from tpvformer.predict.stream import Stream
from tpvformer.runtime import compiling

PARTS = ("decode", "preprocess", "model", "postprocess")  # of a frame's time, in the order in which they happen


class FramePredictions:
    """Predict frames: each iteration writes ``out/<token>.npz`` and yields a line about it; ``len`` is their number.

    The frames are those of a rig file, or of a split of the configured set. ``index`` selects one. ``truth`` adds the
    labels of the set, which must have labels. docs/rig.md describes the archives. A model with ``model.history``
    streams (stream.py): frames are in the order of time, scene by scene, and a line says first what made it begin anew.
    ``which``: see ``load_weights``.

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
        which: Optional[str] = None,
    ) -> None:
        self._config, self._out, self._truth = config, out, truth
        self._data = config.data if rig is None else dataclasses.replace(config.data, test_infos=rig)
        split = split if rig is None else "test"
        detects = config.model.detection is not None
        self._dataset = dataset = FrameDataset(
            self._data, config.model.grid, split, 0, truth, require_scans=truth, boxes=truth and detects
        )
        check_cameras(dataset, config)
        if index is not None and not 0 <= index < len(dataset):
            raise ConfigError(f"index is {index}; {dataset.infos} holds frames 0 to {len(dataset) - 1}")
        self._chosen: Sequence[int] = range(len(dataset)) if index is None else range(index, index + 1)
        self._device, remarks = pick_device(device)
        precision = choose(config.train.precision, self._device)
        self._resets: List[str] = []  # since the last frame
        self._stream = Stream(config.model, lambda kind, line: self._resets.append(line))
        self.notes = [*remarks, str(precision), *prepare(config, self._device), *filter(None, [dataset.camera_note])]
        if config.model.history is not None and index is not None:
            self.notes.append(f"frame {index} alone: nothing is remembered (model.history reads the frames before)")
        elif config.model.history is not None:
            order = dataset.drives
            self._chosen = [i for drive in order for i in drive]
            self.notes.append(
                f"streams {len(dataset)} frames of {len(order)} scenes in the order of time, each run once"
            )
        self.warning = precision.warning
        self._model = build_model(precision.applied(config), self._device)
        said = load_weights(self._model, weights, which=which).which
        self.notes += [f"{weights}: {said}"] if said else []
        self.seconds: List[Dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[str]:
        for i in self._chosen:
            marks = PhaseTimer(self._device)
            with compiling.said_together():
                line = self._write(i, marks)
            self.seconds.append(seconds_of(marks))
            yield "\n".join([*self._resets, line])
            self._resets.clear()

    def _write(self, i: int, marks: PhaseTimer) -> str:
        config, dataset = self._config, self._dataset
        frame = dataset.load_frame(i)
        marks.end("decode")
        path = archive_path(self._out, frame.token)
        sample = make_sample(frame, self._data, config.model.grid, None)
        scene = self._stream.step(
            frame, lambda seen: EncodedFrame(self._model, sample, config, self._device, marks, seen)
        )
        classes = scene.classes(sample)
        arrays = archive_arrays(frame, sample, classes, config, dataset.scenes[i], i, self._stream.sight)
        if self._truth:
            arrays.update(truth_arrays(frame, classes, arrays.get("scanned"), config, dataset.has_labels))
        write_archive(path, arrays)
        marks.end("postprocess")
        points = f"without points ({frame.no_scan})" if frame.no_scan else f"{len(classes.point_labels)} points"
        return (
            f"{path}: {'x'.join(map(str, classes.voxel_labels.shape))} voxels, {points}, "
            f"mean confidence {classes.confidence.mean(dtype=np.float64):.3f}{_boxes(classes)}{left_out(frame)}"
        )


def _boxes(classes: FrameClasses) -> str:
    """Return the number of boxes in words; empty of a model without a detection head."""
    return "" if classes.boxes is None else f", {len(classes.boxes)} boxes"


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


def print_frames(frames: FramePredictions) -> None:
    """Predict all frames; print the notes, a line a frame beside a progress bar, and the time of each part."""
    for note in frames.notes:
        print(note, flush=True)
    if frames.warning:
        print(f"warning: {frames.warning}", file=sys.stderr)
    with progress("predict", len(frames)) as bar:
        for line in frames:
            bar.make_room()
            print(line, flush=True)
            bar.advance()
    print(time_split(frames.seconds))
