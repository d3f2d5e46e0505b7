"""Training of boxes, from end to end in one process and in two: joint, alone, and with frozen planes."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch
from engine_tools import CPU, POINTS, ROOT, processes, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.compat.checkpoints import export_reference
from tpvformer.config import Config, DataConfig, DetectionConfig, override
from tpvformer.data.dataset import open_frames
from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.data.loader import make_loader
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.baselines import mean_places, run_controls
from tpvformer.engine.evaluation.evaluate import evaluate
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import CheckpointError, DataError
from tpvformer.model import TPVFormer
from tpvformer.untrusted.pickle import load_pickle

pytestmark = pytest.mark.usefixtures("quick")
SUMS = """
import sys
from pathlib import Path
import torch
from tpvformer.compat import load_config
from tpvformer.engine.train import train
torch.set_num_threads(1)
train(load_config(sys.argv[1]), Path(sys.argv[2]), "cpu")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> DataConfig:
    """A tiny set whose info file has boxes, of another number in each sample."""
    cfg = write_tiny(tmp_path_factory.mktemp("set"), POINTS[:4])
    content, rng = load_pickle(Path(cfg.train_infos)), np.random.RandomState(1)
    for i, info in enumerate(content["infos"]):
        count = 2 * i + 1
        sizes = rng.uniform((1.5, 4, 1.4), (2.2, 5, 2), (count, 3))  # width, length, height
        places = np.c_[rng.uniform(-45, 45, (count, 2)), rng.uniform(-2, 1, count)]
        info["gt_boxes"] = np.c_[places, sizes, rng.uniform(-3, 3, count)]
        info["gt_names"] = np.array(["car", *rng.choice(DETECTION_CLASSES, count - 1)])
        info["gt_velocity"] = rng.uniform(-5, 5, (count, 2))
        info["gt_velocity"][0] = np.nan if i == 0 else (2, 1)  # of a car; the first is unknown
        info["num_lidar_pts"] = np.full(count, 4)
    Path(cfg.train_infos).write_bytes(pickle.dumps(content, protocol=2))
    return cfg


def boxes_config(data: DataConfig, **train: Any) -> Config:
    config = tiny_config(data, epochs=1, **train)
    head = DetectionConfig(scale=2, channels=8, group_channels=8, blocks=1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, detection=head),
        loss=dataclasses.replace(config.loss, detection=1.0),
    )


def weights(work_dir: Path) -> Dict[str, torch.Tensor]:
    return store.read(work_dir / "latest.pth")["state_dict"]


def test_joint_training_evaluates_and_resumes_to_the_bit(data: DataConfig, tmp_path: Path) -> None:
    config = override(boxes_config(data), ["train.epochs=2"])
    outcome = run.train(config, tmp_path / "whole", "cpu")
    assert outcome["steps"] == 8 and np.isfinite(outcome["final_loss"])
    run.train(config, tmp_path / "resumed", "cpu", resume_from=tmp_path / "whole" / "epoch_1.pth")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert any(name.startswith("detection.") for name in first)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_two_processes_train_as_one_with_twice_the_batch(data: DataConfig, tmp_path: Path) -> None:
    """Boxes of unequal number in the two samples of a step: their sum counts, not each process's."""
    single = boxes_config(dataclasses.replace(data, batch_size=2))
    run.train(single, tmp_path / "one", "cpu")
    file = write_config(tmp_path / "config.py", boxes_config(data))
    processes(2, SUMS, str(file), str(tmp_path / "two"), PYTHONPATH=str(ROOT))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=3e-5), name


def test_the_head_alone_learns_on_finished_weights(data: DataConfig, tmp_path: Path) -> None:
    run.train(tiny_config(data, epochs=1), tmp_path / "segmentation", "cpu")
    config = boxes_config(
        data,
        load_from=str(tmp_path / "segmentation" / "latest.pth"),
        freeze=("backbone", "neck", "encoder", "aggregator"),
    )
    run.train(config, tmp_path / "boxes", "cpu")
    before, after = weights(tmp_path / "segmentation"), weights(tmp_path / "boxes")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(name.startswith("detection.") for name in set(after) - set(before))


def test_boxes_alone_need_no_labels(data: DataConfig, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(data.root, bare, ignore=shutil.ignore_patterns("lidarseg*"))
    places = {"root": str(bare), "train_infos": str(bare / "infos.pkl"), "val_infos": str(bare / "infos.pkl")}
    config = boxes_config(dataclasses.replace(data, **places))
    with pytest.raises(DataError):
        run.train(config, tmp_path / "joint", "cpu")
    outcome = run.train(override(config, ["loss.segmentation=0"]), tmp_path / "alone", "cpu")
    assert np.isfinite(outcome["final_loss"])


def test_controls_of_boxes(data: DataConfig, capsys: pytest.CaptureFixture) -> None:
    """The mean places by hand, and their scores beside those of the model."""
    config = boxes_config(data)
    frames = open_frames(config, "train")
    known = [frames.boxes(i) for i in range(len(frames))]
    cars = np.concatenate([boxes.centres[boxes.labels == 0] for boxes in known if boxes is not None])
    placed = mean_places(frames)
    assert placed.labels[0] == 0 and np.allclose(placed.centres[0], cars.mean(0))
    fast = np.concatenate([boxes.velocities[boxes.labels == 0] for boxes in known if boxes is not None])
    assert np.isnan(fast).any() and np.allclose(placed.velocities[0], np.nanmean(fast, 0))
    model, loader, log = run.build_model(config, CPU), make_loader(frames, data, 0, 1, False, 0), RunLog(None, True)
    real = evaluate(model, loader, config, World(), CPU, log)
    outcome = run_controls(model, loader, frames, frames, config, World(), CPU, log, real)
    log.close()
    assert outcome["model_nds"] == real.metrics["nds"].value
    assert {"cameras_exchanged_map", "mean_places_nds", "mean_places_map"} < set(outcome)
    assert sum("map      of " in line for line in capsys.readouterr().out.splitlines()) == 3


def test_a_set_without_boxes_trains_segmentation_alone(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "set", POINTS[:2])
    with pytest.raises(DataError, match=r"2 of 2 records .* have no boxes.*leave out model.detection"):
        run.train(boxes_config(data), tmp_path / "boxes", "cpu")
    run.train(tiny_config(data, epochs=1), tmp_path / "points", "cpu")


def test_the_reference_has_no_names_for_the_head() -> None:
    with pytest.raises(CheckpointError, match="has no head for boxes"):
        export_reference(TPVFormer(boxes_config(DataConfig()).model))
    assert export_reference(tiny_model())
