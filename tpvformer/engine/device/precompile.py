"""Compile the CPU kernels in one process of each machine before training begins; the other processes load them."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Optional

import torch
from torch.utils.data import Dataset

from tpvformer.config import Config, ModelConfig
from tpvformer.engine.device.accelerator import image_dtype
from tpvformer.engine.device.precision import choose
from tpvformer.engine.distributed.collectives import World, barrier
from tpvformer.model import TPVFormer
from tpvformer.runtime import compiling

IMAGE = 64  # pixels; side of the images in the compilation run


def agree_on_threads() -> None:
    """Set Numba's threads to PyTorch's number, instead of all cores in every process."""
    runtime = _runtime()
    if runtime is not None:
        threads = torch.get_num_threads()
        runtime.use_threads(threads)
        torch.set_num_threads(threads)  # with a shared OpenMP library, the import of Numba has set all cores for both


def _runtime() -> Optional[ModuleType]:
    """Return Numba's runtime module; None without Numba, which the operations report."""
    try:
        return importlib.import_module("tpvformer.ops.numba_runtime")
    except ImportError:
        return None


def warm_up(config: Config, data: Dataset, world: World, device: torch.device) -> None:
    """Compile what data reading and a training step on a CPU need, in the first process of each machine.

    Kernels are specialised by the model's numbers of heads, channels, levels and points, by types, and by whether a
    batch alone fills the threads, but not by sizes. All processes must call it; random states do not change.
    """
    if device.type != "cpu":
        return
    if world.local_rank == 0:
        with compiling.said_together():
            data[0]
            run_small(config, device)
    barrier()


def run_small(config: Config, device: torch.device) -> None:
    """Run a forward and a backward pass of ``small(config.model)`` on zeros."""
    batch = config.data.batch_size
    with torch.random.fork_rng(devices=[]):
        model = TPVFormer(small(config.model)).to(device)
        model.image_autocast = image_dtype(device, choose(config.train.precision, device).name)
        images = torch.zeros(batch, 1, 3, IMAGE, IMAGE, device=device)
        cameras = torch.eye(4, device=device).expand(batch, 1, 4, 4)
        voxels = torch.zeros(batch, 1, 3, dtype=torch.int64, device=device)
        prediction = model(images, cameras, points=voxels.float(), voxels=voxels)
        prediction.voxel_logits.sum().backward()


def small(model: ModelConfig) -> ModelConfig:
    """Return the same model configuration with few cells, blocks and layers."""
    grid = dataclasses.replace(model.grid, w=4, h=4, z=2, scale_w=1, scale_h=1, scale_z=1)
    backbone = dataclasses.replace(model.backbone, blocks=(1,) * len(model.backbone.blocks))
    return dataclasses.replace(
        model, grid=grid, backbone=backbone, layers=tuple(dict.fromkeys(model.layers)), num_cams=1
    )
