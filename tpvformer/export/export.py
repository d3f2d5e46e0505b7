"""A model as one file for other runtimes, ONNX, torch.export or AOTInductor: images, calibration and points in, logits
of voxels and points out. Plain operations alone, in fp32.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Generator, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.data.images.preprocess import MEAN_BGR, padded_shape
from tpvformer.data.nuscenes.infos.cameras import CAMERA_ORDER
from tpvformer.errors import ConfigError
from tpvformer.files import replacing
from tpvformer.labels import class_names
from tpvformer.model import TPVFormer

OPSET = 18
IR_VERSION = 8  # of the file's own form: what came with OPSET, so that every runtime which knows that opset reads it
INPUTS = ("images", "lidar2img", "points")
OUTPUTS = ("voxel_logits", "point_logits")
_LONGEST = 8192  # pixels a side of an image
_POINTS = 8  # of the example that is traced; their number stays free


class Rig(nn.Module):
    """What is exported: the network with everything around it, for one rig.

    images (N,H,W,3) uint8, RGB; lidar2img (N,4,4) float32, metres of the grid's frame -> pixels of these images; points
    (P,3) float32, metres of the grid's frame. Returns (K,X,Y,Z) and (K,P).
    """

    def __init__(self, network: TPVFormer, config: Config) -> None:
        super().__init__()
        self.network, self.config = network, config

    def forward(self, images: Tensor, lidar2img: Tensor, points: Tensor) -> Tuple[Tensor, Tensor]:
        height, width = images.shape[1:3]
        padded = padded_shape(height, width)
        mean = torch.tensor(MEAN_BGR[::-1]).view(3, 1, 1)
        shown = (images.permute(0, 3, 1, 2).float() - mean)[:, [2, 1, 0]]
        shown = F.pad(shown, (0, padded[1] - width, 0, padded[0] - height))
        prediction = self.network(shown[None], lidar2img[None], self._places(points)[None])
        assert prediction.point_logits is not None
        return prediction.voxel_logits[0], prediction.point_logits[0]

    def _places(self, points: Tensor) -> Tensor:
        """Where points are decoded, in voxels: as data/voxels/ and engine/forward.py do it, in float64."""
        grid, whole = self.config.model.grid, self.config.data.cells_are_even
        low, high = (torch.tensor(edge, dtype=torch.float64) for edge in (grid.pc_range[:3], grid.pc_range[3:]))
        last = torch.tensor(grid.shape, dtype=torch.float64) - 1
        pitch = (high - low) / (last + 1 if whole else last.clamp(min=1))
        inside = torch.minimum(torch.maximum(points.double(), low), high)
        cells = torch.minimum(torch.floor((inside - low) / pitch), last)
        return cells.float() + (0.5 if whole else 0.0)


def export_onnx(network: TPVFormer, config: Config, out: Path, cameras: int, size: Tuple[int, int]) -> str:
    """Write an ONNX file for ``cameras`` images of ``size`` (width, height) pixels; returns a line about it.

    Needs PyTorch 2.6 or newer and the packages of ``pip install "tpvformer[onnx]"``. Raises ConfigError.
    """
    _check(network, config, out, "--onnx", cameras, size)
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--onnx needs {name}; pip install 'tpvformer[onnx]'")
    program = _traced(network, config, cameras, size)
    with _quiet():
        made: Any = torch.onnx.export(
            program, (), input_names=list(INPUTS), output_names=list(OUTPUTS), opset_version=OPSET, dynamo=True
        )
    made.model.metadata_props.update({key: json.dumps(value) for key, value in _facts(config, cameras).items()})
    made.model.ir_version = IR_VERSION
    _save(out, lambda partial: made.save(partial, external_data=False))
    return _line(out, cameras, size, f"opset {OPSET}")


def export_program(network: TPVFormer, config: Config, out: Path, cameras: int, size: Tuple[int, int]) -> str:
    """The same as a program of ``torch.export``, which ``torch.export.load`` reads; ``out`` ends with .pt2."""
    _check(network, config, out, "--pt2", cameras, size)
    program = _traced(network, config, cameras, size)
    with _quiet():
        _save(out, lambda partial: torch.export.save(program, partial))
    return _line(out, cameras, size, "torch.export")


def export_aoti(network: TPVFormer, config: Config, out: Path, cameras: int, size: Tuple[int, int]) -> str:
    """The same program compiled by AOTInductor for this processor, which ``torch._inductor.aoti_load_package`` runs.

    ``out`` ends with .pt2. Needs a C++ compiler, the one that CXX names or g++, and minutes.
    """
    _check(network, config, out, "--aoti", cameras, size)
    import torch._inductor as inductor  # loads for seconds
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        raise ConfigError("--aoti needs a C++ compiler; install g++ or name another in CXX") from None
    program = _traced(network, config, cameras, size)
    threads = {"cpp.dynamic_threads": True}  # as many as whoever runs it says, not as many as this process has

    def write(partial: str) -> None:
        inductor.aoti_compile_and_package(program, package_path=partial, inductor_configs=dict(threads))

    try:
        with _quiet(), _sampling_whole():
            _save(out, write)
    except RuntimeError as err:
        cause = getattr(err, "inner_exception", err)  # PyTorch 2.7 and newer wrap what happens inside
        if not isinstance(cause, CppCompileError):
            raise
        errors = [line.strip() for line in cause.output.splitlines() if "error" in line] or ["it says nothing"]
        raise ConfigError(f"--aoti: {compiler} cannot compile the model: {errors[0]}") from err
    return _line(out, cameras, size, "AOTInductor")


def _traced(network: TPVFormer, config: Config, cameras: int, size: Tuple[int, int]) -> Any:
    """The program of ``torch.export`` that every form is made from; only the number of points stays free in it."""
    width, height = size
    example = (
        torch.zeros(cameras, height, width, 3, dtype=torch.uint8),
        torch.eye(4).repeat(cameras, 1, 1),
        torch.zeros(_POINTS, 3),
    )
    free = ({}, {}, {0: torch.export.Dim("points", min=1)})
    autocast, network.image_autocast = network.image_autocast, None  # fp32, whatever the model itself answers in
    try:
        with ops.static_shapes(), torch.no_grad(), _quiet():
            return torch.export.export(Rig(network, config).eval(), example, dynamic_shapes=free)
    finally:
        network.image_autocast = autocast


def _facts(config: Config, cameras: int) -> Dict[str, Any]:
    grid = config.model.grid
    return {
        "pc_range": list(grid.pc_range),
        "frame": grid.frame,
        "class_names": list(class_names(config.data.label_map)),
        "cameras": list(CAMERA_ORDER[:cameras]) if cameras <= len(CAMERA_ORDER) else [],
    }


def _save(out: Path, write: Callable[[str], object]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            partial.touch()  # where it may not be, that is known before minutes of compiling
            write(str(partial))
    except OSError as err:
        raise ConfigError(f"{out}: cannot be written ({err.strerror or err}); name another file") from err


def _line(out: Path, cameras: int, size: Tuple[int, int], kind: str) -> str:
    return f"{out}: {cameras} images of {size[0]}x{size[1]}, {kind}, {out.stat().st_size / 1e6:.1f} MB"


def _check(network: TPVFormer, config: Config, out: Path, option: str, cameras: int, size: Tuple[int, int]) -> None:
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
def _sampling_whole() -> Generator[None, None, None]:
    """Within it inductor calls PyTorch's function for grid_sample. Taken apart into gathers, as it does by default, a
    pass takes four times as long on a CPU, and compiling twice.
    """
    from torch._inductor import decomposition

    name = torch.ops.aten.grid_sampler_2d.default
    tables: List[Dict[Any, Any]] = [decomposition.decompositions, decomposition.select_decomp_table()]
    removed = [(table, table.pop(name)) for table in tables if name in table]
    try:
        yield
    finally:
        for table, function in removed:
            table[name] = function


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """PyTorch's exporters report their steps on stdout, and warn and log about their own insides."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
