"""Cores, their shares and their load, from readings of Linux that are made up here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tpvformer.runtime import cores as machine


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four cores, of which this process may use all."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ticks(root: Path, busy: int, idle: int, ours: int) -> None:
    cores = "".join(f"cpu{i} 0 0 0 0 0 0 0 0 0 0\n" for i in range(4))
    put(root / "proc/stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n{cores}intr 5\n")
    put(root / f"proc/{os.getpid()}/stat", f"{os.getpid()} (a b) c) R 1 1 1 0 -1 0 0 0 0 0 {ours} 0 0 0\n")


@pytest.mark.parametrize(
    ("busy", "ours", "said"),
    [(50, 20, "other processes keep 1.5 of 4 cores busy: steps will take longer"), (50, 48, None), (5, 0, None)],
)
def test_load_of_others(root: Path, monkeypatch: pytest.MonkeyPatch, busy: int, ours: int, said: Any) -> None:
    ticks(root, 1000, 1000, 100)
    monkeypatch.setattr(machine.time, "sleep", lambda _: ticks(root, 1000 + busy, 1000 + 80 - busy, 100 + ours))
    assert machine.load_of_others() == said


def test_a_system_without_such_files_says_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.load_of_others(0) is None and machine.cores() == 6


@pytest.mark.parametrize(
    ("group", "file", "text", "cores"),
    [
        ("0::/", "cpu.max", "150000 100000\n", 2),
        ("0::/", "cpu.max", "max 100000\n", 4),
        ("0::/a/b", "a/cpu.max", "100000 100000\n", 1),
        ("0::/", "cpu.max", "50000 100000\n", 1),
        ("4:cpu,cpuacct:/docker/x", "cpu/cpu.cfs_quota_us", "300000\n", 3),
        ("4:cpu,cpuacct:/docker/x", "cpu/cpu.cfs_quota_us", "-1\n", 4),
    ],
)
def test_a_share_of_the_cores(root: Path, group: str, file: str, text: str, cores: int) -> None:
    put(root / "proc/self/cgroup", f"9:memory:/x\n{group}\n")
    put(root / "sys/fs/cgroup" / file, text)
    put(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert machine.cores() == cores


def test_a_share_sets_the_threads_unless_the_user_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    machine.set_up_threads()
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["GOMP_SPINCOUNT"] == "10000"
    put(root / "proc/self/cgroup", "0::/\n")
    put(root / "sys/fs/cgroup/cpu.max", "200000 100000\n")
    machine.set_up_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]) == ("2", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    machine.set_up_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"
