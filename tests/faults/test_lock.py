"""One training a work dir: who holds it is said, what is left of ended runs is no obstacle."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
from programs import Start, wait_until

from tpvformer.engine.work_dir import lock
from tpvformer.engine.work_dir.lock import NAME, WorkDirLock
from tpvformer.errors import ConfigError

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def left_by(work_dir: Path, **differently: Any) -> None:
    """The file of a run that ended without taking it away: process 1, which lives, but started at another time."""
    owner: Dict[str, Any] = {**lock._ourselves(), "pid": 1, "started": "0", **differently}
    (work_dir / NAME).write_text(json.dumps(owner))


HOLDS = """
import sys, time
from pathlib import Path
from tpvformer.engine.work_dir.lock import WorkDirLock
WorkDirLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(100)
"""


def test_a_second_run_is_told_who_trains_there(start: Start, tmp_path: Path) -> None:
    other = start([sys.executable, "-c", HOLDS, str(tmp_path)])
    other.until("held\n")
    mine = WorkDirLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"is in use: process {other.pid} on \S+ trains there since \d{{4}}-"):
        mine.acquire()
    mine.release()
    assert (tmp_path / NAME).exists()
    other.end()
    mine.acquire()  # its process is gone
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    mine.release()
    assert not list(tmp_path.iterdir())


def test_twice_in_one_process(tmp_path: Path) -> None:
    first = WorkDirLock(tmp_path)
    first.acquire()
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        WorkDirLock(tmp_path).acquire()
    first.release()
    WorkDirLock(tmp_path).acquire()


def test_a_workers_copy_of_the_handle_holds_nothing(tmp_path: Path) -> None:
    """A loader's worker outlives a killed trainer by seconds."""
    gate = os.pipe()
    child = os.fork()
    if child == 0:
        WorkDirLock(tmp_path).acquire()
        if os.fork() == 0:
            os.close(gate[1])
            os.read(gate[0], 1)
        os._exit(0)
    wait_until(lambda: os.waitpid(child, os.WNOHANG)[0])
    WorkDirLock(tmp_path).acquire()
    os.close(gate[1])


@linux
@pytest.mark.parametrize(
    "differently",
    [
        {},
        {"pid": 2**22 - 1},
        {"boot": "before"},  # this machine was started anew
        {"host": "a container that is gone", "namespace": "pid:[1]"},
    ],
)
def test_what_ended_runs_left_on_this_machine(tmp_path: Path, differently: Dict[str, Any]) -> None:
    left_by(tmp_path, **differently)
    WorkDirLock(tmp_path).acquire()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x", "boot": 3}'])
def test_what_is_no_owner_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    WorkDirLock(tmp_path).acquire()


def test_another_machine_is_refused_with_the_way_out(tmp_path: Path) -> None:
    left_by(tmp_path, host="elsewhere", boot="another")
    mine = WorkDirLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"process 1 on elsewhere .*, delete {tmp_path / NAME} and start again"):
        mine.acquire()
    (tmp_path / NAME).unlink()
    mine.acquire()


def test_a_job_that_its_scheduler_moved_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    left_by(tmp_path, host="elsewhere", boot="another")
    with pytest.raises(ConfigError):  # two steps of one allocation
        WorkDirLock(tmp_path).acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    WorkDirLock(tmp_path).acquire()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch) -> None:
    """Process numbers and start times decide there."""
    monkeypatch.setattr(lock, "_lock", lambda handle: None)
    first = WorkDirLock(tmp_path)
    first.acquire()
    with pytest.raises(ConfigError, match="is in use"):
        WorkDirLock(tmp_path).acquire()
    first.release()
    left_by(tmp_path)
    WorkDirLock(tmp_path).acquire()
