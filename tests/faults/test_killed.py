"""Runs that are killed and resumed until they end, against one that nothing happened to: equal to the last bit."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import List

import pytest
import torch
from engine_tools import killed_config
from lives import Lives, kills, output, records, samples
from torch.utils._pytree import tree_flatten

from tpvformer.config import Config, DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.engine.checkpoint import files as store

SLOW = os.environ.get("TPVFORMER_SLOW") == "1"
KILLS = 100 if SLOW else 4
STEPS = 96 if SLOW else 16  # of the training, so that it outlives its kills


def assert_same(work_dir: Path, straight: Path) -> None:
    """The same losses and scores; in every file the same weights, optimiser state and random numbers."""
    assert records(work_dir) == records(straight)
    assert sorted(p.name for p in work_dir.glob("*.pth")) == sorted(p.name for p in straight.glob("*.pth"))
    for path in straight.glob("*.pth"):
        ours, theirs = store.read(work_dir / path.name), store.read(path)
        assert ours.keys() == theirs.keys()
        for key in ours:
            for a, b in zip(tree_flatten(ours[key])[0], tree_flatten(theirs[key])[0]):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, (path.name, key)


def with_workers(job: Config, workers: int) -> Config:
    return dataclasses.replace(job, data=dataclasses.replace(job.data, workers=workers))


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (1, 1), (1, 2), (2, 1), *([(2, 0), (2, 2)] if SLOW else [])])
def test_resumed_from_a_step_and_from_an_epoch(
    size: int, workers: int, lives: Lives, data: DataConfig, tmp_path: Path
) -> None:
    """Killed in the middle of the first epoch and at the second one's first step, whatever the loader's workers. The
    average of the weights, which the files hold too, goes on to the bit."""
    job = with_workers(killed_config(data, save_every_steps=2, ema=0.9), workers)
    straight, work_dir = tmp_path / "straight", tmp_path / "killed"
    assert lives.run(job, straight, size) == [0] * size, output(straight)
    epoch, events = len(data_tokens(job)) // size, 5  # steps an epoch; events a step, of which the last has one less
    for _ in range(10):
        codes = lives.run(job, work_dir, size, (size - 1, "SIGKILL", "step", 2 * events + 3))
        assert codes[-1] == -signal.SIGKILL, output(work_dir)
        if (work_dir / "step_2.pth").exists():
            break
        shutil.rmtree(work_dir)  # the kill came before the thread that writes step_2.pth had: once more
    codes = lives.run(job, work_dir, size, (size - 1, "SIGKILL", "step", (epoch - 2) * events + 1))
    assert codes[-1] == -signal.SIGKILL, output(work_dir)
    assert lives.run(job, work_dir, size) == [0] * size, output(work_dir)
    said = output(work_dir)
    assert "at epoch 0, iteration 2\n" in said and f"at epoch 1, iteration {epoch}\n" in said, said
    assert_same(work_dir, straight)
    average = store.read(work_dir / "latest.pth")["ema"]
    assert average["updates"] == 2 * epoch and "encoder.level_embed" in average["state_dict"]


@pytest.mark.parametrize("size", [1, 2])
def test_killed_before_an_epoch_is_scored(size: int, lives: Lives, data: DataConfig, tmp_path: Path) -> None:
    """The epoch's file, written again with its scores by the next life, is the one that nothing happened to."""
    job = with_workers(killed_config(data), 1)
    straight, work_dir = tmp_path / "straight", tmp_path / "killed"
    assert lives.run(job, straight, size) == [0] * size, output(straight)
    for epoch in (1, 2):
        assert lives.run(job, work_dir, size, (0, "SIGKILL", "score", epoch))[0] == -signal.SIGKILL, output(work_dir)
    assert lives.run(job, work_dir, size) == [0] * size, output(work_dir)
    assert_same(work_dir, straight)


def data_tokens(job: Config) -> List[str]:
    return FrameDataset(job.data, job.model.grid, "train", 0).tokens


