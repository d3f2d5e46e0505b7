"""Samples without a scan: they can be predicted, also in a batch with others, and they teach nothing."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Sequence

import numpy as np
import pytest
import torch
from engine_tools import CPU, tiny_config, tiny_model
from tiny_nuscenes import write_tiny

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.voxels import voxelize as voxelize_module
from tpvformer.engine import train as run
from tpvformer.engine.evaluation import checkpoint_scores as score
from tpvformer.engine.forward import predict
from tpvformer.engine.losses import sample_losses
from tpvformer.errors import DataError
from tpvformer.model import TPVFormer
from tpvformer.predict.encoded_frame import predict_frame, predict_scene

pytestmark = pytest.mark.usefixtures("quick")


def blind(root: Path, without: Sequence[int], points: Sequence[int] = (50, 70, 60, 40)) -> Config:
    """A tiny set whose samples ``without`` have no scan."""
    config = tiny_config(write_tiny(root, points), epochs=1)
    path = Path(config.data.val_infos)
    stored = pickle.loads(path.read_bytes())  # noqa: S301 - a file that this test has just written
    for i in without:
        stored["infos"][i]["lidar_path"] = ""
    path.write_bytes(pickle.dumps(stored, protocol=2))
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return blind(tmp_path_factory.mktemp("set"), [1])


def val_set(config: Config, require_labels: bool = True) -> FrameDataset:
    return FrameDataset(config.data, config.model.grid, "val", 0, require_labels)


@pytest.mark.parametrize("kernel", [True, False])
def test_no_points_become_no_voxels(config: Config, monkeypatch, kernel: bool) -> None:
    if not kernel:
        monkeypatch.setattr(voxelize_module, "_kernel", lambda: None)
    sample = val_set(config)[1]
    assert sample.grid_index.shape == sample.voxel_coords.shape == (0, 3)
    assert sample.point_labels.shape == sample.point2voxel.shape == (0,)
    assert (sample.voxel_labels == config.data.fill_label).all()


def test_a_neighbour_without_points_changes_nothing(config: Config) -> None:
    """Logits, loss and gradients of a sample alone and beside one that has no scan."""
    data, found = val_set(config), []
    for indices in ((0,), (0, 1), (1,)):
        model = tiny_model()
        batch = collate([data[i] for i in indices], 0)
        prediction = predict(model, batch, config)
        losses = sample_losses(prediction, batch, config.loss, config.data)
        losses.sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((prediction, losses, grads))
    alone, beside, nobody = found
    torch.testing.assert_close(beside[0].point_logits[:1], alone[0].point_logits)
    torch.testing.assert_close(beside[1][0], alone[1][0])
    assert alone[1][0] > 0 and beside[1][1] == nobody[1][0] == 0
    assert nobody[0].point_logits.shape == nobody[0].voxel_logits.shape == (1, 17, 0)
    assert set(nobody[2]) == set(alone[2]) == set(beside[2])  # or several processes would wait for each other
    for name, grad in alone[2].items():
        assert (nobody[2][name] == 0).all(), name
        torch.testing.assert_close(beside[2][name], grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_whole_grid_is_predicted(config: Config) -> None:
    """What stands at occupied voxels does not depend on who asks; without points there is a scene as well."""
    data, model = val_set(config, require_labels=False), tiny_model()
    sample = data[0]
    scene, frame = predict_scene(model, sample, config, CPU), predict_frame(model, data, 0, config, CPU)
    x, y, z = sample.voxel_coords.T.numpy()
    assert scene.voxel_labels.shape == config.model.grid.shape
    assert (scene.voxel_labels[x, y, z] == frame.voxel_labels[x, y, z]).all()
    assert (scene.point_labels == frame.point_labels).all()
    nothing = predict_scene(model, data[1], config, CPU)
    assert nothing.point_labels.shape == (0,)
    assert nothing.voxel_labels.shape == config.model.grid.shape
    with torch.no_grad():
        images = collate([data[1]], 0)
        logits = predict(model.eval(), images, config, dense=True).voxel_logits
    assert (nothing.voxel_labels == logits.argmax(1)[0].numpy()).all()
    assert model.training is False
    free = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_classes=18),
        data=dataclasses.replace(config.data, label_map="nuscenes-noIgnore", fill_label=17),
    )
    nothing = predict_scene(TPVFormer(free.model), data[1], free, CPU)
    assert nothing.voxel_labels.shape == config.model.grid.shape and nothing.voxel_labels.max() <= 17


def test_a_set_where_some_samples_have_no_scan_trains(config: Config, tmp_path: Path) -> None:
    summary = run.train(config, tmp_path / "work", "cpu")
    assert np.isfinite(summary["final_loss"])
    result = score.evaluate_checkpoint(config, tmp_path / "work" / "latest.pth", "cpu")
    assert result.samples == 4


def test_a_set_without_any_scan_is_refused_where_labels_are_needed(tmp_path: Path) -> None:
    config = blind(tmp_path, range(4))
    with pytest.raises(DataError, match=r"infos.pkl: none of its 4 records names a lidar scan"):
        val_set(config)
    assert len(val_set(config, require_labels=False)) == 4
