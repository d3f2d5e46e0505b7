"""Boxes in an evaluation: truth of the batches, poses of the set, any number of processes; what leads, what is refused.

The predictions come from a stand-in for the decoding.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import List, Optional

import numpy as np
import pytest
from detection_tools import SIZES
from engine_tools import CPU, processes, tiny_config, tiny_model, val_loader
from tiny_nuscenes import write_tiny

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.types import Batch
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation import boxes as box_scores
from tpvformer.engine.evaluation.evaluate import Evaluation, evaluate, report, write_scores
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.logging.writers import numbers_of
from tpvformer.errors import DataError
from tpvformer.labels import class_names, classes_of
from tpvformer.untrusted.run_files import check_record
from tpvformer.viz.report.scores import class_table, metric_table

pytestmark = pytest.mark.usefixtures("quick")


def some_boxes(seed: int, truth: bool) -> Boxes:
    """Ten boxes; the predictions of a seed are near its truth."""
    rng = np.random.RandomState(seed)
    centres = np.float32(np.append(rng.uniform(-20, 20, (10, 2)), rng.uniform(-1, 1, (10, 1)), 1))
    moved = np.random.RandomState(seed + 1000)
    velocities = np.random.RandomState(seed + (2000 if truth else 3000)).normal(0, 2, (10, 2))
    return Boxes(
        centres if truth else centres + np.float32(moved.normal(0, 0.7, (10, 3))),
        np.tile(np.float32(SIZES), (10, 1)),
        np.zeros(10, np.float32),
        np.float32(velocities),
        np.arange(10),
        None if truth else np.float32(moved.uniform(0, 1, 10).round(1)),
        attributes=np.full(10, 6),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return tiny_config(write_tiny(tmp_path_factory.mktemp("set"), (40, 90, 60, 75, 50)))


def evaluated(config: Config, monkeypatch, unknown: int = 0, log: Optional[RunLog] = None) -> Evaluation:
    """Evaluate with the truth and predictions of ``some_boxes``; ``unknown`` samples have no truth."""
    loader = val_loader(config)
    data = loader.dataset
    index = {token: i for i, token in enumerate(data.tokens)}
    now: List[str] = []

    def change(batch: Batch) -> Batch:
        now[:] = batch.tokens
        truths: List[Optional[Boxes]] = [
            some_boxes(index[t], True) if index[t] >= unknown else None for t in batch.tokens
        ]
        return dataclasses.replace(batch, boxes=truths)

    monkeypatch.setattr(box_scores, "decoded", lambda *_: [some_boxes(index[t], False) for t in now])
    monkeypatch.setattr(box_scores.BoxTally, "of", classmethod(lambda cls, config, data: cls(config, data)))
    return evaluate(tiny_model(), loader, config, World(), CPU, log or RunLog(None, False), change=change)


def test_boxes_join_the_named_metrics(config: Config, monkeypatch, tmp_path: Path, capsys) -> None:
    log = RunLog(None, True)
    found = evaluated(config, monkeypatch, log=log)
    assert list(found.metrics)[-12:][:2] == ["nds", "map"]
    assert 5 < found.metrics["map"].value < 95
    assert found.primary_metric[0] == "miou_points"
    assert "nds" in repr(found) and "m/s" in repr(found)
    capsys.readouterr()
    report(found, config, log)
    said = capsys.readouterr().out
    assert "mate" in said and "1 - accuracy" in said and "miou_points" in said
    write_scores(tmp_path / "scores.json", found, config)
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["metrics"]["mate"]["unit"] == "m"
    assert set(stored["metrics"]["map"]["ap"]) >= {"car", "traffic_cone"}
    record = {"kind": "eval", "epoch": 1, "step": 3, **stored}
    check_record(record)
    table = metric_table(record)
    assert f"{found.metrics['mate'].value:.3f} m<" in table
    assert class_table([record], classes_of(config.data.label_map))
    assert numbers_of("eval", record)["eval/nds"] == found.metrics["nds"].value


def test_boxes_alone_lead(config: Config, monkeypatch, capsys) -> None:
    found = evaluated(config, monkeypatch)
    assert not found.boxes_lead, "segmentation is trained too"
    alone = dataclasses.replace(found, boxes_lead=True)
    assert alone.primary_metric == ("nds", alone.metrics["nds"].value)
    report(alone, config, RunLog(None, True))
    said = capsys.readouterr().out
    assert "mate" in said and "miou" not in said
    values = alone.as_dict(class_names(config.data.label_map))
    assert values["leading"] == "nds"
    assert numbers_of("eval", {"step": 1, **values})["eval/ap/car"] == alone.metrics["map"].classes["car"]
    segmentation = {name: metric for name, metric in found.metrics.items() if metric.of_class == "iou"}
    assert dataclasses.replace(alone, metrics=segmentation).primary_metric[0] == "miou_points", "a set without boxes"


def test_a_set_without_boxes_and_one_with_some(config: Config, monkeypatch) -> None:
    found = evaluated(config, monkeypatch, unknown=5)
    assert all(metric.of_class == "iou" for metric in found.metrics.values())
    with pytest.raises(DataError, match="2 of 5 samples have no annotated boxes, so detection cannot be scored"):
        evaluated(config, monkeypatch, unknown=2)


def test_where_the_grid_is(config: Config) -> None:
    lidar2ego, ego2global = np.eye(4), np.eye(4)
    lidar2ego[:3, :3] = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]  # nuScenes' lidar looks along its y axis
    lidar2ego[:3, 3] = 0.9, 0, 1.8
    ego2global[:3, 3] = 600, 1600, 0
    data = FrameDataset(config.data, config.model.grid, "val", 0)
    bare = data._records[0]
    cases = [
        ("lidar", lidar2ego, ego2global, ego2global @ lidar2ego, (600, 1600)),
        ("ego", lidar2ego, ego2global, ego2global, (600, 1600)),
        ("lidar", lidar2ego, None, None, (0, -0.9)),
        ("ego", lidar2ego, None, None, (0, 0)),
        ("lidar", None, ego2global, None, (0, 0)),
        ("lidar", None, None, None, (0, 0)),
    ]
    for frame, on_vehicle, in_world, expected, ego in cases:
        data.grid = dataclasses.replace(config.model.grid, frame=frame)
        data._records = [dataclasses.replace(bare, lidar2ego=on_vehicle, ego2global=in_world)]
        found = data.grid2global(0)
        assert (found is None) == (expected is None)
        assert expected is None or np.array_equal(found, expected)
        assert data.ego_place(0) == pytest.approx(ego)


SCORED = """
import json, pickle, sys
import torch
from tpvformer.engine.distributed import collectives
from tpvformer.engine.metrics.detection import DetectionCounts
from tpvformer.engine.metrics.detection_named import detection_metrics
world = collectives.read_world()
collectives.start(world, torch.device("cpu"))
truths, predicted = pickle.load(open(sys.argv[1], "rb"))
counts = DetectionCounts([k // 2 for k in range(len(truths))])
for k in range(world.rank, len(truths), world.size):
    counts.add(k, truths[k], predicted[k])
counts.sum_over_processes()
named = {name: metric.as_dict() for name, metric in detection_metrics(counts.result()).items()}
print("SCORES", json.dumps(named), flush=True)
collectives.stop()
"""


def test_any_number_of_processes_gives_the_same_scores(tmp_path: Path) -> None:
    pair = [[some_boxes(k, truth) for k in range(7)] for truth in (True, False)]
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps(pair))
    said = [
        line
        for size in (1, 3)
        for out in processes(size, SCORED, str(tmp_path / "boxes.pkl"))
        for line in out.splitlines()
        if line.startswith("SCORES")
    ]
    assert len(said) == 4
    assert len(set(said)) == 1, "to the last digit"
    assert json.loads(said[0][7:])["map"]["interval"] is not None
    assert json.loads(said[0][7:])["moving_velocity_error"]["interval"] is not None