@pytest.mark.parametrize("workers", [0, 1] if SLOW else [1])
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_random_moments(size: int, workers: int, lives: Lives, data: DataConfig, tmp_path: Path) -> None:
    """Half of the kills come before a step's parts, half while a checkpoint is written."""
    job = with_workers(killed_config(data, save_every_steps=2), workers)
    epochs = STEPS * size // len(data_tokens(job))
    job = dataclasses.replace(job, train=dataclasses.replace(job.train, epochs=epochs))
    straight, work_dir = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    assert lives.run(job, straight, size) == [0] * size, output(straight)
    draw, partial = random.Random(220 + 10 * size + workers), 0  # the first kill then comes after a whole save
    for kill in range(KILLS):
        kind = ("save", "step")[kill % 2]
        rank = 0 if kind == "save" else draw.randrange(size)
        moment = (rank, "SIGKILL", kind, draw.randint(1, 14))
        codes = lives.run(job, work_dir, size, moment)
        # the other rank is killed as well, unless it has found its peer gone before
        assert codes[rank] == -signal.SIGKILL and all(codes), (kill, moment, output(work_dir))
        partial += bool(list(work_dir.glob(".*.pth.tmp")))
    assert partial, "no kill fell into the writing of a checkpoint"
    assert sum(line.startswith("save ") for line in kills(work_dir)) == KILLS // 2, kills(work_dir)
    assert lives.run(job, work_dir, size) == [0] * size, output(work_dir)
    assert_same(work_dir, straight)
    assert not list(work_dir.glob(".*"))
    resumed = Counter(re.findall(r"resumed .* at (epoch \d+, iteration \d+)", output(work_dir)))
    assert resumed, "every kill came before the first save"
    print(f"\n{size} processes, {workers} workers: {KILLS} kills before {dict(Counter(kills(work_dir)))}, {partial} of")
    print(f"them left half a file; resumed at {len(resumed)} steps; {time.monotonic() - began:.0f} s")


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_asked_to_stop_it_saves_and_ends_well(
    size: int, name: str, lives: Lives, data: DataConfig, tmp_path: Path
) -> None:
    """One process alone is asked, in the middle of a step; all end after it, with everything."""
    job = killed_config(data, epochs=1)
    straight, work_dir = tmp_path / "straight", tmp_path / "asked"
    lives.run(job, straight, size)
    assert lives.run(job, work_dir, size, (size - 1, name, "step", 7)) == [0] * size, output(work_dir)
    who = name if size == 1 else "a signal to another process"
    assert f"stopped by {who} at epoch 0, iteration 2; {work_dir / 'latest.pth'} holds everything" in output(work_dir)
    assert not (work_dir / "summary.json").exists()
    assert os.readlink(work_dir / "latest.pth") == "step_2.pth"
    assert lives.run(job, work_dir, size) == [0] * size, output(work_dir)
    assert f"resumed {work_dir / 'latest.pth'} at epoch 0, iteration 2" in output(work_dir)
    assert_same(work_dir, straight)


def test_another_number_of_processes_goes_on(lives: Lives, data: DataConfig, tmp_path: Path) -> None:
    """Two processes become one and four: global batch, samples of each step, schedule and losses stay."""
    job = killed_config(data, dropout=0.0, accumulate=2)
    straight = tmp_path / "straight"
    assert lives.run(job, straight, 2) == [0, 0], output(straight)
    expected = [r for r in records(straight) if r["kind"] == "train"]
    for size in (1, 4):
        work_dir = tmp_path / f"{size}"
        assert lives.run(job, work_dir, 2, (0, "SIGTERM", "step", 2)) == [0, 0], output(work_dir)
        before = samples(work_dir, 2)
        for rank in range(2):
            (work_dir / f"samples.{rank}.jsonl").unlink()
        assert list(before) == ["0.0"]
        assert lives.run(job, work_dir, size) == [0] * size, output(work_dir)
        assert f"train.accumulate is {4 // size} instead of 2" in output(work_dir)
        assert {**before, **samples(work_dir, size)} == samples(straight, 2)
        found = [r for r in records(work_dir) if r["kind"] == "train"]
        assert [(r["step"], r["lr"]) for r in found] == [(r["step"], r["lr"]) for r in expected]
        for a, b in zip(found, expected):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    refused = tmp_path / "three"
    lives.run(job, refused, 2, (0, "SIGTERM", "step", 2))
    assert set(lives.run(job, refused, 3)) <= {2, -9}
    assert (
        "trained with 4 samples a step, which 3 processes with data.batch_size=1 cannot make; 1, 2, 4 processes can"
        in (output(refused))
    )
