"""What the network sees, from bytes and draws: equal to the specified pipeline, on the processor and by tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional

import cv2
import numpy as np
import pytest
import specified
import torch
from data_tools import Script, frame_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.images import preprocess_opencv as pixels_opencv
from tpvformer.data.images import preprocess_tensor as pixels_tensor
from tpvformer.data.images.photometric import UNCHANGED, draw_photometric
from tpvformer.data.images.preprocess import MEAN_BGR, network_images, padded_shape
from tpvformer.data.loader import collate
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import Batch

GOLDEN = Path(__file__).parents[1] / "golden_data"
ARRAYS = np.load(GOLDEN / "data_side.npz")
FACTS = json.loads((GOLDEN / "data_side.json").read_text())
RAW, LIDAR2IMG = ARRAYS["pipe/raw_u8"], ARRAYS["pipe/lidar2img_in"]
GRID = GridConfig(w=6, h=5, z=4)


def batch_of(cfg: DataConfig, seeds: List[Optional[int]], images: np.ndarray = RAW) -> Batch:
    frame = frame_of(images, LIDAR2IMG)
    rngs = [None if seed is None else np.random.RandomState(seed) for seed in seeds]
    return collate([make_sample(frame, cfg, GRID, rng) for rng in rngs], cfg.ignore_label)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Noise, darkness, where brightness leaves little above 0, and soft colours."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (3, count, 60, 80, 3)).astype(np.uint8)
    images[1] //= 8
    images[2] = [cv2.GaussianBlur(image, (0, 0), 3) for image in images[2]]
    return images.reshape(-1, 60, 80, 3)


@pytest.mark.parametrize("case", sorted(name for name in FACTS if name.startswith("photo/")))
def test_distortion_is_the_references(case):
    script: Any = Script(FACTS[case]["draws"])
    draw = torch.from_numpy(draw_photometric(script))[None]
    assert not script.left
    for fill in (pixels_opencv.fill, pixels_tensor.fill):
        image = torch.from_numpy(RAW[1:2])
        out = torch.zeros(image.shape)
        fill(out, image, draw, (0.0, 0.0, 0.0))
        np.testing.assert_allclose(out[0, ::2, ::3], ARRAYS[case], atol=1e-3 if fill is pixels_tensor.fill else 1e-4)


@pytest.mark.parametrize(("case", "scale", "atol"), [("pipe/val", 1.0, 0), ("pipe/val_half", 0.5, 1e-4)])
def test_validation_pipeline_is_the_references(case, scale, atol):
    cfg = DataConfig(image_scale=scale)
    sample = make_sample(frame_of(RAW, LIDAR2IMG), cfg, GRID, None)
    images = network_images(collate([sample], 0), cfg)
    assert list(images.shape[1:]) == FACTS[case]["shape"][1:]
    np.testing.assert_allclose(images[0][[0, 3]], ARRAYS[f"{case}/img"], atol=atol, rtol=0)
    np.testing.assert_allclose(sample.grid2img, ARRAYS[f"{case}/lidar2img"].astype(np.float32), rtol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.4567])
@pytest.mark.parametrize("photometric", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_on_the_processor_bit_equal_to_the_specification(scale, photometric, masked):
    cfg = DataConfig(image_scale=scale, photometric=photometric, grid_mask=masked)
    seeds: List[Optional[int]] = list(range(12))
    images = network_images(batch_of(cfg, seeds), cfg)
    assert images.permute(0, 1, 3, 4, 2).is_contiguous()
    for seed, ours in zip(seeds, images):
        assert np.array_equal(ours.numpy(), specified.network_images(list(RAW), cfg, np.random.RandomState(seed)))


def test_validation_bit_equal_to_the_specification():
    for scale in (1.0, 0.5, 0.4567):
        cfg = DataConfig(image_scale=scale)
        images = network_images(batch_of(cfg, [None]), cfg)[0]
        assert np.array_equal(images.numpy(), specified.network_images(list(RAW), cfg, None))


def test_tensor_operations_agree_with_opencv():
    """7e-4 of a grey level was found over 83 million values; a scaling adds OpenCV's own rounding of coordinates."""
    images, rng = torch.from_numpy(pictures(16)), np.random.RandomState(1)
    draws = torch.from_numpy(np.stack([draw_photometric(rng) for _ in images]))
    cases = ((60, 80, draws, 1e-3), (60, 80, None, 0), (30, 40, draws, 1e-3), (27, 37, None, 1e-2))
    for height, width, drawn, atol in cases:
        ours, theirs = torch.zeros(2, len(images), height, width, 3)
        pixels_tensor.fill(ours, images, drawn, MEAN_BGR)
        pixels_opencv.fill(theirs, images, drawn, MEAN_BGR)
        assert (ours - theirs).abs().max() <= atol


