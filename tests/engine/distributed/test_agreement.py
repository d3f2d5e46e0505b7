"""The processes agree about once a second: how often, that a signal saves the same step, that a failure ends all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import pytest
import torch
from engine_tools import POINTS, processes, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.config import Config
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.distributed import agreement
from tpvformer.engine.distributed.agreement import MOST, Agreement
from tpvformer.engine.distributed.collectives import World

STEPS = 12  # of an epoch with two processes
TRAIN = """
import os, sys
from collections import Counter
from pathlib import Path
import torch.distributed as dist
from tpvformer.compat import load_config
from tpvformer.engine import loop, train
from tpvformer.engine.distributed import agreement
config, work_dir, seconds, what = sys.argv[1:]
agreement.SECONDS, agreement.MOST = float(seconds), 8
rank, asked, calls, real = int(os.environ["RANK"]), Counter(), Counter(), loop.save_if_due
agree, reduce = agreement.distributed.agree, dist.all_reduce
def count(name, function):
    def counting(*given, **named):
        calls[name] += 1
        return function(*given, **named)
    return counting
def after_step(run):
    asked["steps"] += 1
    if rank == 1 and what.startswith("signal") and run.progress.global_iter == int(what[6:]):
        run.signals.received = "SIGUSR1"
    if rank == 1 and what == "die" and asked["steps"] == 6:
        os._exit(9)
    before = calls["agree"]
    try:
        real(run)
    finally:
        asked["agreed"] += calls["agree"] - before
        print("STEP", run.progress.global_iter, calls["agree"] - before, flush=True)
loop.save_if_due = after_step
agreement.distributed.agree = count("agree", agree)
train.train(load_config(config), Path(work_dir), "cpu")
print("COUNTS", asked["steps"], asked["agreed"], flush=True)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("set")
    train = write_tiny(folder / "train", tuple(20 + i for i in range(2 * STEPS)), cameras=("CAM_FRONT",))
    val = write_tiny(folder / "val", POINTS[:2], cameras=("CAM_FRONT",))
    data = dataclasses.replace(train, val_infos=val.train_infos)

    return tiny_config(data, epochs=1, print_every=100)


def run(config: Config, folder: Path, name: str, seconds: float, what: str = "") -> Tuple[List[str], Path]:
    file = write_config(folder / f"{name}.py", config)
    return processes(2, TRAIN, str(file), str(folder / name), str(seconds), what), folder / name


def counts(output: str) -> Tuple[int, int]:
    """The steps after which a process was asked, and the agreements among them."""
    (line,) = [line for line in output.splitlines() if line.startswith("COUNTS")]
    steps, agreed = line.split()[1:]
    return int(steps), int(agreed)


def weights(work_dir: Path) -> Dict[str, torch.Tensor]:
    state: Dict[str, torch.Tensor] = store.read(work_dir / "latest.pth")["state_dict"]
    return state


@pytest.fixture(scope="module")
def always(config: Config, tmp_path_factory) -> Tuple[List[str], Path]:
    """A training that agrees after every step, as all did before."""
    return run(config, tmp_path_factory.mktemp("always"), "always", 0.0)


def test_fewer_agreements_and_the_same_training(config: Config, always: Any, tmp_path: Path) -> None:
    """The next one would come 8 steps later; 32 at most where steps take 30 ms."""
    outputs, work_dir = run(config, tmp_path, "rarely", 1000.0)
    asked = STEPS - 1  # the last step of an epoch is followed by its own save
    assert [counts(out) for out in always[0]] == [(asked, asked)] * 2
    assert [counts(out) for out in outputs] == [(asked, 3)] * 2  # after the steps 1, 3 and 7
    ours, theirs = weights(work_dir), weights(always[1])
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_signal_between_two_agreements_saves_one_step_and_resumes_to_the_bit(
    config: Config, always: Any, tmp_path: Path
) -> None:
    outputs, work_dir = run(config, tmp_path, "stopped", 1000.0, "signal5")
    last = [[line for line in out.splitlines() if line.startswith("STEP")][-1] for out in outputs]
    assert last[0] == last[1] and last[0].endswith(" 1")
    stopped = store.read(work_dir / "latest.pth")["global_iter"]
    assert stopped == 7 and last[0] == f"STEP {stopped} 1"
    assert any("stopped by a signal to another process at epoch 0" in out for out in outputs)
    run(config, tmp_path, "stopped", 1000.0)
    ours, theirs = weights(work_dir), weights(always[1])
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_process_that_dies_between_two_agreements_ends_the_other(config: Config, tmp_path: Path) -> None:
    """Nobody stops it from outside: it meets the closed connection when gradients are exchanged."""
    file = write_config(tmp_path / "dies.py", config)
    said, _ = processes(2, TRAIN, str(file), str(tmp_path / "dies"), "1000", "die", status=[1, 9])
    assert "another process of this run has ended" in said


