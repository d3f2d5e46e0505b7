"""Draw frames of a data set with the predictions of a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from tpvformer.compat import load_weights
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.data.formats import format_of
from tpvformer.data.transforms import frame_of_grid
from tpvformer.data.types import Frame
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.engine.device.precision import choose, prepare
from tpvformer.engine.device.preflight import check_cameras
from tpvformer.engine.train import build_model
from tpvformer.errors import ConfigError
from tpvformer.predict.archive import in_lidar_frame
from tpvformer.predict.box_arrays import observed
from tpvformer.predict.encoded_frame import FrameClasses, predict_frame
from tpvformer.viz.boxes import PictureBoxes, picture_boxes
from tpvformer.viz.picture import frame_picture, write_png


def draw_frame(
    config: Config, weights: Path, index: int, out: Path, device: str = "auto", which: Optional[str] = None
) -> str:
    """Write a PNG of validation frame ``index`` with the predictions of ``weights``; return a line about it.

    Raises ConfigError, DataError and CheckpointError.
    """
    return next(draw_frames(config, weights, {out: index}, device, which=which))


def draw_frames(
    config: Config,
    weights: Path,
    frames: Mapping[Path, int],
    device: str = "auto",
    split: str = "val",
    which: Optional[str] = None,
) -> Iterator[str]:
    """Write a PNG for each of ``frames`` (file: number of the frame in its split); yield a line about each.

    ``split`` "train" draws training frames, without augmentation. ``which``: see ``load_weights``; the first line names
    the weights of a file that has an average of them. Raises ConfigError, DataError and CheckpointError.
    """
    place, remarks = pick_device(device)
    infos = config.data.train_infos if split == "train" else config.data.val_infos
    data = dataclasses.replace(config.data, val_infos=infos)
    dataset = FrameDataset(data, config.model.grid, "val", config.train.seed, boxes=config.model.detection is not None)
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
    said = load_weights(model, weights, which=which).which
    kind = "training" if split == "train" else "validation"
    for out, index in frames.items():
        line = _draw(model, dataset, index, out, f"{config.name}, {kind} frame {index}", config, place)
        yield f"{line}; {said}" if said else line
        said = ""


def _draw(
    model: nn.Module, dataset: FrameDataset, index: int, out: Path, name: str, config: Config, device: torch.device
) -> str:
    """Write one picture; return the line about it."""
    classes = predict_frame(model, dataset, index, config, device)
    frame = dataset.load_frame(index)
    known = config.data.label_classes
    if dataset.has_points:
        labelled = (frame.labels != config.data.ignore_label) & ~np.isin(frame.labels, known.ignored)
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
        _boxes(classes, frame, config, axes),
    )
    try:
        write_png(out, picture, title)
    except OSError as err:
        raise ConfigError(f"out is {out}, which cannot be written ({err.strerror}); name another file") from err
    return f"{out}: {title}"


def seen_from_above(voxels: np.ndarray, frame: str) -> np.ndarray:
    """Turn voxels (X,Y,Z) so that x points right and y forwards, as in the lidar frame; the ego's x points forwards."""
    return voxels if frame == "lidar" else voxels.swapaxes(0, 1)[::-1]


def _boxes(classes: FrameClasses, frame: Frame, config: Config, axes: str) -> Optional[PictureBoxes]:
    """Return the predicted and the true boxes as a picture shows them; None where there are neither."""
    grid = config.model.grid
    lidar2grid = np.eye(4) if grid.frame == "lidar" else frame_of_grid(frame, grid)
    predicted = None if classes.boxes is None else in_lidar_frame(classes.boxes, frame, config)
    above = above_view(grid.pc_range, axes)
    return picture_boxes(predicted, observed(frame.boxes), DETECTION_CLASSES, lidar2grid, above)


def above_view(pc_range: Sequence[float], frame: str) -> np.ndarray:
    """Return the projection (4, 4) of metres in the grid's frame to that view: fractions from left and from top."""
    (x0, y0), (x1, y1) = pc_range[:2], pc_range[3:5]
    out = np.zeros((4, 4))
    if frame == "lidar":
        out[:2] = [1 / (x1 - x0), 0, 0, -x0 / (x1 - x0)], [0, -1 / (y1 - y0), 0, y1 / (y1 - y0)]
    else:
        out[:2] = [0, -1 / (y1 - y0), 0, y1 / (y1 - y0)], [-1 / (x1 - x0), 0, 0, x1 / (x1 - x0)]
    out[2:, 3] = 1
    return out


def vehicle_place(pc_range: Sequence[float], frame: str) -> Tuple[float, float]:
    """Return the position of the frame's origin in that view: fraction of width from left, of height from the top."""
    x, y = (-pc_range[axis] / (pc_range[axis + 3] - pc_range[axis]) for axis in (0, 1))
    return (x, 1 - y) if frame == "lidar" else (1 - y, 1 - x)
