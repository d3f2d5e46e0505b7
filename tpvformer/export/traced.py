"""Trace a model for other runtimes: images, calibration and points in, logits of voxels and points out.

The modules of ONNX, torch.export and AOTInductor share this program, and the checks, facts and writing of files. The
program consists of plain operations, in fp32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.data.images.preprocess import MEAN_BGR, padded_shape
from tpvformer.data.nuscenes.infos.cameras import CAMERA_ORDER
from tpvformer.errors import ConfigError
from tpvformer.files import replacing
from tpvformer.model import TPVFormer
from tpvformer.model.history import PlaneHistory

INPUTS = ("images", "lidar2img", "points")
OUTPUTS = ("voxel_logits", "point_logits")
BOX_OUTPUTS = ("heatmaps", "values")  # of a model with the head of 3-D boxes
PAST_INPUTS = ("past_planes", "to_past", "seconds")  # of a model with a history, and its output
PAST_OUTPUTS = ("planes",)
Size = Tuple[int, int]  # width, height in pixels
_LONGEST = 8192  # pixels; longest side of an image
_POINTS = 8  # points of the traced example; the number of points stays dynamic


class Rig(nn.Module):
    """Wrap the network with its pre- and postprocessing, for one rig.

    images (N,H,W,3) uint8, RGB; lidar2img (N,4,4) float32, metres of the grid's frame to pixels of these images, times
    depth; points (P,3) float32, metres of the grid's frame. Returns (K,X,Y,Z) and (K,P).
    """

    def __init__(self, network: TPVFormer, config: Config) -> None:
        super().__init__()
        self.network, self.config = network, config

    def forward(self, images: Tensor, lidar2img: Tensor, points: Tensor, *past: Tensor) -> Tuple[Tensor, ...]:
        height, width = images.shape[1:3]
        padded = padded_shape(height, width)
        mean = torch.tensor(MEAN_BGR[::-1]).view(3, 1, 1)
        shown = (images.permute(0, 3, 1, 2).float() - mean)[:, [2, 1, 0]]
        shown = F.pad(shown, (0, padded[1] - width, 0, padded[0] - height))
        history = PlaneHistory(*(part[None] for part in past)) if past else None
        prediction = self.network(shown[None], lidar2img[None], self._places(points)[None], history=history)
        assert prediction.point_logits is not None
        logits = (prediction.voxel_logits[0], prediction.point_logits[0])
        boxes, seen = getattr(prediction, "detection", None), getattr(prediction, "history", None)
        maps = () if boxes is None else (boxes.heatmaps[0], boxes.values[0])
        return (*logits, *maps) if seen is None else (*logits, *maps, seen.planes[0, 0])

    def _places(self, points: Tensor) -> Tensor:
        """Return the positions where points are decoded, in voxels, as data/voxels/ and engine/forward.py do."""
        grid, even = self.config.model.grid, self.config.data.cells_are_even
        low, high = (torch.tensor(edge, dtype=torch.float64) for edge in (grid.pc_range[:3], grid.pc_range[3:]))
        last = torch.tensor(grid.shape, dtype=torch.float64) - 1
        pitch = (high - low) / (last + 1 if even else last.clamp(min=1))
        inside = torch.minimum(torch.maximum(points.double(), low), high)
        cells = torch.minimum(torch.floor((inside - low) / pitch), last)
        return cells.float() + (0.5 if even else 0.0)


def trace(network: TPVFormer, config: Config, cameras: int, size: Size) -> Any:
    """Return the ``torch.export`` program behind every format; only the number of points is dynamic."""
    width, height = size
    example = (
        torch.zeros(cameras, height, width, 3, dtype=torch.uint8),
        torch.eye(4).repeat(cameras, 1, 1),
        torch.zeros(_POINTS, 3),
    )
    free: Tuple[Any, ...] = ({}, {}, {0: torch.export.Dim("points", min=1)})
    model = network.config
    if model.history is not None:
        frames, queries = model.history.frames, sum(model.grid.plane_sizes[: len(model.planes)])
        example += (torch.zeros(frames, queries, model.dim), torch.eye(4).repeat(frames, 1, 1), torch.ones(frames))
        free = (*free, ({}, {}, {}))
    autocast, network.image_autocast = network.image_autocast, None  # fp32, whatever precision the model uses
    try:
        with ops.static_shapes(), torch.no_grad(), quiet():
            return torch.export.export(Rig(network, config).eval(), example, dynamic_shapes=free)
    finally:
        network.image_autocast = autocast


def input_names(config: Config) -> Tuple[str, ...]:
    """Return the names of the program's inputs."""
    return INPUTS if config.model.history is None else INPUTS + PAST_INPUTS


def output_names(config: Config) -> Tuple[str, ...]:
    """Return the names of the program's outputs."""
    boxes = () if config.model.detection is None else BOX_OUTPUTS
    return OUTPUTS + boxes + (() if config.model.history is None else PAST_OUTPUTS)


def facts(config: Config, cameras: int) -> Dict[str, Any]:
    """Return what a reader of the file needs beside the logits: range and frame of the grid, classes, cameras."""
    grid = config.model.grid
    return {
        "pc_range": list(grid.pc_range),
        "frame": grid.frame,
        "class_names": list(config.data.label_classes.names),
        "cameras": list(CAMERA_ORDER[:cameras]) if cameras <= len(CAMERA_ORDER) else [],
        **({} if config.model.detection is None else {"box_class_names": list(DETECTION_CLASSES)}),
    }


def save(out: Path, write: Callable[[str], object]) -> None:
    """Write ``out`` whole or not at all; ``write`` takes the name to write to. Raises ConfigError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            partial.touch()  # fails early if the file cannot be written
            write(str(partial))
    except OSError as err:
        raise ConfigError(f"{out}: cannot be written ({err.strerror or err}); name another file") from err


def line(out: Path, cameras: int, size: Size, kind: str) -> str:
    """Return the line that says what was written."""
    return f"{out}: {cameras} images of {size[0]}x{size[1]}, {kind}, {out.stat().st_size / 1e6:.1f} MB"


def check(network: TPVFormer, config: Config, out: Path, option: str, cameras: int, size: Size) -> None:
    """Raise ConfigError for a name, a number of cameras or a size that ``option`` cannot export."""
    ending = ".onnx" if option == "--onnx" else ".pt2"
    if out.suffix != ending:
        raise ConfigError(f"{option} is {out}; expected a file that ends with {ending}")
    if config.data.image_scale != 1:
        raise ConfigError(
            f"data.image_scale is {config.data.image_scale}; an exported model takes images as they are: give --set "
            "data.image_scale=1 and the scaled --size, and scale images and lidar2img before"
        )
    if not 1 <= cameras <= network.config.num_cams:
        raise ConfigError(f"--cameras is {cameras}; this model has embeddings for 1 to {network.config.num_cams}")
    sides = size if isinstance(size, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= _LONGEST for side in sides):
        shown = "x".join(str(side) for side in sides) or repr(size)
        raise ConfigError(f"--size is {shown}; expected width and height of an image, 1 to {_LONGEST} pixels each")
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise ConfigError(f"{option} needs PyTorch 2.6 or newer, this is {torch.__version__}")


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Silence PyTorch's exporters, which print their steps and log warnings about their internals."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
