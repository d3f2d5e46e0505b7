"""How many workers read samples where the configuration leaves it open, and that a user's number is kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, List

import pytest
import torch
from engine_tools import CPU, MODEL, POINTS, processes, tiny_config
from tiny_nuscenes import write_tiny

from tpvformer.config import Config
from tpvformer.data import worker_count
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.worker_count import UNKNOWN, WorkerChoice, choose_workers, enough, seconds_to_read
from tpvformer.engine import loading, train
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.distributed import shared_cores
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.meters import Lap, StepClock

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    data = write_tiny(tmp_path_factory.mktemp("set"), POINTS, cameras=("CAM_FRONT", "CAM_BACK"))
    return tiny_config(replace(data, workers=None), epochs=2)


@pytest.fixture(scope="module")
def frames(config: Config) -> FrameDataset:
    return FrameDataset(config.data, MODEL.grid, "train", 0)


@pytest.mark.parametrize(
    ("reading", "step", "most", "number"),
    [(0.11, 0.03, 15, 5), (0.11, 0.03, 3, 3), (0.11, 0.097, 15, 2), (0.02, 0.5, 15, 1), (9.0, 0.0, 7, 7)],
)
def test_as_many_as_the_steps_use(reading: float, step: float, most: int, number: int) -> None:
    assert enough(reading, step, most) == number


@pytest.mark.parametrize(
    ("cores", "on_card", "number"), [(16, True, 5), (4, True, 3), (1, True, 1), (2, False, 1), (64, False, 1)]
)
def test_the_choice(frames, config, monkeypatch, cores: int, on_card: bool, number: int) -> None:
    monkeypatch.setattr(worker_count, "seconds_to_read", lambda data: 0.11)
    data, choice = choose_workers(frames, config.data, cores, on_card)
    assert choice is not None and data.workers == choice.number == number
    assert choice.said(cores).startswith(
        f"{number} loader worker{'s' if number > 1 else ''}: this process has {cores} cores, and a sample"
    )


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_number_is_kept(frames, config, monkeypatch, number: int) -> None:
    monkeypatch.setattr(worker_count, "seconds_to_read", lambda data: pytest.fail("nothing has to be measured"))
    asked = replace(config.data, workers=number)
    assert choose_workers(frames, asked, 16, True) == (asked, None)


def test_samples_are_timed_without_a_trace(frames: FrameDataset) -> None:
    before = torch.get_rng_state()
    spent = seconds_to_read(frames)
    assert spent is not None and 0 < spent < 5
    assert torch.equal(before, torch.get_rng_state())


def test_samples_that_cannot_be_read_are_reported_by_training(frames, config, monkeypatch) -> None:
    monkeypatch.setattr(frames, "sample", lambda *given, **named: (_ for _ in ()).throw(OSError("gone")))
    assert seconds_to_read(frames) is None
    choice = choose_workers(frames, config.data, 16, True)[1]
    assert choice is not None and choice.reading == UNKNOWN


@pytest.mark.parametrize(("waiting", "step", "raised"), [(0.3, 0.02, 7), (0.3, 0.2, None), (0.01, 0.02, None)])
def test_more_where_steps_wait(waiting: float, step: float, raised: Any) -> None:
    assert WorkerChoice(2, 0.11, 15).raised(step, waiting) == raised


def steps(waited: float, spent: float) -> StepClock:
    """A clock that has seen eight such steps."""
    clock = StepClock(0)
    clock._measured = [Lap(0.0, waited, spent)] * 8
    return clock


def test_the_next_epoch_has_more_workers_and_the_same_batches(frames, config, monkeypatch) -> None:
    monkeypatch.setattr(loading, "cores_of_this_process", lambda: 4)
    monkeypatch.setattr(worker_count, "seconds_to_read", lambda data: 0.05)
    said: List[str] = []
    own = loading.Loading(frames, config, World(), CPU, said.append, pytest.fail)
    first = own.loader(frames, train=True)
    assert first.num_workers == 1
    first.sampler.set_epoch(0)
    before = [batch.tokens for batch in first]
    assert own.renewed(first, StepClock(0)) is first, "nothing has been measured"
    assert own.renewed(first, steps(0.0, 0.04)) is first, "nothing was waited for"
    second = own.renewed(first, steps(0.02, 0.05))
    assert second.num_workers == 3
    assert said[1:] == [
        "3 loader workers instead of 1 from here on: 40 % of the steps' time went by waiting for data; a step "
        "computes for 30 ms"
    ]
    del first
    second.sampler.set_epoch(0)
    assert [batch.tokens for batch in second] == before
    assert len(multiprocessing.active_children()) == 3, "the first loader's workers have ended"
    assert own.renewed(second, steps(0.02, 0.05)) is second, "no core is left"


def test_a_training_with_more_workers_from_the_second_epoch_on_is_the_same(config, tmp_path, monkeypatch) -> None:
    """To the bit, and the log has one line about each number."""
    monkeypatch.setattr(worker_count, "seconds_to_read", lambda data: 0.05)
    monkeypatch.setattr(loading, "cores_of_this_process", lambda: 4)
    train.train(replace(config, data=replace(config.data, workers=0)), tmp_path / "alone", "cpu")
    monkeypatch.setattr(StepClock, "steady", lambda clock: (0.03, 0.4) if clock._all else None)
    train.train(config, tmp_path / "raised", "cpu")
    (log,) = (tmp_path / "raised").glob("*.log")
    assert log.read_text().count(" loader worker") == 2
    ours, theirs = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                    for name in ("raised", "alone"))  # fmt: skip
    assert [line.get("loss") for line in ours] == [line.get("loss") for line in theirs]
    a, b = (store.read(tmp_path / name / "latest.pth") for name in ("raised", "alone"))
    assert all(torch.equal(value, b["state_dict"][name]) for name, value in a["state_dict"].items())


def test_the_configuration_keeps_its_null(config: Config, tmp_path: Path) -> None:
    train.train(config, tmp_path, "cpu", max_steps=1)
    assert "workers: null" in (tmp_path / "config.yaml").read_text()


CORES = """
import os, sys
from datetime import timedelta
import torch
from tpvformer.engine.distributed import collectives, shared_cores
world = collectives.read_world()
collectives.start(world, torch.device("cpu"))
bound = eval(sys.argv[1])[world.rank]
os.sched_getaffinity = lambda _: set(bound)
shared_cores.cores = lambda: int(sys.argv[2]) or len(bound)
print("CORES", shared_cores.cores_of_this_process(), flush=True)
collectives.stop()
"""


@pytest.mark.parametrize(
    ("bound", "quota", "each"),
    [
        ([range(16), range(16)], 0, 8),  # torchrun: all cores to both
        ([range(8), range(8, 16)], 0, 8),  # Slurm: eight to each
        ([range(16), range(16)], 6, 3),  # a container's quota
        ([range(1), range(1)], 0, 1),
    ],
)
def test_cores_are_divided(bound: Any, quota: int, each: int) -> None:
    outputs = processes(2, CORES, repr([list(cores) for cores in bound]), str(quota))
    assert all(f"CORES {each}" in out for out in outputs), outputs


def test_cores_of_other_machines_are_not_shared(monkeypatch) -> None:
    texts = [json.dumps([name, list(range(8))]) for name in (platform.node(), "another", "another")]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(shared_cores, "cores", lambda: 8)
    monkeypatch.setattr(shared_cores.distributed, "all_gather_strings", lambda text: texts)
    assert shared_cores.cores_of_this_process() == 8
