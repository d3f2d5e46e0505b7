"""What clusters do to a run: bad files, dead workers, no memory, a process that hangs. It ends or goes on, in words."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_tools import POINTS, environment, processes, tiny_config, write_config
from programs import Start
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.config import Config
from tpvformer.engine import loop as train
from tpvformer.engine.faults import explain_crash as in_words_module
from tpvformer.engine.faults.explain_crash import explain_crash
from tpvformer.errors import RunEnded
from tpvformer.runtime.processor import Verdict

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = write_tiny(tmp_path / "set", POINTS, cameras=("CAM_FRONT", "CAM_BACK"))
    return tiny_config(data, epochs=1)


def with_data(config: Config, **data: Any) -> Config:
    return replace(config, data=replace(config.data, **data))


def damage(config: Config, *numbers: int) -> None:
    """Cuts an image of these samples short; the validation set has its own, whole copy."""
    for i in numbers:
        path = Path(config.data.root) / f"samples/CAM_BACK/log__CAM_BACK__{i}.jpg"
        path.write_bytes(path.read_bytes()[:300])


def start(tmp_path: Path, config: Config, *more: str) -> int:
    file = write_config(tmp_path / "tiny.py", config)
    return main(["train", "--py-config", str(file), "--device", "cpu", "--work-dir", str(tmp_path / "run"), *more])


def sentence(capsys: pytest.CaptureFixture) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_stood_in_for(config: Config, tmp_path: Path, workers: int, capsys) -> None:
    damage(config, 2, 4)
    job = with_data(config, on_bad_sample="skip", workers=workers)
    assert start(tmp_path, job, "--max-steps", "7") == 0
    said = capsys.readouterr().out
    assert said.count("skipped, another sample replaces it: sample sample") == 2
    assert "log__CAM_BACK__2.jpg is no whole image" in said and "log__CAM_BACK__4.jpg is no whole image" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bad_samples"] == 2


def test_too_many_bad_samples_end_the_run(config: Config, tmp_path: Path, capsys) -> None:
    damage(config, 1, 2, 3)
    job = replace(config, train=replace(config.train, max_skipped=2))
    assert start(tmp_path, with_data(job, on_bad_sample="skip"), "--max-steps", "7") == 2
    said = sentence(capsys)
    assert "this is bad sample 3 of the run, train.max_skipped allows 2" in said and "is no whole image" in said


def test_an_evaluation_never_counts_another_sample(config: Config, tmp_path: Path, capsys) -> None:
    damage(config, 2)
    assert start(tmp_path, with_data(config, on_bad_sample="skip")) == 2
    assert "sample sample2" in sentence(capsys)
    assert (tmp_path / "run" / "epoch_1.pth").exists()  # training went through


def test_bad_samples_stop_by_default(config: Config, tmp_path: Path, capsys) -> None:
    damage(config, 2)
    assert start(tmp_path, config) == 2
    assert re.search(r"sample sample2: .*CAM_BACK__2.jpg is no whole image", sentence(capsys))


def test_a_set_that_cannot_be_read_at_all(config: Config, tmp_path: Path, capsys) -> None:
    damage(config, *range(len(POINTS)))
    assert start(tmp_path, with_data(config, on_bad_sample="skip")) == 2
    assert "nor can the 10 samples after it be read" in sentence(capsys)


TWO = """
import sys
from tpvformer.cli import main
print("STATUS", main(["train", "--py-config", sys.argv[1], "--device", "cpu", "--work-dir", sys.argv[2],
                      "--max-steps", "3"]), flush=True)
