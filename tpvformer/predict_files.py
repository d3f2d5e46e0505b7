"""``tpvformer predict``: what a checkpoint says about frames, a NumPy archive each; without labels, without LiDAR."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Iterator, Optional

import numpy as np

from tpvformer.compat import load_weights
from tpvformer.config import Config, ConfigError
from tpvformer.data.dataset import NuScenesDataset
from tpvformer.data.infos.files import whole_file
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import DataError
from tpvformer.engine.device import pick_device
from tpvformer.engine.limits import check_cameras
from tpvformer.engine.run import build_model
from tpvformer.labels import class_names
from tpvformer.predict import FrameClasses, predict_scene


def predict_files(
    config: Config,
    weights: Path,
    out: Path,
    rig: Optional[str] = None,
    split: str = "val",
    index: Optional[int] = None,
    device: str = "auto",
) -> Iterator[str]:
    """Write ``out/<token>.npz`` for the frames of a rig file, else of a split of the configured set; a line for each.

    ``index`` chooses one frame. docs/rig.md says what the archives hold. Raises ConfigError, DataError and
    CheckpointError.
    """
    data = config.data if rig is None else dataclasses.replace(config.data, test_infos=rig)
    dataset = NuScenesDataset(data, config.model.grid, split if rig is None else "test", 0, require_labels=False)
    check_cameras(dataset, config)
    if index is not None and not 0 <= index < len(dataset):
        raise ConfigError(f"index is {index}; {dataset.infos} holds frames 0 to {len(dataset) - 1}")
    place, _ = pick_device(device)
    model = build_model(config, place)
    load_weights(model, weights)
    for i in range(len(dataset)) if index is None else (index,):
        frame = dataset.load_frame(i)
        path = out / f"{_file_name(frame.token)}.npz"
        classes = predict_scene(model, make_sample(frame, data, config.model.grid, None), config, place)
        write_scene(path, classes, frame.points, config)
        yield (
            f"{path}: {'x'.join(map(str, classes.voxels.shape))} voxels, {len(classes.points)} points, "
            f"mean confidence {classes.confidence.mean(dtype=np.float64):.3f}"
        )


def _file_name(token: str) -> str:
    if not token or token.startswith(".") or "/" in token or "\\" in token:
        raise DataError(f"sample {token}: its token cannot be the name of a file; give it another in its info file")
    return token


def write_scene(path: Path, classes: FrameClasses, points: np.ndarray, config: Config) -> None:
    """One archive, as docs/rig.md says; ``points`` (P,3) metres, LiDAR frame. Raises ConfigError."""
    grid = config.model.grid
    arrays = {
        "voxels": classes.voxels.astype(np.uint8),
        "confidence": classes.confidence,
        "pc_range": np.array(grid.pc_range),
        "frame": np.array(grid.frame),
        "class_names": np.array(class_names(config.data.label_map)),
    }
    if len(points):
        arrays.update(points=points, point_labels=classes.points.astype(np.uint8))
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)  # ty: ignore[invalid-argument-type]  # its stub takes them for options
