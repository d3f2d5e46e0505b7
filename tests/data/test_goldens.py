"""Voxels, labels, calibration and GridMask against recorded numbers of the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import specified
import torch
from data_tools import Script, frame_of

from tpvformer import labels
from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.images.grid_mask import grid_mask
from tpvformer.data.nuscenes.reader import lidar_to_image
from tpvformer.data.transforms import make_sample
from tpvformer.data.voxels.voxelize import grid_index, occupied_voxels, vote, voxelize

GOLDEN = Path(__file__).parents[1] / "golden_data"
ARRAYS = np.load(GOLDEN / "data_side.npz")
FACTS = json.loads((GOLDEN / "data_side.json").read_text())
RANGE = GridConfig().pc_range


def cases(prefix: str) -> List[str]:
    return sorted(name for name in FACTS if name.startswith(prefix + "/"))


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        ((200, 200, 16), [(99, 99, 9), (198, 198, 14), (0, 199, 15), (119, 59, 5)]),
        ((100, 100, 8), [(49, 49, 4), (98, 98, 6), (0, 99, 7), (59, 29, 2)]),
        ((150, 150, 16), [(74, 74, 9), (148, 148, 14), (0, 149, 15), (89, 44, 5)]),
    ],
)
def test_grid_index_check_values(voxels, expected):
    points = np.array([(0, 0, 0), (51.0, 51.19, 2.9), (-60, 60, 9), (10.3, -20.7, -1.84)], np.float32)
    assert grid_index(points, voxels, RANGE).tolist() == [list(row) for row in expected]


@pytest.mark.parametrize("case", [c for c in cases("vote") if f"{c}/xyz" in ARRAYS])
def test_vote(case):
    voxels, fill = FACTS[case]["grid"], FACTS[case]["fill"]
    index = grid_index(ARRAYS[f"{case}/xyz"], voxels, RANGE)
    assert np.array_equal(index, ARRAYS[f"{case}/grid_ind"])
    cells, row = occupied_voxels(index, voxels)
    assert np.array_equal(cells, np.unique(index, axis=0))  # distinct and in lexicographic order
    assert np.array_equal(cells[row], index)
    grid = vote(ARRAYS[f"{case}/label"], row, cells, voxels, fill)
    assert np.array_equal(np.argwhere(grid != fill), ARRAYS[f"{case}/vox_nonfill_ijk"])
    assert np.array_equal(grid[grid != fill], ARRAYS[f"{case}/vox_nonfill_label"])
    assert np.bincount(grid.ravel(), minlength=18).tolist() == FACTS[case]["histogram"]


@pytest.mark.parametrize("voxels", [(200, 200, 16), (7, 3, 5), (1, 1, 1)])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_kernel_and_numpy_and_specification_agree(monkeypatch, voxels, count):
    rng = np.random.RandomState(count)
    points = rng.uniform(-60, 60, (count, 3)).astype(np.float32)
    points[::3] = np.round(points[::3])  # many a cell, and bounds met exactly
    votes = rng.randint(0, 18, count).astype(np.uint8)
    kernel = voxelize(points, votes, voxels, RANGE, 17)
    monkeypatch.setattr("tpvformer.data.voxels.voxelize._kernel", lambda: None)
    plain = voxelize(points, votes, voxels, RANGE, 17)
    for ours, theirs in zip(kernel, plain):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    if count and max(voxels) > 1:
        index, grid = specified.voxel_labels(points, votes, voxels, RANGE, 17)
        assert np.array_equal(kernel.grid_index, index)
        assert np.array_equal(kernel.labels, grid)


def test_axes_stay_apart():
    index = grid_index(np.array([[-47.9, 39.9, 2.9]], np.float32), (18, 14, 5), (-48, -40, -5, 48, 40, 3))
    assert index.tolist() == [[0, 12, 3]]


def test_votes_of_noise_and_ties():
    voxels = (2, 1, 1)
    cells, row = occupied_voxels(np.array([[0, 0, 0]] * 4 + [[1, 0, 0]] * 2), voxels)
    grid = vote(np.array([0, 0, 5, 4, 9, 3], np.uint8), row, cells, voxels, 17)
    assert grid[:, 0, 0].tolist() == [0, 3]


@pytest.mark.parametrize("case", cases("gridmask"))
def test_grid_mask(case):
    height, width = FACTS[case]["shape"]
    script: Any = Script(FACTS[case]["draws"])
    rows, columns = grid_mask(height, width, script)
    assert not script.left
    keep = rows[:, None] | columns
    expected = np.unpackbits(ARRAYS[case])[: height * width].reshape(height, width).astype(bool)
    assert np.array_equal(keep, expected)


@pytest.mark.parametrize(
    ("seed", "kept"), [(0, 0.843179), (1, 0.649565), (2, 0.658707), (3, 0.735655), (4, 1.0), (5, 0.673774)]
)
def test_grid_mask_check_values(seed, kept):
    rows, columns = grid_mask(928, 1600, np.random.RandomState(seed))
    assert round(float((rows[:, None] | columns).mean()), 6) == kept


@pytest.mark.parametrize("case", cases("labels"))
def test_label_map(case):
    name = case.split("/")[1]
    recorded = {int(k): v for k, v in FACTS[case]["learning_map"].items()}
    assert dict(enumerate(labels.raw_to_class(name))) == recorded
    assert dict(enumerate(labels.class_names(name))) == {int(k): v for k, v in FACTS[case]["names"].items()}
    assert len(labels.RAW_NAMES) == 32
    assert len(labels.COLORS) == 18


def test_unknown_label_map():
    with pytest.raises(ValueError, match="label_map is 'kitti'"):
        labels.class_names("kitti")


def test_lidar2img_from_calibration():
    parts = zip(ARRAYS["calib/rot"], ARRAYS["calib/trans"], ARRAYS["calib/K"])
    ours = np.stack([lidar_to_image(*part) for part in parts])
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, ARRAYS["calib/lidar2img"], rtol=1e-12, atol=1e-9)


def test_sample_holds_what_the_model_needs():
    grid = GridConfig(w=18, h=14, z=5, pc_range=(-48.0, -40.0, -5.0, 48.0, 40.0, 3.0))
    frame = frame_of(ARRAYS["pipe/raw_u8"], ARRAYS["pipe/lidar2img_in"])
    sample = make_sample(frame, DataConfig(fill_label=17), grid, None)
    assert sample.images.shape == (6, 45, 77, 3)
    assert sample.image_shape == (64, 96)
    assert sample.grid2img.dtype == torch.float32
    assert sample.photometric is sample.keep_rows is sample.keep_columns is None
    assert sample.voxel_labels.shape == (18, 14, 5)
    assert sample.voxel_labels.dtype == torch.uint8
    assert torch.equal(sample.voxel_coords[sample.point2voxel], sample.grid_index)
    assert int((sample.voxel_labels != 17).sum()) == len(sample.voxel_coords)
