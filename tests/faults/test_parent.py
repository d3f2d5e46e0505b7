"""Processes that are left without their launcher: they end, and the same command starts the only training there is."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import programs
import pytest
from engine_tools import POINTS, environment, tiny_config, write_config
from programs import Start, state, wait_until
from tiny_nuscenes import write_tiny

from tpvformer.engine.distributed.parent import LAUNCHER, Tether

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A training that does not end in the time of a test, with the default workers."""
    folder = tmp_path_factory.mktemp("parent")
    job = tiny_config(write_tiny(folder / "set", POINTS, cameras=("CAM_FRONT",)), epochs=500)
    return write_config(folder / "tiny.py", dataclasses.replace(job, data=dataclasses.replace(job.data, workers=1)))


@pytest.fixture
def train(start: Start, config: Path, tmp_path: Path) -> Start:
    """Starts a training in ``tmp_path / "run"``; its arguments are further words of the command."""
    command = [sys.executable, "-m", "tpvformer", "train", "--py-config", config, "--device", "cpu"]
    command += ["--work-dir", tmp_path / "run"]
    return lambda *more: start([*command, *more], env=environment(), stderr=subprocess.STDOUT)


def children(pid: int) -> List[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@linux
def test_a_killed_launcher_takes_its_processes_along(train: Start, tmp_path: Path) -> None:
    """And while it trains a second one is refused; afterwards the same command goes on."""
    work_dir = tmp_path / "run"
    first = train("--processes", "2")
    first.until("[TRAIN]")
    ranks = [pid for pid in children(first.pid) if b"tpvformer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    second = train()
    assert second.wait() == 2
    said = second.out
    assert said.count("\n") == 1 and f"work dir {work_dir} is in use: process {ranks[0]} on" in said, said
    first.kill()
    first.wait(60)
    wait_until(lambda: all(state(pid) in "ZX" for pid in ranks), 200)  # they do not outlive their launcher
    again = train("--max-steps", "1")
    assert again.wait() == 0, again.out
    assert not (work_dir / "run.lock").exists()


@linux
def test_sighup_saves_unless_it_was_to_be_ignored(train: Start) -> None:
    """The launcher alone hears that its terminal is gone; what nohup started goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # this suite itself may have been started by nohup
    try:
        process = train("--processes", "2")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.until("[TRAIN]")
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0, process.out
    assert "stopped by SIGHUP at epoch" in process.out
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = train()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.until("[TRAIN]")
    process.send_signal(signal.SIGHUP)
    seen = process.out.count("[TRAIN]")
    process.until(lambda: process.out.count("[TRAIN]") >= seen + 5)
    process.terminate()
    assert process.wait() == 0
    assert "stopped by SIGTERM" in process.out


ENDS_WITH_IT = """
import os, sys, time
from tpvformer.engine.distributed.parent import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(100)
"""
LAUNCHES = """
import os, subprocess, sys, time
from tpvformer.engine.distributed.parent import Tether
tether = Tether(by_kernel=sys.argv[2] == "kernel")
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, **tether.environment}, pass_fds=tether.handles)
time.sleep(100)
"""


@pytest.mark.parametrize("way", ["kernel", "pipe"])
def test_both_ways(start: Start, way: str) -> None:
    if way == "kernel" and not sys.platform.startswith("linux"):
        pytest.skip("Linux's own")
    launcher = start([sys.executable, "-c", LAUNCHES, ENDS_WITH_IT, way], env=environment())
    launcher.until("\n")
    launcher.kill()
    wait_until(lambda: state(launcher.out.strip()) in "ZX")
    assert launcher.out.count("\n") == 1


def test_a_process_of_a_script_is_left_alone(start: Start) -> None:
    """RANK and its like alone do not tie it to a shell that may end at once."""
    shell = (
        f"RANK=0 {sys.executable} -c 'from tpvformer.engine.distributed.parent import *; "
        "end_with_parent(); import time; "
        'time.sleep(1); print("still here")\' & exit 0'
    )
    script = start(["bash", "-c", shell], env=_plain())
    wait_until(lambda: script.out == "still here\n")


def _plain() -> Dict[str, str]:
    return {k: v for k, v in environment().items() if k not in (LAUNCHER, "TORCHELASTIC_RUN_ID")}


def test_a_launcher_that_ended_before(start: Start) -> None:
    tether = Tether()
    gone = start(["true"])
    gone.wait(60)
    env = {**environment(), **tether.environment, LAUNCHER: str(gone.pid)}
    assert programs.run([sys.executable, "-c", ENDS_WITH_IT], env=env).returncode == 1
