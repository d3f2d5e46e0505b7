"""A training run from end to end in one process: what it writes, how it resumes, how it stops."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config, val_loader
from tiny_nuscenes import write_tiny

from tpvformer.compat import CheckpointError
from tpvformer.config import Config, DataConfig
from tpvformer.engine import loop as train
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.evaluate import evaluate, permute_cameras
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.logging.meters import LossMeter, StepClock
from tpvformer.errors import ConfigError, NonFiniteLoss

pytestmark = pytest.mark.usefixtures("quick")
TRAIN_LINE = re.compile(
    r"\[TRAIN\] Epoch \d+ Iter \d+/\d+: Loss: \d+\.\d{3} \(\d+\.\d{3}\), grad_norm: \d+\.\d, "
    r"lr: \d\.\d{7}, time: \d+\.\d{3} \(\d+\.\d{3}\)$"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return write_tiny(tmp_path_factory.mktemp("set"), POINTS)


COLUMNS = ("began_s", "waited_s", "computed_s")


@pytest.fixture(scope="module")
def finished(data: DataConfig, tmp_path_factory, quick) -> Path:
    """The work dir of a run of two epochs."""
    work_dir = tmp_path_factory.mktemp("finished")
    run.train(tiny_config(data), work_dir, "cpu")
    return work_dir


def metrics(work_dir: Path, kind: str) -> List[Dict[str, Any]]:
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == kind]


def log_lines(work_dir: Path) -> List[str]:
    newest = max(work_dir.glob("2*.log"))
    return [line.split(" - ", 3)[3] for line in newest.read_text().splitlines()]


def weights(path: Path) -> Dict[str, torch.Tensor]:
    return store.read(path)["state_dict"]


def test_a_run_leaves_its_files(finished: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "summary.json", "latest.pth", "best.pth", "epoch_1.pth", "epoch_2.pth"} < {
        p.name for p in finished.iterdir()
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["world_size"], summary["batch_size"], summary["global_batch"]) == (1, 1, 1)
    assert summary["global_iter"] == summary["steps"] == 14
    assert 0 < summary["measured_steps"] < 14
    assert summary["samples_per_s"] == pytest.approx(1e3 / summary["step_time_ms"])
    best = max(r["pts"]["miou"] for r in metrics(finished, "eval"))
    assert summary["best_val_miou_pts"] == store.read(finished / "best.pth")["best_val_miou_pts"] == best
    assert summary["final_loss"] == metrics(finished, "train")[-1]["loss"]
    assert summary["seed"] == 0


def test_the_timeline_tells_waiting_from_computing(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "timeline.csv").open()))
    assert [(int(r["epoch"]), int(r["step"])) for r in rows] == [(i // 7, i + 1) for i in range(14)]
    began, waited, computed = (np.array([float(r[name]) for r in rows]) for name in COLUMNS)
    assert (np.diff(began) >= (waited + computed)[:-1] - 1e-3).all() and (waited >= 0).all() and (computed > 0).all()
    share = json.loads((finished / "summary.json").read_text())["waiting_share"]
    assert share == pytest.approx(waited.sum() / (waited + computed).sum(), abs=0.01)
    assert f"{100 - 100 * share:.1f} % of the steps' time went by computing" in "".join(log_lines(finished))


def test_log_lines_keep_the_known_form(finished: Path) -> None:
    lines = log_lines(finished)
    assert sum(bool(TRAIN_LINE.match(line)) for line in lines) == 14
    assert any(re.match(r"\[EVAL\] Epoch 1 Iter 0: Loss: \d+\.\d{3} \(\d+\.\d{3}\)$", line) for line in lines)
    assert sum("while the best val miou pts is" in line for line in lines) == 2
    assert any("seed 0" in line for line in lines)
    first = max(finished.glob("2*.log")).read_text().splitlines()[0]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - tpvformer - INFO - tiny on 1 x cpu", first)


def test_the_parts_of_the_loss_add_up_to_it(data: DataConfig, tmp_path: Path) -> None:
    """At each printed step, and in the means since the epoch began; the line has the sum alone."""
    config = tiny_config(data, epochs=1, accumulate=2)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, ce_weight=3.0, lovasz_weight=0.5))
    run.train(config, tmp_path, "cpu")
    steps = metrics(tmp_path, "train")
    assert len(steps) == 3 and not any("lovasz" in line for line in log_lines(tmp_path))
    for i, record in enumerate(steps, start=1):
        assert list(record["parts"]) == list(record["mean_parts"]) == ["ce", "lovasz"]
        assert sum(record["parts"].values()) == pytest.approx(record["loss"], rel=1e-6)
        assert sum(record["mean_parts"].values()) == pytest.approx(record["mean_loss"], rel=1e-6)
        mean = sum(step["parts"]["ce"] for step in steps[:i]) / i
        assert record["mean_parts"]["ce"] == pytest.approx(mean, rel=1e-12)


def test_learning_rate_of_each_step(finished: Path) -> None:
    rates = [r["lr"] for r in metrics(finished, "train")]
    assert rates[:2] == [1e-4, 1e-4]
    assert rates[2] == pytest.approx(1e-4 + 0.5 * (1e-3 - 1e-4))
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_resuming_repeats_an_uninterrupted_run(finished: Path, data: DataConfig, tmp_path: Path, monkeypatch) -> None:
    config = tiny_config(data)
    real, calls = train.evaluate_epoch, []

    def die_after_first_epoch(job):
        calls.append(job)
        if len(calls) == 1:
            raise KeyboardInterrupt  # saved, not yet evaluated
        return real(job)

    monkeypatch.setattr(train, "evaluate_epoch", die_after_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        run.train(config, tmp_path, "cpu")
    assert not (tmp_path / "summary.json").exists()
    run.train(config, tmp_path, "cpu")
    assert [r["epoch"] for r in metrics(tmp_path, "eval")] == [1, 2]
    for (name, a), b in zip(weights(tmp_path / "latest.pth").items(), weights(finished / "latest.pth").values()):
        assert torch.equal(a, b), name
    ours, theirs = (json.loads((d / "summary.json").read_text()) for d in (tmp_path, finished))
    assert ours["best_val_miou_pts"] == theirs["best_val_miou_pts"]
    assert ours["evaluation"] == theirs["evaluation"]


def test_two_deterministic_runs_are_equal(data: DataConfig, tmp_path: Path, monkeypatch) -> None:
    """With the kernels that train, not the plain operations, on two threads."""
    monkeypatch.delenv("TPVFORMER_OPS")
    config = tiny_config(data, epochs=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1))
    torch.set_num_threads(2)
    try:
        for name in "ab":
            run.train(config, tmp_path / name, "cpu", deterministic=True)
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
    a, b = ([(r["loss"], r["grad_norm"]) for r in metrics(tmp_path / name, "train")] for name in "ab")
    assert a == b and len(a) == 7
    first, second = (weights(tmp_path / name / "latest.pth") for name in "ab")
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
    assert any("deterministic algorithms" in line for line in log_lines(tmp_path / "a"))


def test_a_finished_run_is_evaluated_again_and_says_so(finished: Path, data: DataConfig, tmp_path: Path) -> None:
    for name in ("epoch_2.pth", "summary.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "latest.pth").symlink_to("epoch_2.pth")
    before = json.loads((finished / "summary.json").read_text())
    after = run.train(tiny_config(data), tmp_path, "cpu")
    assert sum("all 2 epochs are done already" in line for line in log_lines(tmp_path)) == 1
    assert after["evaluation"] == before["evaluation"]
    assert after["samples_per_s"] is after["final_loss"] is None
    assert after["best_val_miou_pts"] == before["best_val_miou_pts"]


def test_speed_runs_are_bounded_and_leave_no_checkpoint(finished: Path, data: DataConfig, tmp_path: Path) -> None:
    summary = run.train(tiny_config(data), tmp_path, "cpu", max_steps=9)
    assert summary["steps"] == 9
    assert summary["evaluation"] is summary["best_val_miou_pts"] is None
    assert not list(tmp_path.glob("*.pth"))
    ours, full = ([r["lr"] for r in metrics(d, "train")] for d in (tmp_path, finished))
    assert ours == full[:9]


def test_three_batches_a_step_equal_one_batch_of_three(data: DataConfig, tmp_path: Path) -> None:
    losses = []
    for batch, accumulate in ((3, 1), (1, 3)):
        config = tiny_config(dataclasses.replace(data, batch_size=batch), accumulate=accumulate, epochs=1)
        work_dir = tmp_path / f"{batch}"
        run.train(config, work_dir, "cpu", max_steps=2)
        losses.append([(r["loss"], r["grad_norm"]) for r in metrics(work_dir, "train")])
    assert len(losses[0]) == 2
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5)


def test_bf16_runs_the_image_network_only(data: DataConfig, tmp_path: Path) -> None:
    config = tiny_config(data, precision="bf16", epochs=1)
    summary = run.train(config, tmp_path, "cpu", max_steps=1)
    assert summary["precision"] == "bf16"
    assert run.build_model(config, CPU).image_autocast is torch.bfloat16


def test_a_loss_that_is_no_number_stops_the_run(data: DataConfig, tmp_path: Path, monkeypatch) -> None:
    real, seen = train.total_loss, []

    def poisoned(prediction, batch, *args):
        seen.append(batch.tokens)
        return real(prediction, batch, *args) * (float("nan") if len(seen) == 3 else 1)

    monkeypatch.setattr(train, "total_loss", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"nan.* at epoch 0 iteration 2, samples sample\d:") as caught:
        run.train(tiny_config(data), tmp_path, "cpu")
    assert seen[2][0] in str(caught.value)
    assert len(seen) == 3
    assert not (tmp_path / "summary.json").exists()


def test_losses_read_in_bulk_find_the_first_bad_one() -> None:
    watch = LossMeter(World())
    for i, value in enumerate((1.0, float("inf"), float("nan"))):
        watch.add(f"iteration {i}", [f"token{i}"], torch.tensor(value))
    with pytest.raises(NonFiniteLoss, match="inf at iteration 1, samples token1;"):
        watch.read()


def test_user_mistakes_are_named(data: DataConfig, tmp_path: Path) -> None:
    config = tiny_config(data)
    with pytest.raises(ConfigError, match="train.load_from"):
        run.train(tiny_config(data, load_from=str(tmp_path / "no.pth")), tmp_path / "a", "cpu")
    with pytest.raises(ConfigError, match="accumulate is 8"):
        run.train(tiny_config(data, accumulate=8), tmp_path / "b", "cpu")
    with pytest.raises(CheckpointError, match=r"no\.pth"):
        run.train(config, tmp_path / "c", "cpu", resume_from=tmp_path / "no.pth")
    with pytest.raises(ConfigError, match="'gpu' is unknown"):
        run.train(config, tmp_path / "d", "gpu")


def test_weights_of_another_run_can_be_started_from(finished: Path, data: DataConfig, tmp_path: Path) -> None:
    config = tiny_config(data, load_from=str(finished / "best.pth"))
    run.train(config, tmp_path / "same", "cpu", max_steps=1)
    assert any("tensors loaded" in line for line in log_lines(tmp_path / "same"))
    free = dataclasses.replace(
        config,
        data=dataclasses.replace(data, label_map="nuscenes-noIgnore", fill_label=17),
        model=dataclasses.replace(config.model, num_classes=18),
        loss=dataclasses.replace(config.loss, lovasz_input="voxel"),
    )
    run.train(free, tmp_path / "free", "cpu", max_steps=1)
    said = [line for line in log_lines(tmp_path / "free") if "another number of classes" in line]
    assert said == [
        "  2 start afresh, the file has another number of classes: aggregator.classifier.weight, "
        "aggregator.classifier.bias"
    ]
    frozen = dataclasses.replace(free, train=dataclasses.replace(free.train, freeze=("aggregator",)))
    with pytest.raises(ConfigError, match="last layer starts afresh and has to learn; leave aggregator out of train"):
        run.train(frozen, tmp_path / "frozen", "cpu", max_steps=1)


def evaluation(config: Config, loader, change=None):
    model = run.build_model(config, CPU)
    return evaluate(model, loader, config, World(), CPU, RunLog(None, False), change=change)


def test_scores_do_not_depend_on_the_batch_size(data: DataConfig) -> None:
    configs = [tiny_config(dataclasses.replace(data, batch_size=b)) for b in (1, 3)]
    one, three = (evaluation(c, val_loader(c)) for c in configs)
    assert one.pts == three.pts
    assert one.vox == three.vox
    assert one.loss == pytest.approx(three.loss, abs=1e-6)
    assert one.samples == 7


def test_occupancy_is_scored_from_dense_voxels(data: DataConfig) -> None:
    base = tiny_config(data)
    config = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, label_map="nuscenes-noIgnore", fill_label=17),
        model=dataclasses.replace(base.model, num_classes=18),
        loss=dataclasses.replace(base.loss, lovasz_input="voxel"),
    )
    result = evaluation(config, val_loader(config))
    assert sum(result.vox.seen) == sum(result.pts.seen) > 0


def test_a_rank_that_skips_samples_is_noticed(data: DataConfig) -> None:
    config = tiny_config(data)
    with pytest.raises(RuntimeError, match="4 samples were evaluated, the data set has 7"):
        evaluation(config, val_loader(config, rank=0, size=2))


def test_exchanged_cameras(data: DataConfig) -> None:
    config = tiny_config(data)
    batch = next(iter(val_loader(config)))
    assert torch.equal(permute_cameras(batch).grid2img[:, 1], batch.grid2img[:, 0])
    assert evaluation(config, val_loader(config), permute_cameras).loss != evaluation(config, val_loader(config)).loss


def test_clock_leaves_out_warm_up_and_first_steps_of_epochs(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tpvformer.engine.logging.meters.time.perf_counter", lambda: now[0])
    clock = StepClock(warmup=2)
    for epoch in ((9, 9, 1, 1), (50, 2, 2)):
        clock.start_epoch()
        for seconds in epoch:
            asked, now[0] = now[0], now[0] + seconds / 2
            clock.data_ready(asked)
            now[0] += seconds / 2
            clock.lap()
        now[0] += 1000  # evaluation
    laps = clock.recent()
    assert [(lap.waited, lap.spent) for lap in laps] == [(s / 2, s) for s in (9, 9, 1, 1, 50, 2, 2)]
    assert [lap.began for lap in laps] == [0, 9, 18, 19, 1020, 1070, 1072]
    assert clock.recent() == [] and clock.waiting_share == 0.5
    assert clock.result() == (1.5, 4, 7)
    assert StepClock(warmup=3).result() == (None, 0, 0)
    assert StepClock(warmup=3).waiting_share is None
