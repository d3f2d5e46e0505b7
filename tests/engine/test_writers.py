"""Numbers of a run at TensorBoard and Weights & Biases: which, at which step, and what happens when that fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from engine_tools import tiny_config
from tiny_nuscenes import write_tiny

from tpvformer.config import Config, DataConfig, override
from tpvformer.engine import train as run
from tpvformer.engine.logging import writers
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick")
CONFIG = dataclasses.replace(tiny_config(DataConfig()), name="stand")
TRAIN = {
    "epoch": 0, "iter": 3, "loss": 2.5, "mean_loss": 2.0, "lr": 1e-3, "grad_norm": float("inf"),
    "parts": {"ce": 2.0, "lovasz": 0.5}, "mean_parts": {"ce": 1.5, "lovasz": float("nan")},
}  # fmt: skip
EVAL = {
    "epoch": 1,
    "loss": 1.5,
    "pts": {"miou": 7.0},
    "leading": "miou_points",
    "metrics": {
        "miou_points": {"value": 40.0, "iou": {"car": 50.0, "bus": None}, "rings": {"0-10 m": 1.0}},
        "miou_voxels": {"value": 30.0, "iou": {"car": 20.0}, "rings": {}},
    },
}


class FakeWandB(types.ModuleType):
    """As much of the package as is used: what it was told, and nothing sent anywhere."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: List[Dict[str, Any]] = []
        self.logged: List[Dict[str, float]] = []
        self.axes: List[tuple] = []
        self.finished = 0
        self.broken: Optional[Exception] = None

    def init(self, **options: Any) -> Any:
        if self.broken is not None:
            raise self.broken
        self.begun.append(options)
        self.id = options["id"] or f"id{len(self.begun)}"
        return self

    def define_metric(self, name: str, step_metric: Optional[str] = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: Dict[str, float]) -> None:
        if self.broken is not None:
            raise self.broken
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandB:
    module = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def asked(*names: str) -> Config:
    return override(CONFIG, [f"train.writers=[{', '.join(names)}]"])


def test_what_is_worth_a_curve() -> None:
    assert writers.numbers_of("train", {"step": 4, **TRAIN}) == {
        "train/epoch": 0.0,
        "train/loss": 2.5,
        "train/mean_loss": 2.0,
        "train/lr": 1e-3,
        "train/loss_ce": 2.0,
        "train/loss_lovasz": 0.5,
        "train/mean_loss_ce": 1.5,
    }
    assert writers.numbers_of("eval", {"step": 4, **EVAL}) == {
        "eval/epoch": 1.0,
        "eval/loss": 1.5,
        "eval/miou_points": 40.0,
        "eval/miou_voxels": 30.0,
        "eval/iou/car": 50.0,
    }
    beside = writers.numbers_of("eval_raw", {"step": 4, **EVAL})  # of the last step's weights, beside their average
    assert beside == {
        name.replace("eval/", "eval_raw/"): v for name, v in writers.numbers_of("eval", {"step": 4, **EVAL}).items()
    }
    assert writers.numbers_of("nonfinite", {"where": "epoch 0"}) == writers.numbers_of("train", {"loss": 1.0}) == {}


def test_names_and_packages_are_checked(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="train.writers is 'tensorbord'; expected 'tensorboard' or 'wandb'"):
        asked("tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=f"'{name}', whose package is not installed; pip install {name}, or"):
            writers.check([name])
    writers.check([])


def test_a_missing_package_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        run.train(asked("wandb"), tmp_path / "w", "cpu")
    assert not (tmp_path / "w").exists()


def test_records_go_to_wandb_and_a_resumed_run_goes_on_there(tmp_path: Path, wandb: FakeWandB) -> None:
    for step in (0, 3):
        log = RunLog(tmp_path, True)
        log.attach(writers.Writers(asked("wandb"), tmp_path, step, log.warn))
        log.record("train", step=step + 1, **TRAIN)
        log.record("eval", step=step + 1, **EVAL)
        log.record("nonfinite", where="epoch 0 iteration 1", reports=["nan"])
        log.close()
    first, second = wandb.begun
    assert (first["id"], first["resume"]) == (None, None) and (second["id"], second["resume"]) == ("id1", "allow")
    assert first["dir"] == str(tmp_path) and first["config"]["name"] == "stand" and first["project"] == "tpvformer"
    assert "mode" not in first  # WANDB_MODE is the package's own business
    assert wandb.axes[:2] == [("step", None), ("*", "step")]
    assert [values["step"] for values in wandb.logged] == [1, 1, 4, 4]
    assert wandb.logged[2]["train/loss"] == 2.5 and wandb.logged[3]["eval/iou/car"] == 50.0
    assert wandb.finished == 2
    writers.Writers(asked("wandb"), tmp_path, 0, print)
    assert wandb.begun[2]["id"] is None, "a fresh start is another run"


def test_a_writer_that_fails_does_not_end_the_run(tmp_path: Path, wandb: FakeWandB) -> None:
    said: List[str] = []
    out = writers.Writers(asked("wandb"), tmp_path, 0, said.append)
    wandb.broken = OSError("no space\nleft")
    for step in (1, 2):
        out.record("train", {"step": step, **TRAIN})
    out.close()
    assert said == ["wandb failed and is disabled for the rest of this run: no space left"]
    with pytest.raises(ConfigError, match=r"wandb cannot be started \(no space left\); log in with `wandb login`, or"):
        writers.Writers(asked("wandb"), tmp_path, 0, said.append)


def test_a_run_of_many_steps_reaches_the_writer_and_a_measurement_does_not(tmp_path: Path, wandb: FakeWandB) -> None:
    config = tiny_config(write_tiny(tmp_path / "set", (40, 50)), epochs=1, writers=("wandb",))
    run.train(config, tmp_path / "speed", "cpu", max_steps=1)
    assert not wandb.begun
    run.train(config, tmp_path / "w", "cpu")
    assert [(v["step"], "eval/loss" in v) for v in wandb.logged] == [(1, False), (2, False), (2, True)]
    assert wandb.finished == 1


def test_tensorboard_hides_what_was_written_after_the_step_that_a_run_goes_on_from(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, losses in ((0, (5.0, 4.0, 9.0)), (2, (3.0, 2.0))):
        out = writers.Writers(asked("tensorboard"), tmp_path, start, pytest.fail)
        for step, loss in enumerate(losses, start + 1):
            out.record("train", {"step": step, "loss": loss})
        out.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]