def test_tensor_operations_pad_and_mask_alike(monkeypatch):
    cfg = DataConfig()
    batch = batch_of(cfg, [0, 3, 4])
    expected = network_images(batch, cfg)
    monkeypatch.setattr("tpvformer.data.images.preprocess.pixels_opencv", pixels_tensor)
    ours = network_images(batch, cfg)
    assert (ours - expected).abs().max() < 1e-3
    assert torch.equal(ours == 0, expected == 0)


class Strided(TorchDispatchMode):
    """Names the operations that read or write a strided tensor of 1000 or more elements."""

    def __init__(self) -> None:
        super().__init__()
        self.names: List[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_flatten((args, kwargs, out))[0] if isinstance(t, torch.Tensor)]
        if not func.is_view and any(not t.is_contiguous() and t.numel() >= 1000 for t in tensors):
            self.names.append(str(func.overloadpacket))
        return out


@pytest.mark.parametrize(("seeds", "scale"), [([0, 3, 4], 1.0), ([None], 1.0), ([1], 0.5), ([None, None], 0.43)])
def test_planes_are_the_same_pixels_without_strided_copies(monkeypatch, seeds: Any, scale: float) -> None:
    """For devices that copy a strided tensor before they work on it: one such copy, where there were five to seven."""
    cfg = DataConfig(image_scale=scale)
    batch = batch_of(cfg, seeds)
    monkeypatch.setattr("tpvformer.data.images.preprocess.pixels_opencv", pixels_tensor)
    with Strided() as before:
        expected = network_images(batch, cfg).contiguous()
    with Strided() as after:
        ours = network_images(batch, cfg, planes=True)
    assert ours.is_contiguous() and torch.equal(ours, expected)
    print(f"\nstrided: {len(before.names)} before, {len(after.names)} after")
    assert after.names == ["aten.clone"] and len(before.names) == (7 if scale == 1 else 5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_tensor_operations_never_look_at_a_value(scale):
    """On the meta device there are none, so asking for one (which elsewhere waits for the device) is an error."""
    cfg = DataConfig(image_scale=scale)
    images = network_images(batch_of(cfg, [0, 1]).to("meta"), cfg)
    assert images.is_meta
    assert images.shape == network_images(batch_of(cfg, [0, 1]), cfg).shape
    assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_values_below_zero_come_back_changed():
    """HSV cannot hold a colour whose three channels are negative; the reference trains on what comes out of it."""
    image = torch.tensor([[[[2, 5, 9]]]], dtype=torch.uint8)
    draw = torch.tensor([UNCHANGED])
    draw[0, 0] = -32
    for fill in (pixels_opencv.fill, pixels_tensor.fill):
        out = torch.zeros(1, 1, 1, 3)
        fill(out, image, draw, (0.0, 0.0, 0.0))
        assert out.flatten().tolist() == pytest.approx([-16, -19, -23], abs=1e-4)  # and not -30, -27, -23


def test_training_view_is_the_seeds():
    cfg = DataConfig()
    first, second, other = network_images(batch_of(cfg, [5, 5, 6]), cfg)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_grid_mask_is_one_for_all_cameras():
    cfg = DataConfig(photometric=False)
    lost = network_images(batch_of(cfg, [0], np.full((6, 64, 96, 3), 200, np.uint8)), cfg)[0] == 0
    assert lost.any()
    assert (lost == lost[:1, :1]).all()


def test_padding():
    assert padded_shape(900, 1600) == (928, 1600)
    assert padded_shape(1, 33) == (32, 64)
