"""Several gloo processes against one: the same training, the same scores, the same submission."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import List

import programs
import pytest
import torch
from engine_tools import POINTS, environment, processes, write_config
from programs import Start
from submission_tools import META, checked, write_set

from tpvformer.config import Config
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.device.accelerator import pick_device, visible_cards
from tpvformer.engine.distributed.collectives import World, all_reduce_sum, read_world
from tpvformer.engine.distributed.launch import _reserve_port
from tpvformer.engine.distributed.parent import RESERVED_PORT
from tpvformer.engine.distributed.rendezvous import listen_at
from tpvformer.engine.evaluation import checkpoint_scores as score
from tpvformer.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick")
EVALUATE = """
import json, sys
from pathlib import Path
from tpvformer.compat import load_config
from tpvformer.engine.evaluation.checkpoint_scores import evaluate_checkpoint
from tpvformer.labels import class_names
result = evaluate_checkpoint(load_config(sys.argv[1]), Path(sys.argv[2]), "cpu", submission=Path(sys.argv[3]))
print("RESULT", json.dumps(result.as_dict(class_names("nuscenes"))), flush=True)
"""
AVERAGE = """
import hashlib, sys
from pathlib import Path
from tpvformer.compat import load_config
from tpvformer.engine import train as run
from tpvformer.engine.evaluation.evaluate import Evaluation

Evaluation.primary_metric = property(lambda self: ("miou_points", 1.0))  # never better than after the first epoch
real = run.fit

def fit(job):
    result = real(job)
    digest = hashlib.sha256()
    for name, value in sorted(job.average.state()["state_dict"].items()):
        digest.update(value.numpy().tobytes())
    print("AVERAGE", job.average.updates, digest.hexdigest(), flush=True)
    return result

run.fit = fit
outcome = run.train(load_config(sys.argv[1]), Path(sys.argv[2]), "cpu")
print("ENDED", outcome["epochs"], outcome["stopped_early"], flush=True)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return write_set(tmp_path_factory.mktemp("set"), POINTS)


@pytest.fixture(scope="module")
def single(config: Config, tmp_path_factory, quick) -> Path:
    """The work dir of one process with a batch of two."""
    work_dir = tmp_path_factory.mktemp("single")
    run.train(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2)), work_dir, "cpu")
    return work_dir


def records(work_dir: Path, kind: str) -> List[dict]:
    lines = (json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines())
    return [r for r in lines if r["kind"] == kind]


def test_two_processes_train_as_one_does(config: Config, single: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", config)
    work_dir = tmp_path / "double"
    command = [sys.executable, "-m", "tpvformer", "train", "--py-config", str(file), "--work-dir", str(work_dir)]
    done = programs.run([*command, "--device", "cpu", "--processes", "2"], env=environment())
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    summary = json.loads((work_dir / "summary.json").read_text())
    assert (summary["world_size"], summary["batch_size"], summary["global_batch"]) == (2, 1, 2)
    ours, theirs = (records(d, "train") for d in (work_dir, single))
    assert len(ours) == 6
    for a, b in zip(ours, theirs):
        for key, tolerance in (("loss", 1e-5), ("mean_loss", 1e-5), ("grad_norm", 1e-3), ("lr", 0)):
            assert a[key] == pytest.approx(b[key], rel=tolerance), (a, b)
        for key in ("parts", "mean_parts"):  # means over the processes too
            assert a[key] == pytest.approx(b[key], rel=1e-5) and len(a[key]) == 2
    states = [store.read(d / "latest.pth")["state_dict"] for d in (work_dir, single)]
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_processes_hold_one_average_and_end_together(config: Config, tmp_path: Path) -> None:
    """Without exchanging it: the weights are the same in all of them. Patience ends all after the same epoch."""
    job = dataclasses.replace(config, train=dataclasses.replace(config.train, ema=0.9, epochs=9, patience=1))
    outputs = processes(2, AVERAGE, str(write_config(tmp_path / "tiny.py", job)), str(tmp_path / "w"))
    said = [[line for line in out.splitlines() if line.startswith(("AVERAGE", "ENDED"))] for out in outputs]
    assert said[0] == said[1] and said[0][0].startswith("AVERAGE 6 ") and said[0][1] == "ENDED 2 True"
    content = store.read(tmp_path / "w" / "latest.pth")
    digest = hashlib.sha256()
    for _, value in sorted(content["ema"]["state_dict"].items()):
        digest.update(value.numpy().tobytes())
    assert said[0][0].endswith(digest.hexdigest())


@pytest.mark.parametrize("size", [2, 8])
def test_scores_do_not_depend_on_the_number_of_processes(
    config: Config, single: Path, tmp_path: Path, size: int, capsys
) -> None:
    best = single / "best.pth"
    file = write_config(tmp_path / "tiny.py", config)
    alone, together = tmp_path / "alone.zip", tmp_path / "together.zip"
    expected = score.evaluate_checkpoint(config, best, "cpu", submission=alone)
    outputs = processes(size, EVALUATE, str(file), str(best), str(together))
    results = [json.loads(line[7:]) for out in outputs for line in out.splitlines() if line.startswith("RESULT ")]
    assert len(results) == size
    for result in results:
        assert result["samples"] == 7
        assert result["loss"] == pytest.approx(expected.loss, abs=1e-6)
        assert result["pts"]["miou"] == expected.pts.miou
        assert result["vox"]["miou"] == expected.vox.miou
        assert list(result["pts"]["iou"].values()) == list(expected.pts.iou)
        assert result["metrics"] == {name: metric.as_dict() for name, metric in expected.metrics.items()}
    tables = [out for out in outputs if "miou_reference (absent" in out]
    assert len(tables) == 1, "one process writes, the others are silent"
    checked(alone, "mini_val", {f"scan{i}": count for i, count in enumerate(POINTS)}, META)
    assert alone.read_bytes() == together.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["alone.zip", "tiny.py", "together.zip"]


def test_a_failure_in_one_process_ends_all_with_its_exit_code(config: Config, tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", dataclasses.replace(config, name="broken"))
    command = [sys.executable, "-m", "tpvformer", "train", "--py-config", str(file), "--processes", "2"]
    done = programs.run(
        [*command, "--work-dir", str(tmp_path / "w"), "--device", "cpu", "--set", "data.batch_size=4"],
        env=environment(),
    )
    assert done.returncode == 2
    assert "7 training samples do not fill one batch of 4 on each of 2 ranks" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_launch_that_is_asked_to_stop_saves_and_ends_well(
    start: Start, config: Config, tmp_path: Path, number: signal.Signals
) -> None:
    """The launching process passes the signal on and waits for the others, which finish their step."""
    endless = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=10_000))
    file, work_dir = write_config(tmp_path / "tiny.py", endless), tmp_path / "w"
    command = [sys.executable, "-m", "tpvformer", "train", "--py-config", str(file), "--work-dir", str(work_dir)]
    process = start([*command, "--device", "cpu", "--processes", "2"], env=environment())
    process.until("[TRAIN]")
    process.send_signal(number)
    assert process.wait(120) == 0
    assert process.err == ""
    assert f"stopped by {number.name} at epoch " in process.out
    assert store.read(work_dir / "latest.pth")["global_iter"] >= 1
    assert not (work_dir / "summary.json").exists()


