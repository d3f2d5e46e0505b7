"""Images that are scaled, mirrored and cut: the projections lead to the same pixels, whatever computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

import numpy as np
import pytest
import torch
from data_tools import frame_of
from rig_tools import ring_of_cameras

from tpvformer.config import AugmentConfig, DataConfig, GridConfig
from tpvformer.data.augment import Augmentation
from tpvformer.data.images import preprocess_opencv as pixels_opencv
from tpvformer.data.images import preprocess_tensor as pixels_tensor
from tpvformer.data.images.crops import crop_matrices, draw_crops
from tpvformer.data.images.preprocess import MEAN_BGR, network_images
from tpvformer.data.loader import collate
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import Sample
from tpvformer.geometry import project

HEIGHT, WIDTH, SIGMA, NEAR = 270, 480, 5.0, 26  # pixels
GRID = GridConfig(w=6, h=5, z=4)
PLAIN = DataConfig(photometric=False, grid_mask=False)
ALL = AugmentConfig(
    rotation=45.0, scale=(0.9, 1.1), flip_x=True, flip_y=True, image_resize=(0.75, 1.35), image_flip=True
)


def dotted(seed: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (3, H, W, 3) with one bright dot each, their lidar2img, and the points (3, 3), metres, of the dots."""
    rng, lidar2img = np.random.RandomState(seed), ring_of_cameras(HEIGHT, WIDTH, 3).double().numpy()
    images, points = np.zeros((3, HEIGHT, WIDTH, 3), np.uint8), []
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for image, matrix in zip(images, lidar2img):
        u, v, depth = rng.uniform(80, WIDTH - 80), rng.uniform(80, HEIGHT - 80), rng.uniform(4, 40)
        image[:] = np.rint(250 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * SIGMA**2)))[..., None]
        points.append((np.linalg.inv(matrix) @ (u * depth, v * depth, depth, 1))[:3])
    return images, lidar2img, np.array(points)


def drawn(cfg: DataConfig, seed: int) -> Tuple[Sample, np.ndarray]:
    """A sample of dots, augmented, and where the projection has them, (3, 2) pixels as (u, v)."""
    images, lidar2img, points = dotted(seed)
    assert cfg.augment is not None
    augmentation = Augmentation(cfg.augment, GRID, np.random.RandomState([seed, 1]))
    sample = make_sample(frame_of(images, lidar2img), cfg, GRID, np.random.RandomState(seed), augmentation)
    if sample.augmented is not None:
        points = points @ sample.augmented[:3, :3].T + sample.augmented[:3, 3]
    return sample, np.concatenate([project(p[None], m)[0] for p, m in zip(points, sample.grid2img.double().numpy())])


def distances(image: np.ndarray, place: np.ndarray) -> List[float]:
    """How far the middle of the dot is from ``place``, in pixels; nothing where the picture is cut too near to it."""
    left, top = np.floor(place).astype(int) - NEAR
    window = image[max(top, 0) : top + 2 * NEAR + 1, max(left, 0) : left + 2 * NEAR + 1].astype(np.float64)
    if window.shape != (2 * NEAR + 1,) * 2:
        return []
    y, x = np.mgrid[: window.shape[0], : window.shape[1]] + 0.5
    assert window.sum() > 1e4, "the dot is there"
    middle = np.array([(window * x).sum() + left * window.sum(), (window * y).sum() + top * window.sum()])
    return [float(np.linalg.norm(middle / window.sum() - place))]


@pytest.mark.parametrize("way", ["opencv", "tensor", "planes"])
@pytest.mark.parametrize("scale, mirror", [(1.0, False), (0.8, True)])
def test_points_are_projected_where_the_images_show_them(
    monkeypatch: pytest.MonkeyPatch, way: str, scale: float, mirror: bool
) -> None:
    if way == "tensor":
        monkeypatch.setattr("tpvformer.data.images.preprocess.pixels_opencv", pixels_tensor)
    cfg, found, flips = replace(PLAIN, augment=ALL, image_scale=scale, mirror=mirror), [], 0
    for seed in range(12):
        sample, places = drawn(cfg, seed)
        assert sample.crops is not None
        flips += int(sample.crops[:, 4].sum())
        images = network_images(collate([sample], 0), cfg, planes=way == "planes")[0]
        shown = images[:, 0].numpy() + np.float32(MEAN_BGR[0])
        for picture, place in zip(shown, places):
            valid = picture[: int(HEIGHT * scale), : int(WIDTH * scale)]
            valid = np.where(valid == np.float32(MEAN_BGR[0]), 0, valid)  # the room around an image that was made small
            found += distances(valid, place)
    assert len(found) >= 20 and 8 < flips < 28
    assert max(found) < 0.05


