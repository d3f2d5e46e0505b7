"""Somebody's project, unedited, under ``tpvformer run``: one and two processes on a processor, two pretended NPUs.

The project (tests/fork/checkout) is written in the idiom of 2022; the mmcv that it imports is the tests' own, or the
real one in an environment that has it. With mmdet's ResNet: tests/compat/test_openmmlab.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import fork_tools as fork
import pytest
from needs import SITE, needs_card

Runs = Dict[str, List[Dict[str, Any]]]
REMARKS = (
    "nuscenes is not installed; tpvformer's NuScenes stands in for it",
    "timm is not installed; tpvformer's CosineLRScheduler stands in for it",
    "np.float is not in numpy",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fork.write_tables(tmp_path_factory.mktemp("fork") / "data")


def train(root: Path, name: str, *options: str, **extra: str) -> List[Dict[str, Any]]:
    """What each process of a run wrote; a remark stands once in the output of all."""
    paths = [*fork.MMCV, SITE] if "npu" in options else fork.MMCV
    device = "npu" if "npu" in options else "cpu"
    arguments = ["--work_dir", str(root.parent / name), "--root", str(root)]
    done = fork.start(options, arguments, paths, **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    results = fork.results(root.parent / name)
    for rank in range(len(results)):
        assert f"rank {rank} of {len(results)} done on {device}" in done.stdout
    for remark in REMARKS:
        assert done.stderr.count(remark) == 1, done.stderr
    return results


@pytest.fixture(scope="module")
def alone(root: Path) -> List[Dict[str, Any]]:
    return train(root, "alone", "--device", "cpu")


@pytest.fixture(scope="module")
def together(root: Path) -> List[Dict[str, Any]]:
    return train(root, "together", "--device=cpu", "--cards", "2")


def compare(ours: List[Dict[str, Any]], plain: List[Dict[str, Any]]) -> None:
    """Outputs, gradients, losses and trained weights of each process."""
    assert len(ours) == len(plain)
    for mine, theirs in zip(ours, plain):
        for name, tolerance in (("output", 1e-5), ("grads", 1e-4), ("weights", 1e-4)):
            assert fork.largest_gap(mine[name], theirs[name]) <= tolerance, name
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-5)


def test_alone_on_a_processor(root: Path, alone: List[Dict[str, Any]]) -> None:
    assert len(alone) == 1 and len(alone[0]["losses"]) == 3
    assert alone[0]["rates"] == pytest.approx([1e-5, 5.05e-4, 2.5075e-4])
    assert all(float(grad.abs().max()) > 0 for grad in alone[0]["grads"].values())
    compare(alone, train(root, "plain", "--device", "cpu", FORK_PLAIN="1"))


def test_two_processes_that_the_script_spawns(
    root: Path, alone: List[Dict[str, Any]], together: List[Dict[str, Any]]
) -> None:
    first, second = together
    assert (
        fork.largest_gap(first["grads"], second["grads"]) == fork.largest_gap(first["weights"], second["weights"]) == 0
    )
    assert fork.largest_gap(first["grads"], alone[0]["grads"]) > 0.1, "the second process has had no part in them"
    means = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"])]
    assert first["mean"].tolist() == pytest.approx(means)
    compare(together, train(root, "plain together", "--device", "cpu", "--cards", "2", FORK_PLAIN="1"))


@needs_card
def test_two_pretended_npus(root: Path, together: List[Dict[str, Any]]) -> None:
    compare(train(root, "npu", "--device", "npu", STANDIN_CARDS="2", STANDIN_SDK="26.x"), together)


def test_its_own_checkpoint_with_a_numpy_scalar_is_read(root: Path, alone: List[Dict[str, Any]]) -> None:
    file = root.parent / "alone/latest.pth"
    arguments = [
        "--work_dir",
        str(root.parent / "again"),
        "--root",
        str(root),
        "--load_from",
        str(file),
        "--steps",
        "1",
    ]
    done = fork.start(["--device", "cpu"], arguments, fork.MMCV)
    assert done.returncode == 0 and f"resumed after {alone[0]['losses'][-1]}" in done.stdout, done.stderr
