"""Processes that are left without their launcher: they end, and the same command starts the only training there is."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List

import pytest
from engine_tools import POINTS, environment, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.engine.distributed.parent import LAUNCHER, Tether

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A training that does not end in the time of a test, with the default workers."""
    folder = tmp_path_factory.mktemp("parent")
    job = tiny_config(write_tiny(folder / "set", POINTS, cameras=("CAM_FRONT",)), epochs=500)
    return write_config(folder / "tiny.py", dataclasses.replace(job, data=dataclasses.replace(job.data, workers=1)))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


STARTED: List[subprocess.Popen] = []


def start(config: Path, work_dir: Path, *more: str, output: str = "out") -> subprocess.Popen:
    command = [sys.executable, "-m", "tpvformer", "train", "--py-config", str(config), "--device", "cpu"]
    with (work_dir.parent / output).open("w") as out:
        command += ["--work-dir", str(work_dir), *more]
        STARTED.append(subprocess.Popen(command, env=environment(), stdout=out, stderr=subprocess.STDOUT))
    return STARTED[-1]


def wait_for_line(text: str, file: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 300
    while text not in file.read_text():
        assert process.poll() is None and time.monotonic() < until, file.read_text()
        time.sleep(0.05)


def alive(pids: List[int]) -> List[int]:
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
        except OSError:
            continue
    return found


def children(pid: int) -> List[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@linux
def test_a_killed_launcher_takes_its_processes_along(config: Path, tmp_path: Path) -> None:
    """And while it trains a second one is refused; afterwards the same command goes on."""
    work_dir = tmp_path / "run"
    first = start(config, work_dir, "--processes", "2")
    wait_for_line("[TRAIN]", tmp_path / "out", first)
    ranks = [pid for pid in children(first.pid) if b"tpvformer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    second = start(config, work_dir, output="second")
    assert second.wait(300) == 2
    said = (tmp_path / "second").read_text()
    assert said.count("\n") == 1 and f"work dir {work_dir} is in use: process {ranks[0]} on" in said, said
    first.kill()
    first.wait(60)
    until = time.monotonic() + 200
    while alive(ranks):
        assert time.monotonic() < until, "the processes outlive their launcher"
        time.sleep(0.05)
    again = start(config, work_dir, "--max-steps", "1", output="again")
    assert again.wait(300) == 0, (tmp_path / "again").read_text()
    assert not (work_dir / "run.lock").exists()


@linux
def test_sighup_saves_unless_it_was_to_be_ignored(config: Path, tmp_path: Path) -> None:
    """The launcher alone hears that its terminal is gone; what nohup started goes on."""
    work_dir = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # this suite itself may have been started by nohup
    try:
        process = start(config, work_dir, "--processes", "2")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_line("[TRAIN]", tmp_path / "out", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(300) == 0, (tmp_path / "out").read_text()
    assert "stopped by SIGHUP at epoch" in (tmp_path / "out").read_text()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(config, work_dir, output="nohup")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_line("[TRAIN]", tmp_path / "nohup", process)
    process.send_signal(signal.SIGHUP)
    seen = (tmp_path / "nohup").read_text().count("[TRAIN]")
    until = time.monotonic() + 200
    while (tmp_path / "nohup").read_text().count("[TRAIN]") < seen + 5:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    assert process.wait(300) == 0
    assert "stopped by SIGTERM" in (tmp_path / "nohup").read_text()


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
def test_both_ways(way: str) -> None:
    if way == "kernel" and not sys.platform.startswith("linux"):
        pytest.skip("Linux's own")
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHES, ENDS_WITH_IT, way], stdout=subprocess.PIPE, env=environment(), text=True
    )
    assert launcher.stdout is not None
    launcher.stdout.readline()
    launcher.kill()
    assert launcher.stdout.read() == ""  # its end comes when the process that inherited the pipe has ended
    launcher.wait()


def test_a_process_of_a_script_is_left_alone() -> None:
    """RANK and its like alone do not tie it to a shell that may end at once."""
    shell = (
        f"RANK=0 {sys.executable} -c 'from tpvformer.engine.distributed.parent import *; "
        "end_with_parent(); import time; "
        'time.sleep(1); print("still here")\' & exit 0'
    )
    done = subprocess.run(["bash", "-c", shell], stdout=subprocess.PIPE, env=_plain(), text=True, timeout=60)
    assert done.stdout == "still here\n"


def _plain() -> Dict[str, str]:
    return {k: v for k, v in environment().items() if k not in (LAUNCHER, "TORCHELASTIC_RUN_ID")}


def test_a_launcher_that_ended_before() -> None:
    tether = Tether()
    gone = subprocess.Popen(["true"])
    gone.wait()
    env = {**environment(), **tether.environment, LAUNCHER: str(gone.pid)}
    assert subprocess.run([sys.executable, "-c", ENDS_WITH_IT], env=env, timeout=60).returncode == 1