def test_a_wrong_calibration_is_noticed() -> None:
    """Half a pixel beside, as where pixels have their centres at whole numbers, fails the test above."""
    cfg = replace(PLAIN, augment=ALL)
    sample, places = drawn(cfg, 0)
    shown = network_images(collate([sample], 0), cfg)[0, :, 0].numpy() + np.float32(MEAN_BGR[0])
    found = [d for picture, place in zip(shown, places) for d in distances(picture, place + (0.5, 0))]
    assert found and min(found) > 0.4


def test_whole_images_are_a_scaling() -> None:
    """A crop that cuts nothing gives what no crop gives, from either kind of operation."""
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 60, 80, 3)).astype(np.uint8))
    for fill in (pixels_opencv.fill, pixels_tensor.fill):
        for height, width in ((60, 80), (30, 40), (27, 37)):
            whole = torch.tensor([[height, width, 0, 0, 0]] * 2, dtype=torch.int32)
            plain, cropped = torch.zeros(2, 2, height, width, 3)
            fill(plain, images, None, MEAN_BGR)
            fill(cropped, images, None, MEAN_BGR, whole)
            assert (plain - cropped).abs().max() < (1e-6 if fill is pixels_opencv.fill else 2e-2)


def test_both_kinds_of_operations_agree() -> None:
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (24, 60, 80, 3)).astype(np.uint8))
    for height, width in ((60, 80), (45, 61)):
        crops = torch.from_numpy(draw_crops(np.random.RandomState(1), 24, height, width, (0.6, 1.7), True))
        ours, theirs = torch.zeros(2, 24, height, width, 3)
        pixels_tensor.fill(ours, images, None, MEAN_BGR, crops)
        pixels_opencv.fill(theirs, images, None, MEAN_BGR, crops)
        assert (ours - theirs).abs().max() < 3e-2
        assert torch.equal(ours == 0, theirs == 0) and 0.02 < (theirs == 0).float().mean() < 0.4


def test_crops_lie_as_drawn() -> None:
    rng = np.random.RandomState(0)
    crops = draw_crops(rng, 4000, 90, 160, (0.8, 1.2), True)
    rows, columns, top, left, flipped = crops.T
    assert crops.dtype == np.int32 and set(flipped) == {0, 1} and 0.45 < flipped.mean() < 0.55
    assert rows.min() == 72 and rows.max() == 108 and columns.min() == 128 and columns.max() == 192
    for start, spare in ((top, rows - 90), (left, columns - 160)):
        assert ((start >= np.minimum(spare, 0)) & (start <= np.maximum(spare, 0))).all()
        assert (start == 0).any() and (start == spare).any()
    assert (draw_crops(rng, 5, 90, 160, (1.0, 1.0), False) == (90, 160, 0, 0, 0)).all()


def test_mirrored_twice_is_the_same() -> None:
    crops = np.array([[90, 160, 0, 0, 1]], np.int32)
    matrix = crop_matrices(crops, 90, 160)[0]
    assert np.array_equal(matrix @ matrix, np.eye(4))
    image = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (1, 90, 160, 3)).astype(np.uint8))
    once, twice = torch.zeros(2, 1, 90, 160, 3)
    pixels_opencv.fill(once, image, None, (0.0, 0.0, 0.0), torch.from_numpy(crops))
    pixels_opencv.fill(twice, once.to(torch.uint8), None, (0.0, 0.0, 0.0), torch.from_numpy(crops))
    assert torch.equal(twice, image.float()) and not torch.equal(once, image.float())


def test_tensor_operations_never_look_at_a_crop() -> None:
    """On the meta device there are no values to wait for."""
    cfg = replace(DataConfig(), augment=ALL)
    sample, _ = drawn(cfg, 0)
    batch = collate([sample, sample], 0)
    assert network_images(batch.to("meta"), cfg).shape == network_images(batch, cfg).shape
    assert network_images(batch.to("meta"), cfg, planes=True).is_contiguous()


def test_grid_mask_comes_last() -> None:
    """Rows and columns that it takes away are those of the network's input, for all cameras alike."""
    cfg = replace(PLAIN, grid_mask=True, augment=replace(ALL, image_resize=(1.2, 1.4)))
    sample, _ = drawn(cfg, 3)
    assert sample.keep_rows is not None and sample.keep_columns is not None
    lost = network_images(collate([sample], 0), cfg)[0, :, 0, :HEIGHT, :WIDTH] == 0
    expected = ~(sample.keep_rows[:HEIGHT, None] | sample.keep_columns[None, :WIDTH])
    assert expected.any() and all(torch.equal(one, expected) for one in lost)
