"""Ctrl-C, as a terminal sends it: to every process of a command. Training saves; everything else ends in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import List

import programs
import pytest
import torch
from engine_tools import environment, tiny_config, tiny_model, write_config
from programs import Start
from tiny_nuscenes import write_tiny

from tpvformer.engine.distributed.signals import CTRL_C, StopSignals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="groups of processes")
COMMAND = [sys.executable, "-m", "tpvformer"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of many steps, whose loader has a worker."""
    folder = tmp_path_factory.mktemp("ctrl_c")
    tiny = tiny_config(write_tiny(folder / "set", (40,) * 8), epochs=50)
    torch.save(tiny_model().state_dict(), folder / "weights.pth")
    return write_config(folder / "tiny.py", tiny)


@pytest.fixture
def begin(start: Start) -> Start:
    """Starts a command in a group of processes of its own, as a shell does."""
    return lambda command: start(command, env=environment(), stderr=subprocess.STDOUT)


def train(config: Path, work_dir: Path, *more: str) -> List[str]:
    words = ["--py-config", str(config), "--work-dir", str(work_dir), "--device", "cpu", "--set", "data.workers=1"]
    return [*COMMAND, "train", *words, *more]


def test_the_first_is_noted_and_the_second_leaves(capfd: pytest.CaptureFixture) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == CTRL_C
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == CTRL_C
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().err.count("Ctrl-C once more leaves at once") == 1


def test_where_it_is_ignored_it_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("processes", "whom"), [(1, "all"), (2, "all"), (2, "launcher")])
def test_training_saves_and_the_same_command_goes_on(
    begin: Start, processes: int, whom: str, config: Path, tmp_path: Path
) -> None:
    work_dir = tmp_path / "run"
    more = ["--processes", str(processes)] if processes > 1 else []
    process = begin(train(config, work_dir, *more))
    process.until("[TRAIN]")
    if whom == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    assert process.wait(200) == 0, process.out
    said = process.out
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    assert said.count("once more leaves at once") == 1 and said.count("stopped by ") == 1
    assert f"{work_dir / 'latest.pth'} holds everything, and the same command resumes there" in said
    assert (work_dir / "latest.pth").is_file() and not (work_dir / "summary.json").exists()
    again = programs.run(train(config, work_dir, *more, "--max-epochs", "1"), env=environment())
    assert again.returncode == 0 and f"resumed {work_dir / 'latest.pth'}" in again.stdout, again.stderr


HANGS = """
import sys, time
from tpvformer.engine.evaluation import evaluate
from tpvformer.engine import loop as train
def hang(*_, **__):
    print("HANGS", flush=True)
    time.sleep(300)
train.predict = evaluate.predict = hang
from tpvformer.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_second_leaves_at_once(begin: Start, config: Path, tmp_path: Path) -> None:
    """In the middle of a step that takes long."""
    words = train(config, tmp_path / "run")[3:]
    process = begin([sys.executable, "-c", HANGS, *words])
    process.until("HANGS")
    os.killpg(process.pid, signal.SIGINT)
    process.until("once more leaves at once")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(100) == 130
    said = process.out
    assert said.endswith("tpvformer train: interrupted\n") and "Traceback" not in said


LAUNCHES = """
import sys
from tpvformer import cli
from tpvformer.engine.distributed import launch
sys.executable = sys.argv[1]
sys.exit(cli.in_one_line("launched", lambda: launch.launch(2, ["train"])))
"""


def test_the_second_ends_processes_that_do_not_answer(begin: Start, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text(f"#!/bin/sh\ntrap '' TERM INT\necho >> {tmp_path / 'started'}\nsleep 300 & wait; wait\n")
    silent.chmod(0o755)
    started = tmp_path / "started"
    process = begin([sys.executable, "-c", LAUNCHES, str(silent)])
    process.until(lambda: started.exists() and started.read_text().count("\n") == 2)
    os.killpg(process.pid, signal.SIGINT)
    process.until("once more leaves at once")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(9) == 130
    assert process.out.endswith("launched: interrupted\n")


def test_a_measurement_of_speed_has_nothing_to_save(begin: Start, config: Path, tmp_path: Path) -> None:
    process = begin(train(config, tmp_path / "run", "--max-steps", "300", "--processes", "2"))
    process.until("[TRAIN]")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(100) == 130
    said = process.out
    assert said.endswith("tpvformer train: interrupted\n") and "Traceback" not in said


def test_before_there_is_anything_to_save(begin: Start, config: Path, tmp_path: Path) -> None:
    """While the processes are starting."""
    process = begin(train(config, tmp_path / "run", "--processes", "2"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("needs Linux")
    process.until(lambda: len(children.read_text().split()) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(100) == 130
    assert process.out.strip().splitlines()[-1] == "tpvformer train: interrupted"
    assert "Traceback" not in process.out


def test_an_evaluation_with_workers_ends_in_one_line(begin: Start, config: Path, tmp_path: Path) -> None:
    words = ["eval", "--py-config", str(config), "--ckpt-path", str(config.with_name("weights.pth"))]
    words += ["--device", "cpu", "--set", "data.workers=2"]
    process = begin([sys.executable, "-c", HANGS, *words])
    process.until("HANGS")
    before = process.out
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(100) == 130
    assert process.out[len(before) :] == "tpvformer eval: interrupted\n"


@pytest.mark.parametrize("when", ["drawing", "starting"])
def test_synth_ends_in_one_line_and_leaves_nothing(begin: Start, when: str, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    out = tmp_path / "set"
    words = ["synth", "--out", str(out), "--scenes", "40", "--size", "224x128", "--frames", "4", "--workers", "2"]
    process = begin([*COMMAND, *words])
    scans = tmp_path / ".set.partial/samples/LIDAR_TOP"
    process.until(lambda: scans.is_dir() and len(list(scans.iterdir())) >= (9 if when == "drawing" else 4))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(100) == 130
    said = process.out.splitlines()
    assert said[-1] == "tpvformer synth: interrupted" and not [line for line in said if "Traceback" in line], said
    assert not list(tmp_path.glob("*set*"))


def test_synth_ends_its_workers_where_ctrl_c_came_while_they_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised when the starting is over, and the workers do not draw the rest of the set first."""
    pytest.importorskip("numba")
    from tpvformer.data.street import write

    ended: List[int] = []

    class Pool:
        """Stand-in for a pool of one process."""

        def __init__(self, *_: object) -> None:
            self._processes = {1: SimpleNamespace(terminate=lambda: ended.append(1))}

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            assert ended == [1], "waits for workers that still draw"

        def submit(self, *_: object) -> object:
            os.kill(os.getpid(), signal.SIGINT)
            return object()

    monkeypatch.setattr(write, "ProcessPoolExecutor", Pool)
    tasks = [SimpleNamespace(index=index, frames=1) for index in range(3)]
    with pytest.raises(KeyboardInterrupt):
        write._record(lambda task: SimpleNamespace(frames=[0]), tasks, 2, None)
    assert ended == [1]