def simulated(monkeypatch: pytest.MonkeyPatch, seconds: Any, steps: int) -> List[List[bool]]:
    """Whether each of three processes agreed after each step; ``seconds(step)`` a step takes in process 0."""
    now = [0.0]
    monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ours = [Agreement(World(rank, 3, rank, 3)) for rank in range(3)]
    met: List[List[bool]] = [[] for _ in ours]
    for step in range(steps):
        now[0] += seconds(step)
        sums: List[int] = []

        def first(values: List[int], sums: List[int] = sums) -> List[int]:
            sums[:] = values  # only process 0 proposes; the other two add zeros
            return values

        for rank, own in enumerate(ours):
            agree = first if rank == 0 else lambda values, sums=sums: [0, sums[-1] + values[-1]]
            monkeypatch.setattr(agreement.distributed, "agree", agree)
            met[rank].append(own.ask([0], at_once=step % 50 == 49) is not None)
    return met


@pytest.mark.parametrize(
    ("seconds", "most", "longest"), [(0.027, 12, 32), (0.1, 20, 10), (0.4, 60, 2), (1.2, 100, 1), (5.0, 100, 1)]
)
def test_about_once_a_second(monkeypatch, seconds: float, most: int, longest: int) -> None:
    met = simulated(monkeypatch, lambda step: seconds, 100)
    assert met[0] == met[1] == met[2], "at the same steps in all processes"
    assert sum(met[0]) <= most
    assert met[0][49] and met[0][99], "at once where all ask for it"
    gaps = "".join("x" if agreed else "." for agreed in met[0]).split("x")
    assert max(map(len, gaps)) + 1 <= longest


def test_steps_that_get_slower_are_noticed(monkeypatch) -> None:
    met = simulated(monkeypatch, lambda step: 0.001 if step < 20 else 3.0, 100)
    assert sum(met[0][20 + MOST :]) == len(met[0][20 + MOST :]), "after one long gap at every step"


def test_one_process_agrees_with_itself_at_every_step() -> None:
    own = Agreement(World())
    assert [own.ask([1, 0]) for _ in range(5)] == [[1, 0]] * 5


GRADIENTS = """
import sys
import torch
from engine_tools import CPU, tiny_model
from torch.nn.parallel import DistributedDataParallel
from tpvformer.engine.distributed import collectives
world = collectives.read_world()
collectives.start(world, CPU)
def gradients(mode, **options):
    model = tiny_model().to(memory_format=torch.channels_last)
    model.recompute(mode)
    parallel = collectives.wrap_ddp(model, world, CPU) if not options else DistributedDataParallel(
        model, forward_sync_buffers=False, gradient_as_bucket_view=True, **options)
    for step in range(2):
        draw = torch.Generator().manual_seed(10 * step + world.rank)
        model.zero_grad()
        images, points = torch.randn(1, 2, 3, 64, 96, generator=draw), 3 * torch.rand(1, 9, 3, generator=draw)
        cameras = torch.eye(4).expand(1, 2, 4, 4) + torch.rand(1, 2, 4, 4, generator=draw)
        out = parallel(images, cameras, points=points, voxels=points.long())
        (out.voxel_logits.square().sum() + out.point_logits.square().sum()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found
for mode in ("none", "cheap", "blocks"):
    ours, static = gradients(mode), gradients(mode, static_graph=True)
    assert ours.keys() == static.keys() and len(ours) > 50
    assert all(torch.equal(value, static[name]) for name, value in ours.items()), mode
    print("EQUAL", mode, flush=True)
collectives.stop()
"""


def test_a_static_graph_changes_no_gradient() -> None:
    support = str(Path(__file__).parents[2] / "support")
    root = str(Path(__file__).parents[3])
    outputs = processes(2, GRADIENTS, PYTHONPATH=f"{root}:{support}")
    assert all(out.count("EQUAL") == 3 for out in outputs), outputs
