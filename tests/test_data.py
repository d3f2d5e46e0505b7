"""Voxels, labels, image pipeline and GridMask against recorded numbers of the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch

from tpvformer import labels
from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.grid_mask import grid_mask
from tpvformer.data.nuscenes import lidar_to_image
from tpvformer.data.transforms import make_sample, network_images, padded_shape, photometric
from tpvformer.data.types import DataError, Frame
from tpvformer.data.voxelize import grid_index, occupied_voxels, vote

GOLDEN = Path(__file__).parent / "golden_data"
ARRAYS = np.load(GOLDEN / "data_side.npz")
FACTS = json.loads((GOLDEN / "data_side.json").read_text())
RANGE = GridConfig().pc_range


def cases(prefix: str) -> List[str]:
    return sorted(name for name in FACTS if name.startswith(prefix + "/"))


class Script:
    """Answers each draw with the next recorded value, whatever is asked for."""

    def __init__(self, draws: List[Any]) -> None:
        self.left = list(draws)

    def _next(self, *_: Any) -> Any:
        return self.left.pop(0)

    rand = randint = uniform = permutation = _next


def frame_of(images: np.ndarray) -> Frame:
    points = np.random.RandomState(3).uniform(-60, 60, (40, 3)).astype(np.float32)
    names = [f"CAM_{i}" for i in range(len(images))]
    return Frame("t", list(images), names, ARRAYS["pipe/lidar2img_in"], points, np.arange(40, dtype=np.uint8) % 17)


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


def test_axes_stay_apart():
    index = grid_index(np.array([[-47.9, 39.9, 2.9]], np.float32), (18, 14, 5), (-48, -40, -5, 48, 40, 3))
    assert index.tolist() == [[0, 12, 3]]


def test_votes_of_noise_and_ties():
    voxels = (2, 1, 1)
    cells, row = occupied_voxels(np.array([[0, 0, 0]] * 4 + [[1, 0, 0]] * 2), voxels)
    grid = vote(np.array([0, 0, 5, 4, 9, 3], np.uint8), row, cells, voxels, 17)
    assert grid[:, 0, 0].tolist() == [0, 3]


@pytest.mark.parametrize("case", cases("photo"))
def test_photometric(case):
    script: Any = Script(FACTS[case]["draws"])
    out = photometric(ARRAYS["pipe/raw_u8"][1], script)
    assert out.dtype == np.float32
    assert not script.left
    np.testing.assert_allclose(out[::2, ::3], ARRAYS[case], atol=1e-4)


@pytest.mark.parametrize(("case", "scale", "atol"), [("pipe/val", 1.0, 0), ("pipe/val_half", 0.5, 1e-4)])
def test_validation_pipeline(case, scale, atol):
    images, lidar2img = network_images(frame_of(ARRAYS["pipe/raw_u8"]), DataConfig(image_scale=scale), None)
    assert list(images.shape) == FACTS[case]["shape"][1:]
    np.testing.assert_allclose(images[[0, 3]], ARRAYS[f"{case}/img"], atol=atol, rtol=0)
    np.testing.assert_allclose(lidar2img, ARRAYS[f"{case}/lidar2img"], rtol=1e-14)


@pytest.mark.parametrize("case", cases("gridmask"))
def test_grid_mask(case):
    height, width = FACTS[case]["shape"]
    script: Any = Script(FACTS[case]["draws"])
    keep = grid_mask(height, width, script)
    assert not script.left
    expected = np.unpackbits(ARRAYS[case])[: height * width].reshape(height, width).astype(bool)
    assert np.array_equal(np.ones_like(expected) if keep is None else keep, expected)


@pytest.mark.parametrize(
    ("seed", "kept"), [(0, 0.843179), (1, 0.649565), (2, 0.658707), (3, 0.735655), (4, 1.0), (5, 0.673774)]
)
def test_grid_mask_check_values(seed, kept):
    keep = grid_mask(928, 1600, np.random.RandomState(seed))
    assert (1.0 if keep is None else round(float(keep.mean()), 6)) == kept


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


def test_padding():
    assert padded_shape(900, 1600) == (928, 1600)
    assert padded_shape(1, 33) == (32, 64)


def test_training_view_is_the_seeds():
    frame, cfg = frame_of(ARRAYS["pipe/raw_u8"]), DataConfig()
    first, second, other = (network_images(frame, cfg, np.random.RandomState(s))[0] for s in (5, 5, 6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    plain, _ = network_images(frame, cfg, None)
    switched_off, _ = network_images(frame, DataConfig(photometric=False, grid_mask=False), np.random.RandomState(5))
    assert np.array_equal(plain, switched_off)


def test_grid_mask_is_one_for_all_cameras():
    frame = frame_of(np.full((6, 64, 96, 3), 200, np.uint8))
    images, _ = network_images(frame, DataConfig(photometric=False), np.random.RandomState(0))
    lost = images == 0
    assert lost.any()
    assert (lost == lost[:1, :1]).all()


def test_sample_holds_what_the_model_needs():
    grid = GridConfig(w=18, h=14, z=5, pc_range=(-48.0, -40.0, -5.0, 48.0, 40.0, 3.0))
    sample = make_sample(frame_of(ARRAYS["pipe/raw_u8"]), DataConfig(fill_label=17), grid, None)
    assert sample.images.shape == (6, 3, 64, 96)
    assert sample.image_shape == (64, 96)
    assert sample.images.dtype == sample.lidar2img.dtype == torch.float32
    assert sample.voxel_labels.shape == (18, 14, 5)
    assert sample.voxel_labels.dtype == torch.uint8
    assert torch.equal(sample.voxels[sample.point_voxel], sample.grid_index)
    assert int((sample.voxel_labels != 17).sum()) == len(sample.voxels)


def test_cameras_of_different_size_are_refused():
    frame = frame_of(ARRAYS["pipe/raw_u8"])
    frame.images[2] = frame.images[2][:-1]
    with pytest.raises(DataError, match="sample t: the cameras' images have different sizes"):
        network_images(frame, DataConfig(), None)
