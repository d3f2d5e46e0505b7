"""Check before the first step that data, model and the device's kernels fit together."""

from __future__ import annotations

from pathlib import Path
from typing import List, Tuple

import numpy as np
import torch

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.data.check.report import Report
from tpvformer.data.check.rig import examine_rig, views
from tpvformer.data.dataset import FrameDataset
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer
from tpvformer.model.backbone import ModulatedDeformConv3x3
from tpvformer.model.coverage import coverage


def check_cameras(data: FrameDataset, config: Config) -> None:
    """Raise ConfigError if the samples have more cameras than the model has embeddings for."""
    check_embeddings(data.slots_used, data.infos, config)


def check_same_cameras(train: FrameDataset, val: FrameDataset) -> None:
    """Raise ConfigError if a camera has another embedding in the validation set than in the training set.

    A name that is not one of nuScenes' six takes an embedding that the other cameras of its file leave free.
    """
    taught = train.embeddings
    for name, slot in val.embeddings.items():
        if taught.get(name, slot) != slot:
            raise ConfigError(
                f"camera {name} has embedding {taught[name]} in {train.infos} and {slot} in {val.infos}, because the "
                "files hold other cameras beside it; list the same cameras in both, or give them nuScenes' names"
            )


def check_order(data: FrameDataset) -> None:
    """Raise ConfigError if a camera's embedding is not its place: a checkout's own model knows cameras by their order.

    So it is where the samples lack one of nuScenes' six cameras. Also where a sample has other cameras than the first.
    """
    if data.other_cameras is not None:
        raise ConfigError(
            f"{data.infos}: {data.other_cameras}; a checkout's own model needs the same cameras in every sample"
        )
    for place, (name, slot) in enumerate(data.embeddings.items()):
        if slot != place:
            raise ConfigError(
                f"{data.infos}: camera {name} is number {place} of its sample and has embedding {slot}; a checkout's "
                "own model needs all cameras, in the order it was written for"
            )


def check_embeddings(used: int, source: str, config: Config) -> None:
    """Raise ConfigError if the cameras of ``source`` use more embeddings than the model has."""
    cameras = config.model.num_cams
    if used > cameras:
        raise ConfigError(
            f"model.num_cams is {cameras}, but the cameras of {source} need {used} embeddings (nuScenes' six names "
            f"have one each, docs/rig.md); train with model.num_cams={used}, or leave cameras out"
        )


def check_kernels(model: TPVFormer, device: torch.device) -> List[str]:
    """Return remarks on operations of ``model`` that the device's kernels do not support; plain PyTorch runs those.

    Raises ConfigError instead if TPVFORMER_OPS forces the kernels.
    """
    forced = ops.asked()
    if forced == ops.REFERENCE:
        return []
    problem = ops.misfit(device.type)
    if problem is not None:
        raise ConfigError(problem)
    cfg = model.config
    attentions = [(cfg.plane_heads, cfg.dim // cfg.plane_heads, 3 if cfg.view_attn == "cross_view" else 1)]
    if "self_cross" in cfg.layers:
        attentions.append((cfg.image_heads, cfg.dim // cfg.image_heads, cfg.num_levels))
    convolutions = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, ModulatedDeformConv3x3)]
    problems = ops.beyond_kernels(device, attentions, convolutions)
    if problems and forced is not None:
        raise ConfigError(f"TPVFORMER_OPS={forced} is set, but {problems[0]}; unset it, or change the model")
    return [f"{problem} by the device's kernel: plain PyTorch does it, more slowly" for problem in problems]


def check_rig(path: Path, config: Config, whole: bool, root: Path) -> Tuple[List[str], Report]:
    """Check a rig file or infos and all files they name; return lines on how the cameras see the grid, and the report.

    The other arguments are those of ``examine_rig``. Raises ConfigError if ``path`` does not exist.
    """
    grid = config.model.grid
    report, records = examine_rig(path, whole, root, config.data)
    if not records:
        return [], report
    record, origin = records[0], "lidar" if grid.frame == "lidar" else "ego"
    lines = [f"{path}: {len(record.images)} cameras; the grid is {grid.pc_range} m in the {origin} frame"]
    grid2img = record.lidar2img
    if grid.frame != "lidar":
        if record.lidar2ego is None:
            report.fault("rig", f"{path}: has no lidar2ego, which model.grid.frame=ego needs; add it")
            return lines, report
        grid2img = grid2img @ np.linalg.inv(record.lidar2ego)
    if record.sizes:
        shares, any_camera = coverage(grid, torch.from_numpy(grid2img), record.sizes)
        lines += [view.line(share) for view, share in zip(views(record), shares)]
        lines.append(f"  all cameras together see {100 * any_camera:.1f} % of the grid")
    return lines, report
