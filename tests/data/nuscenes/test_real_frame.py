"""One real nuScenes key frame: calibration, counts and the command. Needs TPVFORMER_REAL_DATA (.../nuscenes_real)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tpvformer.commands import check_geometry
from tpvformer.compat import load_config
from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.images.preprocess import network_images
from tpvformer.data.loader import collate
from tpvformer.errors import DataError
from tpvformer.geometry import project
from tpvformer.model import TPVFormer

REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))
INFOS = REAL / "infos" / "nuscenes_infos_2samples.pkl"
pytestmark = pytest.mark.skipif(
    not os.environ.get("TPVFORMER_REAL_DATA") or not INFOS.is_file(),
    reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real",
)


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((REAL / "sample" / "projection_counts.json").read_text())


@pytest.fixture(scope="module")
def dataset() -> FrameDataset:
    cfg = DataConfig(root=str(REAL / "sample"), val_infos=str(INFOS))
    return FrameDataset(cfg, GridConfig(), "val", seed=0, require_labels=False)


def test_points_fall_where_they_were_recorded(dataset, expected):
    frame = dataset.load_frame(0)
    errors = []
    for name, matrix in zip(frame.camera_names, frame.lidar2img):
        pixels, depth = project(frame.points, matrix)
        for point in expected["golden_points"][name]:
            i = point["index"]
            assert frame.points[i] == pytest.approx(point["xyz"], abs=1e-6)
            errors.append(np.abs(pixels[i] - [point["u"], point["v"]]).max())
            assert depth[i] == pytest.approx(point["depth"], abs=1e-6)
    assert len(errors) == 30
    assert max(errors) < 0.05


def test_calibration_is_that_of_the_tables(dataset):
    stored = json.loads((REAL / "sample" / "calibration.json").read_text())
    assert dataset.load_frame(0).token in json.dumps(stored)


def test_check_geometry_counts_and_paints(tmp_path, capsys, expected):
    parser = argparse.ArgumentParser()
    check_geometry.add_arguments(parser)
    out = tmp_path / "folder" / "geometry.png"
    command = ["--infos", str(INFOS), "--root", str(REAL / "sample"), "--out", str(out)]
    args = parser.parse_args(command)
    assert args.run(args) == 0
    printed = capsys.readouterr().out
    for name, count in expected["points_in_image"].items():
        assert f"{name:<16} {count:>6} points" in printed
    assert f"any camera {expected['seen_by_any']}, by two or more {expected['seen_by_two_or_more']}" in printed
    picture = cv2.imread(str(out))
    assert picture is not None
    assert picture.shape == (724, 1928, 3)


def test_sample_is_ready_for_the_model(dataset):
    sample = dataset[0]
    images = network_images(collate([sample], 0), DataConfig())
    assert images.shape == (1, 6, 3, 928, 1600)
    assert images[:, :, :, 900:].abs().max() == 0
    assert len(sample.grid_index) == 34688
    assert sample.voxel_labels.shape == (200, 200, 16)


def test_absent_sample_is_named(dataset):
    with pytest.raises(DataError, match=r"sample fd8420396768425eabec9bdddf7e64b6: .*LIDAR_TOP.* is missing"):
        dataset.load_frame(1)


def test_real_infos_of_mmdetection3d_are_read():
    records = load_infos(REAL / "infos" / "nuscenes_infos_mini_val.pkl")
    assert len(records) == 81
    assert records[0].lidar2img.shape == (6, 4, 4)


def test_whole_pipeline_to_logits():
    """Six real images at a quarter of their size through the dim64 model: finite logits that see the images."""
    config = load_config(str(Path(__file__).parents[3] / "config" / "tpv_lidarseg_dim64.py"))
    cfg = dataclasses.replace(config.data, root=str(REAL / "sample"), val_infos=str(INFOS), image_scale=0.25)
    sample = FrameDataset(cfg, config.model.grid, "val", seed=0, require_labels=False)[0]
    torch.manual_seed(0)
    model = TPVFormer(config.model).eval()
    voxels, images = sample.voxel_coords[None], network_images(collate([sample], 0), cfg)
    with torch.no_grad():
        out = model(images, sample.grid2img[None], voxels.float(), voxels=voxels)
        blind = model(torch.zeros_like(images), sample.grid2img[None], voxels.float(), voxels=voxels)
    assert out.voxel_logits.shape == out.point_logits.shape == (1, 17, len(sample.voxel_coords))
    assert torch.isfinite(out.point_logits).all()
    assert (out.point_logits - blind.point_logits).abs().max() > 1e-3
