"""A real model that is tiny, and configurations for it, for the tests of the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Union

import torch
from programs import Overdue, Program
from torch.utils.data import DataLoader

from tpvformer.config import BackboneConfig, Config, DataConfig, GridConfig, ModelConfig, OptimConfig, TrainConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import make_loader
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint import state as checkpoint
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.optim import Stepper
from tpvformer.model import TPVFormer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
POINTS = (40, 90, 60, 75, 50, 85, 65)  # seven samples, of unequal length

MODEL = ModelConfig(
    grid=GridConfig(w=6, h=5, z=4),
    backbone=BackboneConfig(blocks=(1, 1, 1, 1), base_width=8, dcn_stages=(4,), frozen_stages=0, bn3_init=0.2),
    dim=16,
    ffn_dim=16,
    decoder_dim=16,
    image_heads=2,
    plane_heads=4,
    position_dims=(6, 6, 4),
    layers=("self_cross",),
    pillar_anchors=(2, 2, 2),
    image_points=(2, 2, 2),
    plane_points=2,
    plane_anchors=2,
    plane_init_anchors=2,
    dropout=0.0,
)


def tiny_config(data: DataConfig, **train: Any) -> Config:
    """Two epochs in fp32 over a tiny set without augmentation; ``train`` changes fields of its train section."""
    return Config(
        name="tiny",
        model=MODEL,
        data=dataclasses.replace(data, photometric=False, grid_mask=False),
        optim=OptimConfig(lr=1e-3, warmup_steps=2, warmup_lr=1e-4, min_lr=1e-5),
        train=dataclasses.replace(TrainConfig(epochs=2, print_every=1, precision="fp32", load_from=None), **train),
    )


def killed_config(data: DataConfig, dropout: float = 0.1, **train: Any) -> Config:
    """The configuration of runs that are killed and resumed: still smaller."""
    backbone = dataclasses.replace(MODEL.backbone, base_width=4)
    model = dataclasses.replace(MODEL, num_cams=1, dropout=dropout, grid=GridConfig(w=4, h=3, z=2), backbone=backbone)
    return dataclasses.replace(tiny_config(dataclasses.replace(data, image_scale=0.5), **train), model=model)


def write_config(path: Path, config: Config) -> Path:
    """A configuration file that defines ``config``."""
    tree = dataclasses.asdict(config)
    path.write_text(f"from tpvformer.config import from_dict\n\nconfig = from_dict({tree!r})\n")
    return path


def tiny_model(seed: int = 0) -> TPVFormer:
    torch.manual_seed(seed)
    return TPVFormer(MODEL)


def reading_the_past(config: Config) -> TPVFormer:
    """A model whose reading of the past is not zero."""
    torch.manual_seed(0)
    model = TPVFormer(config.model)
    with torch.no_grad():
        for parameter in model.history.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


def save_epoch(folder: Path, model: TPVFormer, stepper: Stepper, config: Config, progress: Progress) -> Path:
    """The file that a run writes after an epoch."""
    return store.write(folder, f"epoch_{progress.epoch}.pth", checkpoint.capture(model, stepper, config, progress))


def val_loader(config: Config, rank: int = 0, size: int = 1) -> DataLoader:
    data = FrameDataset(config.data, config.model.grid, "val", config.train.seed)
    return make_loader(data, config.data, rank, size, train=False, seed=config.train.seed)


def environment(**extra: str) -> Dict[str, str]:
    """For a process of its own: this package, this interpreter, plain operations, one thread."""
    values = dict(
        os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT), TPVFORMER_OPS="reference", OMP_NUM_THREADS="1"
    )
    values.update(extra)
    return values


def processes(size: int, code: str, *args: str, status: Union[int, List[int]] = 0, **extra: str) -> List[str]:
    """The outputs of ``size`` processes that run ``code`` as torchrun would start them, and end with ``status``: one
    number, or one for each. ``extra``: for environment()."""
    expected = [status] * size if isinstance(status, int) else status
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", code, *args]
    with contextlib.ExitStack() as stack:
        started = []
        for rank in range(size):
            env = environment(RANK=str(rank), LOCAL_RANK=str(rank), **common, **extra)
            started.append(stack.enter_context(Program(command, env=env, stderr=subprocess.STDOUT)))
        with contextlib.suppress(Overdue):
            for process in started:
                process.wait()
        outputs = [process.out for process in started]
        assert [process.poll() for process in started] == expected, "\n".join(outputs)
    return outputs
