"""The published configurations, small enough to be trained in a test, and what two steps of training them leave."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from tiny_nuscenes import write_tiny

from tpvformer.compat import load_config
from tpvformer.config import BackboneConfig, Config
from tpvformer.engine import loop as train
from tpvformer.engine import train as run
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog

ROOT = Path(__file__).parents[2]
PUBLISHED = ("tpv_lidarseg_dim64", "tpv_lidarseg", "tpv_lidarseg_dim96", "tpv04_occupancy")
STEPS = 2
CPU = torch.device("cpu")


def shrunk(name: str, folder: Path, large: bool = False) -> Config:
    """The published configuration with fewer cells, blocks, layers and pixels.

    Images of 45 x 77 become 90 x 154 or, if ``large``, 207 x 354: then the stem's maps suit the pooling kernel.
    """
    config = load_config(ROOT / "config" / f"{name}.py")
    grid = dataclasses.replace(config.model.grid, w=7, h=6, z=4)
    backbone = BackboneConfig(blocks=(1, 1, 1, 1), bn3_init=0.2)
    layers = tuple(dict.fromkeys(config.model.layers))
    data = write_tiny(folder / "set", (40, 60), cameras=("CAM_FRONT", "CAM_BACK"))
    places = {key: getattr(data, key) for key in ("root", "version", "train_infos", "val_infos")}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, grid=grid, backbone=backbone, layers=layers, dropout=0.0),
        data=dataclasses.replace(
            config.data, **places, image_scale=4.6 if large else 2.0, photometric=False, grid_mask=False, workers=0
        ),
        optim=dataclasses.replace(config.optim, warmup_steps=2, warmup_lr=1e-4),
        train=dataclasses.replace(config.train, epochs=1, print_every=100, precision="fp32", load_from=None),
    )  # fmt: skip


def trained(config: Config, device: torch.device, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """Losses, weights before and after two steps, and what the card noted in each of them (its last reading aside)."""
    folder.mkdir(parents=True, exist_ok=True)
    job = run.build(config, folder, World(), device, RunLog(None, False), STEPS)
    before = {name: value.detach().cpu().clone() for name, value in job.model.state_dict().items()}
    batches = list(job.train_loader)  # the loader's own work happens beside the steps
    noted = sys.modules["torch_npu.card"].events if device.type != "cpu" else []
    begun: List[int] = []
    losses: List[float] = []
    real_rates, real_read = train.set_learning_rates, job.losses.read

    def rates(*args: Any) -> None:
        begun.append(len(noted))
        real_rates(*args)

    def read() -> None:
        begun.append(len(noted))
        losses.extend(loss.item() for _, _, loss, *_ in job.losses._pending)
        real_read()

    monkeypatch.setattr(train, "set_learning_rates", rates)
    monkeypatch.setattr(train, "timed", lambda loader, clock: iter(batches))
    monkeypatch.setattr(job.losses, "read", read)
    train.train_epoch(job, 0)
    monkeypatch.undo()
    first, read_first, second, read_second = begun
    after = {name: value.detach().cpu() for name, value in job.model.state_dict().items()}
    return {
        "losses": losses,
        "change": torch.cat([(after[k] - before[k]).double().flatten() for k in after]),
        "steps": [noted[first:read_first], noted[second:read_second]],
        "uploads": len(batches[0].tensors()),
    }
