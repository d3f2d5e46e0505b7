"""Both kinds of dense labels through training, evaluation and several processes; and answers whose scores are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import cast

import pytest
import torch
from counted import answers, counted
from dense_tools import dense_config, write_street
from engine_tools import CPU, processes, val_loader, write_config
from waits import Waits

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.types import Batch
from tpvformer.engine import loop, losses
from tpvformer.engine import train as run
from tpvformer.engine.bench.inputs import random_batch
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.metrics import collect, rays
from tpvformer.engine.metrics.collect import MetricCounts, rows_by_scene
from tpvformer.engine.metrics.named import RING_NAMES
from tpvformer.engine.selfcheck.checks import shrunk
from tpvformer.labels import EMPTY

pytestmark = pytest.mark.usefixtures("quick")
GRID = ("sc_iou", "ssc_miou")
RAYS = ("ray_iou@1", "ray_iou@2", "ray_iou@4", "ray_iou")
POINTS = ("miou_points", "miou_small", "miou_points_reference", "miou_voxels", "miou_voxels_reference")
NAMES = {"occ3d": (*POINTS, *GRID, "occ3d_miou", "occ3d_miou_no_other", *RAYS), "surroundocc": (*POINTS, *GRID, *RAYS)}
COUNT = """
import json, sys
import torch
sys.path.insert(0, sys.argv[2])
from counted import counted
from tpvformer.compat import load_config
from tpvformer.engine.distributed import collectives as distributed
world = distributed.read_world()
distributed.start(world, torch.device("cpu"))
print("RESULT", json.dumps(counted(load_config(sys.argv[1]), world)), flush=True)
distributed.stop()
"""


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    return write_street(tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize("kind", list(NAMES))
def test_two_steps_and_an_evaluation(street: Path, tmp_path: Path, kind: str) -> None:
    config = dense_config(street, kind, val_infos=str(street / "nuscenes_infos_train.pkl"))
    summary = run.train(config, tmp_path, "cpu")
    assert summary["steps"] == 2
    assert summary["final_loss"] > 0
    evaluation = json.loads((tmp_path / "summary.json").read_text())["evaluation"]
    assert (evaluation["samples"], evaluation["scenes"]) == (2, 1)
    assert tuple(evaluation["metrics"]) == NAMES[kind]
    for name, metric in evaluation["metrics"].items():
        assert 0 <= metric["value"] <= 100, name
        assert metric["interval"] is None, "one scene"
        assert tuple(metric["rings"]) == RING_NAMES
    text = max(tmp_path.glob("2*.log")).read_text()
    assert "while the best val miou pts is" in text
    assert all(f" - {name} " in text for name in NAMES[kind])
    leader = {"occ3d": "occ3d_miou", "surroundocc": "ssc_miou"}[kind]
    assert f"while the best val {leader} is {summary['best_val_leading']:.3f}" in text
    assert summary["leading_metric"] == leader
    assert summary["best_val_leading"] == evaluation["metrics"][leader]["value"]
    assert (tmp_path / "best.pth").is_file()


def test_rendering_resumes_to_the_bit(street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rays are drawn from random numbers that a checkpoint holds; the grid is a part of the labels'."""
    config = dense_config(street, "occ3d", val_infos=str(street / "nuscenes_infos_train.pkl"))
    grid = dataclasses.replace(
        config.model.grid, w=8, h=8, z=2, scale_w=4, scale_h=4, pc_range=(-6.4, -6.4, -0.6, 6.4, 6.4, 2.6)
    )
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, grid=grid),
        loss=dataclasses.replace(config.loss, render=10.0, render_rays=16, render_samples=16),
        train=dataclasses.replace(config.train, epochs=1, save_every_steps=1),
    )

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_epoch", die)
        saved, real = [], loop.save_if_due

        def save_once(job: loop.TrainState) -> None:
            real(job)
            saved.append(job.saver.wait())
            die()

        patch.setattr(loop, "save_if_due", save_once)
        with pytest.raises(KeyboardInterrupt):
            run.train(config, tmp_path / "cut", "cpu")
    assert len(saved) == 1
    results = [run.train(config, tmp_path / name, "cpu") for name in ("cut", "whole")]
    assert [r["steps"] for r in results] == [1, 2], "the first goes on after one step"
    cut, whole = (store.read(tmp_path / name / "latest.pth")["state_dict"] for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    plain = dataclasses.replace(config, loss=dataclasses.replace(config.loss, render=0.0))
    assert run.train(plain, tmp_path / "plain", "cpu")["final_loss"] < results[0]["final_loss"]


def test_two_processes_find_the_scores_of_one_on_five_samples(street: Path, tmp_path: Path) -> None:
    config = dense_config(street, "occ3d")
    file = write_config(tmp_path / "dense.py", config)
    expected = json.loads(json.dumps(counted(config, World())))
    assert expected["ray_iou@1"]["interval"][0] < expected["ray_iou@1"]["interval"][1]
    outputs = processes(2, COUNT, str(file), str(Path(__file__).parents[2] / "support"))
    results = [json.loads(line[7:]) for out in outputs for line in out.splitlines() if line.startswith("RESULT ")]
    assert results == [expected, expected], "counts are whole numbers, so the scores are the same to the last bit"


@pytest.fixture(scope="module")
def batch(street: Path) -> Batch:
    """The Occ3D labels of two scenes."""
    config = dense_config(street, "occ3d", batch_size=2)
    batches = list(val_loader(config))
    assert batches[1].tokens == cast(FrameDataset, val_loader(config).dataset).tokens[2:4]
    return batches[1]


def scored(config: Config, batch: Batch, dense: torch.Tensor):
    tally = MetricCounts(config, rows_by_scene(["a", "b"], batch.tokens), True, CPU)
    tally.add(answers(batch, dense), batch)
    tally.sum_over_processes()
    return tally.metrics()


def test_the_truth_scores_a_hundred_and_nothing_scores_zero(street: Path, batch: Batch) -> None:
    config = dense_config(street, "occ3d")
    perfect = scored(config, batch, batch.voxel_labels)
    for name in (*GRID, "occ3d_miou", "occ3d_miou_no_other", *RAYS):
        assert perfect[name].value == 100, name
        assert perfect[name].interval == (100, 100)
        assert {v for v in perfect[name].rings.values() if v is not None} == {100}
    empty = scored(config, batch, torch.full_like(batch.voxel_labels, EMPTY))
    for name in (*GRID, "occ3d_miou", *RAYS):
        assert empty[name].value == 0, name


def test_a_street_shifted_by_a_voxel_keeps_its_rays_at_two_metres(street: Path, batch: Batch) -> None:
    """Forward by 0.4 m: voxels lose much of their overlap, rays at walls across the way little."""
    config = dense_config(street, "occ3d")
    moved = scored(config, batch, batch.voxel_labels.roll(1, dims=1))
    rays = [moved[name].value for name in RAYS[:3]]
    assert None not in rays and rays == sorted(rays)
    assert moved["occ3d_miou"].value < 80


def test_counting_waits_for_nothing(street: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    few = rays.lidar_directions()[::50]
    monkeypatch.setattr(collect, "lidar_directions", lambda: few)
    expected = scored(dense_config(street, "occ3d"), batch, batch.voxel_labels)
    monkeypatch.setattr(rays, "HOUSEKEEPING", 10**6)  # it is for processors alone
    config = dense_config(street, "occ3d")
    tally, said = (
        MetricCounts(config, rows_by_scene(["a", "b"], batch.tokens), True, CPU),
        answers(batch, batch.voxel_labels),
    )
    with Waits() as waits:
        tally.add(said, batch)
    assert waits.found == []
    tally.sum_over_processes()
    assert tally.metrics() == expected


def test_the_mask_decides_what_is_taught(street: Path, batch: Batch) -> None:
    data = dense_config(street, "occ3d").data
    assert batch.voxel_mask is not None
    seen = (batch.voxel_mask & 2) > 0
    taught = losses.taught_labels(batch, data)
    assert torch.equal(taught != 255, seen)
    assert torch.equal(taught[seen], batch.voxel_labels[seen].long())
    everything = losses.taught_labels(batch, dataclasses.replace(data, occupancy_mask=""))
    assert torch.equal(everything, batch.voxel_labels.long())


@pytest.mark.parametrize("kind", list(NAMES))
def test_speed_is_measured_without_labels(street: Path, kind: str) -> None:
    """Random batches have what the configuration reads: masks, the ego frame, classes in every voxel."""
    config = dense_config(street, kind)
    batch = random_batch(config, (96, 64), 500)
    taught = losses.taught_labels(batch, config.data)
    assert (taught == EMPTY).any() and (taught < EMPTY).any()
    assert ((taught == 255).any().item()) == (kind == "occ3d")
    assert batch.ray_lengths == [1]
    small = shrunk(config)
    assert random_batch(small, (96, 64), 500).voxel_labels.shape[1:] == small.model.grid.shape
