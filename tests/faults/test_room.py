"""Machines with little shared memory, few open files, no temporary folder: fewer workers and a line, never a hang."""

from __future__ import annotations

import gc
import resource
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List

import programs
import pytest
import torch
from engine_tools import MODEL, environment, write_config
from needs import can_mount

from tpvformer.config import Config, DataConfig
from tpvformer.data import worker_limits as room
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import Loader, heard, start_worker
from tpvformer.engine.faults.explain_crash import explain_crash
from tpvformer.errors import RunEnded

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def config(config: Config) -> Config:
    return replace(config, data=replace(config.data, workers=1))


@pytest.fixture(scope="module")
def frames(config: Config) -> FrameDataset:
    return FrameDataset(config.data, MODEL.grid, "train", 0)


def fitted(frames: FrameDataset, cfg: DataConfig, processes: int = 1) -> "tuple[int, List[str]]":
    said: List[str] = []
    return room.fit_workers(frames, cfg, processes, said.append).workers, said


@pytest.mark.parametrize(("samples", "processes", "workers"), [(3.9, 1, 0), (4.1, 1, 1), (6.1, 1, 2), (12.1, 2, 2)])
def test_shared_memory(frames, config, monkeypatch, samples: float, processes: int, workers: int) -> None:
    free = int(samples * room._size(frames))
    monkeypatch.setattr(room.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1))
    found, said = fitted(frames, replace(config.data, workers=2), processes)
    assert found == workers
    assert [text for text in said if "--shm-size=" in text] == said and len(said) == (workers < 2)


def test_plenty_needs_no_sample(config, monkeypatch) -> None:
    monkeypatch.setattr(room.os, "statvfs", lambda path: SimpleNamespace(f_bavail=2**40, f_frsize=1))
    assert fitted(None, config.data) == (1, [])  # type: ignore[arg-type]


def test_open_files(frames, config, monkeypatch) -> None:
    set_to: List[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 2**20))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    assert fitted(frames, config.data) == (1, [])
    assert set_to == [(272, 2**20)]  # raised as far as it is needed
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 300))
    found, said = fitted(frames, replace(config.data, workers=8))
    assert found == 1 and "data.workers is 1 instead of 8: this process may open 300 files" in said[0]


def test_no_temporary_folder(frames, config, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + 90 * "x")
    assert "set TMPDIR to a shorter one" in fitted(frames, config.data)[1][0]

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    workers, said = fitted(frames, config.data)
    assert workers == 0 and said[0].startswith("data.workers is 0 instead of 1: no temporary folder can be written")


SMALL = 'mount -t tmpfs -o size=96k none /dev/shm || exit 9; exec "$@"'


def test_a_container_with_little_shared_memory(config: Config, tmp_path: Path) -> None:
    """The real command with the default workers, on a /dev/shm that a batch does not fit in."""
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a small file system in a namespace of its own")
    file = write_config(tmp_path / "tiny.py", config)
    command = [sys.executable, "-m", "tpvformer", "train", "--device", "cpu", "--py-config", str(file)]
    command += ["--work-dir", str(tmp_path / "w"), "--max-steps", "2"]
    done = programs.run(["unshare", "-m", "bash", "-c", SMALL, "-", *command], env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("data.workers is 0 instead of 1: /dev/shm has 0 MiB free") == 1, done.stdout


class Unsendable:
    def __reduce__(self) -> Any:
        raise OSError(24, "Too many open files")


def test_a_batch_that_cannot_be_handed_on_is_heard_of(capfd) -> None:
    loader = Loader([0, 1], num_workers=1, collate_fn=lambda _: Unsendable(), worker_init_fn=start_worker, timeout=100)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(iter(loader))
    assert "cannot hand on a batch (OSError: [Errno 24] Too many open files)" in capfd.readouterr().err


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> int:
        return i


@pytest.mark.timeout(60)
def test_a_worker_killed_inside_a_lock_holds_nobody() -> None:
    """PyTorch ends workers by an event whose lock all of them take: once it waited there for ever."""
    loader = Loader(Numbers(), num_workers=2, persistent_workers=True, worker_init_fn=start_worker)
    batches = iter(loader)
    next(batches)
    inner: Any = loader._iterator
    holder = threading.Thread(
        target=inner._workers_done_event._event._cond.acquire
    )  # as the worker that is killed below
    holder.start()
    holder.join()
    inner._workers[0].kill()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches)
    assert not any(worker.is_alive() for worker in inner._workers)
    del batches, inner, loader
    gc.collect()


CRASHES = """
import torch
from tpvformer.data.loader import Loader, start_worker
loader = Loader(list(range(100)), num_workers=2, persistent_workers=True, worker_init_fn=start_worker)
for _ in loader:
    raise ValueError("of a step")
"""


def test_a_crash_ends_the_process_and_its_workers() -> None:
    """The traceback keeps the loader; Python's exit once waited for workers that ignore SIGTERM."""
    command = [sys.executable, "-c", CRASHES]
    done = programs.run(command, env=environment(), seconds=300)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: of a step\n"), done.stderr


def test_workers_live_on_where_all_live() -> None:
    """An epoch that is left early, as --max-steps leaves it, keeps its workers for the next one."""
    loader = Loader(Numbers(), num_workers=1, persistent_workers=True, worker_init_fn=start_worker)
    next(iter(loader))
    first = loader._iterator._workers[0].pid
    assert len(list(loader)) == 100 and loader._iterator._workers[0].pid == first


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket")])
def test_a_dead_worker_is_one_kind_of_error(error: Exception, config: Config) -> None:
    def batches() -> Iterator[Any]:
        yield 1
        raise error

    with (
        pytest.raises(RunEnded, match="a worker process of the loader died at step 3"),
        explain_crash(config, "fp32", torch.device("cpu"), lambda: "step 3"),
    ):
        list(heard(batches()))


def test_what_a_worker_reads_passes() -> None:
    def batches() -> Iterator[Any]:
        raise FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback ...")
        yield

    with pytest.raises(FileNotFoundError):
        list(heard(batches()))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ...", "--shm-size"),
        ("unable to open shared memory object </torch_1> in read-write mode: No space", "--shm-size"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", "another process of this run"),
    ],
)
def test_what_comes_too_late_is_said(text: str, advice: str, config: Config) -> None:
    with pytest.raises(RunEnded, match=advice), explain_crash(config, "fp32", torch.device("cpu"), lambda: "step 3"):
        raise RuntimeError(text)