@pytest.mark.parametrize("kind", [torch.float64, torch.uint8, torch.bool, torch.float16])
def test_sums_that_some_backends_refuse_are_refused_everywhere(kind: torch.dtype) -> None:
    with pytest.raises(TypeError, match="expected one of"):
        all_reduce_sum(torch.ones(2, dtype=kind))
    assert all_reduce_sum(torch.ones(2)).tolist() == [1.0, 1.0]


def test_world_is_read_from_the_environment(monkeypatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some launchers mean machines by it
    assert read_world() == World()
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="LOCAL_RANK is ''"):
        read_world()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    world = read_world()
    assert world == World(rank=3, size=4, local_rank=1, local_size=2)
    assert not world.is_main


def test_a_kind_of_card_that_is_not_there_is_refused_when_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == (torch.device("cpu"), [])
    with pytest.raises(ConfigError, match="device cuda cannot be used"):
        pick_device("cuda")


def test_the_processor_does_not_step_in_for_a_vendor_s_broken_installation(monkeypatch) -> None:
    """CANN's set_env.sh was sourced: nobody who did that wants weeks on the processor."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("ASCEND_HOME_PATH", "/cann")
    for choose in (pick_device, visible_cards):
        with pytest.raises(ConfigError, match=r"CANN is set up here .* torch_npu is not installed; .* --device cpu$"):
            choose("auto")
    with pytest.raises(ConfigError, match="device npu cannot be used: torch_npu is not installed"):
        pick_device("npu")
    assert pick_device("cpu") == (torch.device("cpu"), [])
    assert visible_cards("cpu") == visible_cards("npu") == 0
    monkeypatch.delenv("ASCEND_HOME_PATH")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == (torch.device("cpu"), [])


def test_too_few_cards_are_passed_over_with_a_remark(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device, remarks = pick_device("auto", local_rank=0, local_size=8)
    assert device == torch.device("cpu")
    assert remarks == ["cuda is skipped: 8 processes need a card each, 1 visible"]
    with pytest.raises(ConfigError, match="8 processes need a card each, 1 visible"):
        pick_device("cuda", local_rank=0, local_size=8)


def test_the_port_of_a_launch_is_kept_until_process_0_listens(monkeypatch) -> None:
    """Seconds pass until then, in which another launch once took it."""
    reserved = _reserve_port()
    port = reserved.getsockname()[1]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
    monkeypatch.setenv(RESERVED_PORT, str(os.dup(reserved.fileno())))
    reserved.close()
    store = listen_at("127.0.0.1", port, timedelta(seconds=20))
    assert store is not None and store.port == port and RESERVED_PORT not in os.environ
    store.set("key", "value")
    assert store.get("key") == b"value"