"""


def test_processes_count_bad_samples_together(config: Config, tmp_path: Path) -> None:
    damage(config, 0, 1, 2, 3, 4, 5)
    file = write_config(tmp_path / "tiny.py", with_data(config, on_bad_sample="skip"))
    outputs = processes(2, TWO, str(file), str(tmp_path / "run"))
    assert all("STATUS 0" in out for out in outputs), outputs
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bad_samples"] in (5, 6)  # one is left over of 7


def test_a_worker_that_is_killed(config: Config, tmp_path: Path, monkeypatch, capsys) -> None:
    real = train.total_loss

    def kill_workers(*given: Any) -> torch.Tensor:
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), 9)
        return real(*given)

    monkeypatch.setattr(train, "total_loss", kill_workers)
    assert start(tmp_path, with_data(config, workers=2)) == 1
    said = sentence(capsys)
    assert re.search(
        r"a worker process of the loader died at epoch 0 iteration \d .*lower data.workers \(now 2\)", said
    )


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_whose_end_is_seen_as_a_broken_pipe(
    config: Config, tmp_path: Path, monkeypatch, capsys, error: Exception
) -> None:
    """What a third of killed workers left: the batch that it was about to hand on comes to an end."""
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    real, calls = iterator._next_data, []

    def next_data(self: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return real(self)

    monkeypatch.setattr(iterator, "_next_data", next_data)
    assert start(tmp_path, with_data(config, workers=1)) == 1
    assert re.search(r"a worker process of the loader died at epoch 0 .*lower data.workers \(now 1\)", sentence(capsys))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
        "NPU out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_memory_that_runs_out(config: Config, tmp_path: Path, monkeypatch, capsys, text: str) -> None:
    def exhausted(*given: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(train, "total_loss", exhausted)
    monkeypatch.setattr(in_words_module, "fast_bf16", lambda device: Verdict(True, "it says so"))
    job = replace(with_data(config, batch_size=2), train=replace(config.train, accumulate=3))
    assert start(tmp_path, job) == 1
    said = sentence(capsys)
    assert re.search(r"out of memory on cpu at epoch 0 iteration 0: peak \d+ MiB, 2 samples a batch, 3 batches", said)
    for advice in ("data.batch_size", "train.precision=bf16", "train.recompute=blocks", "data.image_scale"):
        assert advice in said


def test_memory_of_this_machine(config: Config) -> None:
    """The sentence that this PyTorch really says."""
    with (
        pytest.raises(RunEnded, match="out of memory on cpu at the test"),
        explain_crash(config, "fp32", torch.device("cpu"), lambda: "the test"),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass(config: Config) -> None:
    with pytest.raises(RuntimeError, match="^shapes differ$"), explain_crash(config, "fp32", torch.device("cpu"), str):
        raise RuntimeError("shapes differ")


HANG = """
import sys, time
from tpvformer.cli import main
from tpvformer.data.dataset import FrameDataset
import os
real, rank = FrameDataset.sample, os.environ["RANK"]
def stuck(self, index, augment, *more):
    if rank == "1" and getattr(self, "served", 0) == 2:
        a_file_system_that_never_answers()
    self.served = getattr(self, "served", 0) + 1
    return real(self, index, augment, *more)
def a_file_system_that_never_answers():
    time.sleep(600)
FrameDataset.sample = stuck
main(["train", "--py-config", sys.argv[1], "--device", "cpu", "--work-dir", sys.argv[2]])
"""


def test_a_process_that_hangs_ends_all_with_their_stacks(config: Config, tmp_path: Path) -> None:
    job = replace(config, train=replace(config.train, hang_minutes=0.15))
    file = write_config(tmp_path / "tiny.py", job)
    outputs = processes(2, HANG, str(file), str(tmp_path / "run"), status=1)
    for rank, out in enumerate(outputs):
        assert f"(process {rank}): nothing has happened for" in out and "train.hang_minutes" in out
        stacks = (tmp_path / "run" / f"stacks_rank{rank}.txt").read_text()
        assert ("a_file_system_that_never_answers" in stacks) == (rank == 1)
        assert "train_epoch" in stacks


SUSPENDED = """
import sys, time
from pathlib import Path
from tpvformer.engine.faults.watchdog import Watchdog
with Watchdog(2.0, Path(sys.argv[1]), 0) as dog:
    for i in range(20):
        dog.beat(f"step {i}")
        print(i, flush=True)
        time.sleep(0.2)
    print("done", flush=True)
    time.sleep(60)
"""


def test_a_suspended_run_is_not_ended_but_a_hanging_one_is(start: Start, tmp_path: Path) -> None:
    """Longer than its limit it stands still; then it goes on, and hangs."""
    process = start([sys.executable, "-c", SUSPENDED, str(tmp_path)], env=environment())
    process.until("0\n")
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.wait(100) == 1 and process.out.endswith("done\n")
    assert "nothing has happened for" in process.err and "during step 19" in process.err
