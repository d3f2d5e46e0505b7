"""A step that prints nothing never waits for the device: it reads no value of a tensor and copies none of Python's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, List

import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config, val_loader
from tiny_nuscenes import write_tiny
from torch import Tensor
from waits import FUNCTIONS, Waits

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.data.images import preprocess as pixels
from tpvformer.engine import loop as train
from tpvformer.engine import train as run
from tpvformer.engine.device.accelerator import has_fused_adamw
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.evaluate import evaluate
from tpvformer.engine.faults.nonfinite import NonFiniteGuard
from tpvformer.engine.logging.log import RunLog

if hasattr(torch.library, "custom_op"):  # before, CPU kernels are no operators: their own views as arrays would be seen
    FUNCTIONS = (*FUNCTIONS, Tensor.numpy)


@pytest.fixture(params=["cross_view", "hw"])
def config(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Either family, with the operations and the pixels that an accelerator would have."""
    monkeypatch.setattr(pixels, "pixels_opencv", pixels.pixels_tensor)
    base = tiny_config(write_tiny(tmp_path, POINTS), print_every=100, epochs=1)
    data = dataclasses.replace(base.data, photometric=True, grid_mask=True, workers=0, batch_size=2)
    model = base.model
    if request.param == "hw":
        model = dataclasses.replace(model, view_attn="hw", position_dims=(8, 8))
    return dataclasses.replace(base, model=dataclasses.replace(model, dropout=0.1), data=data)


def test_the_check_finds_what_it_looks_for() -> None:
    x = torch.arange(4)
    for wait in (lambda: x[1].item(), lambda: bool(x[0]), lambda: x[x > 1], lambda: torch.tensor([1, 2]), x.tolist):
        with Waits() as waits:
            wait()
        assert waits.found


@pytest.mark.skipif(not has_fused_adamw(CPU), reason="AdamW on the CPU reads its step counts before PyTorch 2.4")
def test_training_steps(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run.build(config, tmp_path, World(), CPU, RunLog(None, False), None)
    job.guard = NonFiniteGuard(
        config, job.model, job.guard._data, World(), torch.device("meta"), job.log
    )  # a CPU's looks
    job.clock._warmup = 0
    steps: List[List[str]] = []
    real_rates, real_read = train.set_learning_rates, job.losses.read
    waits = Waits()

    def next_step(*args: Any) -> None:
        steps.append([])
        waits.found = steps[-1]
        real_rates(*args)

    def last_or_printed() -> None:
        waits.found = []
        real_read()

    monkeypatch.setattr(ops, "in_blocks", lambda *_: False)  # a way of the CPU alone
    monkeypatch.setattr(train, "set_learning_rates", next_step)
    monkeypatch.setattr(job.losses, "read", last_or_printed)
    unread = list(job.train_loader)  # collating makes tensors of lists, in the loader's processes
    monkeypatch.setattr(train, "timed", lambda loader, clock: iter(unread))
    with waits:
        train.train_epoch(job, 0)
    assert len(steps) == 3
    assert steps == [[], [], []]


def test_evaluation(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=1))
    loader = val_loader(config)
    batches = list(loader)
    model = run.build_model(config, CPU)
    counts: List[int] = []
    waits = Waits()

    def watched(*_: Any) -> Any:
        for batch in batches:
            counts.append(len(waits.found))
            yield batch

    monkeypatch.setattr(ops, "in_blocks", lambda *_: False)  # a way of the CPU alone
    monkeypatch.setattr("tpvformer.engine.evaluation.evaluate.on_device", watched)
    with waits:
        evaluate(model, loader, config, World(), CPU, RunLog(None, False))
    assert counts[1] > 0  # the first is printed
    assert counts[1:] == [counts[1]] * (len(batches) - 1)
