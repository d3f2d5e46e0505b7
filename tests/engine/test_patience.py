"""A training that ends where its scores no longer rise: when, what it leaves, and how it goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest
from engine_tools import tiny_config
from tiny_nuscenes import write_tiny

from tpvformer.config import Config, ConfigError, DataConfig, override
from tpvformer.engine import loop
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.evaluation.evaluate import Evaluation

pytestmark = pytest.mark.usefixtures("quick")
SCORES = {1: 10.0, 2: 12.0, 3: 11.0, 4: 12.0, 5: 13.0, 6: 13.0, 7: 13.0}  # of each epoch


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Config:
    return tiny_config(write_tiny(tmp_path_factory.mktemp("set"), (40, 60)), epochs=9, patience=2)


@pytest.fixture
def scored(monkeypatch: Any) -> List[int]:
    """The primary metric is what SCORES says; the epochs that were evaluated."""
    real, epochs = loop.evaluate, []

    def evaluate(*given: Any) -> Evaluation:
        epochs.append(given[6])
        return real(*given)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    monkeypatch.setattr(Evaluation, "primary_metric", property(lambda self: ("miou_points", SCORES[epochs[-1]])))
    return epochs


def with_train(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


def said(work_dir: Path) -> List[str]:
    return [line for line in max(work_dir.glob("2*.log")).read_text().splitlines() if "train.patience" in line]


def test_it_ends_and_leaves_the_files_of_a_finished_run(config: Config, scored: List[int], tmp_path: Path) -> None:
    summary = run.train(config, tmp_path, "cpu")
    assert scored == [1, 2, 3, 4]
    assert json.loads((tmp_path / "summary.json").read_text())["stopped_early"] is True
    assert (summary["epochs"], summary["best_epoch"], summary["best_val_leading"]) == (4, 2, 12.0)
    (line,) = said(tmp_path)
    assert line.endswith(
        "the training ends after 4 of 9 epochs: 2 without a better score than that of epoch 2 (train.patience)"
    )
    assert {p.name for p in tmp_path.glob("*.pth")} == {f"epoch_{n}.pth" for n in range(1, 5)} | {
        "latest.pth",
        "best.pth",
    }
    assert store.read(tmp_path / "best.pth")["epoch"] == 2

    # the same command again evaluates the last epoch again, and counts it once
    again = run.train(config, tmp_path, "cpu")
    assert scored[4:] == [4] and len(said(tmp_path)) == 1
    assert (again["epochs"], again["best_epoch"], again["stopped_early"]) == (4, 2, True)

    # with more patience it goes on, and a better score begins the count anew
    more = run.train(with_train(config, patience=3, epochs=7), tmp_path, "cpu")
    assert scored[5:] == [5, 6, 7] and (more["best_epoch"], more["stopped_early"]) == (5, False)


@pytest.mark.parametrize("patience", [0, 3])
def test_it_does_not_end_before(config: Config, scored: List[int], tmp_path: Path, patience: int) -> None:
    summary = run.train(with_train(config, epochs=4, patience=patience), tmp_path, "cpu")
    assert scored == [1, 2, 3, 4] and summary["stopped_early"] is False and not said(tmp_path)


def test_an_interrupted_evaluation_is_counted_when_it_is_repeated(
    config: Config, scored: List[int], tmp_path: Path, monkeypatch: Any
) -> None:
    real: Callable[[Any], Evaluation] = loop.evaluate_epoch

    def interrupted(job: Any) -> Evaluation:
        if job.progress.epoch == 4:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(loop, "evaluate_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train(config, tmp_path, "cpu")
    monkeypatch.setattr(loop, "evaluate_epoch", real)
    assert run.train(config, tmp_path, "cpu")["epochs"] == 4
    assert scored == [1, 2, 3, 4] and len(said(tmp_path)) == 1


def test_a_file_of_an_older_version_begins_the_count(config: Config, scored: List[int], tmp_path: Path) -> None:
    """Such a run had no patience to lose: its epochs so far say nothing."""
    run.train(with_train(config, epochs=3, patience=0), tmp_path / "old", "cpu")
    content: Dict[str, Any] = store.read(tmp_path / "old" / "epoch_3.pth")
    del content["best_epoch"]
    path = store.write(tmp_path, "epoch_3.pth", content)
    summary = run.train(with_train(config, patience=2, epochs=9), tmp_path / "new", "cpu", resume_from=path)
    assert scored == [1, 2, 3, 4, 5, 6, 7]  # 12 at epoch 4 is no better, 13 at epoch 5 is
    assert (summary["epochs"], summary["best_epoch"]) == (7, 5)


@pytest.mark.parametrize(
    ("epoch", "best", "samples", "evaluated", "patience", "ends"),
    [
        (4, 2, 0, True, 2, True),
        (5, 2, 0, True, 2, True),
        (3, 2, 0, True, 2, False),
        (4, 2, 0, True, 0, False),
        (4, 2, 8, True, 2, False),  # within an epoch
        (4, 2, 0, False, 2, False),  # the last one is not scored yet
        (2, 0, 0, True, 2, True),  # no score at all
    ],
)
def test_when(epoch: int, best: int, samples: int, evaluated: bool, patience: int, ends: Optional[bool]) -> None:
    progress = Progress(epoch=epoch, best_epoch=best, samples=samples, evaluated=evaluated)
    assert progress.out_of_patience(patience) is ends


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="train.patience is -1; expected 0 or more"):
        override(tiny_config(DataConfig()), ["train.patience=-1"])
