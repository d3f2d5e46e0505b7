"""A Frame becomes a Sample: pixels and lidar2img change together, points become voxels.

Order: photometric distortion (training), mean subtraction, scaling, padding to multiples of 32, GridMask (training).
Images are BGR throughout, 0..255 as float32; nothing is clipped, so distorted values may leave that range.
"""

from __future__ import annotations

from typing import Optional, Tuple

import cv2
import numpy as np
import torch

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.grid_mask import grid_mask
from tpvformer.data.types import DataError, Frame, Sample
from tpvformer.data.voxelize import grid_index, occupied_voxels, vote

MEAN_BGR = (103.530, 116.280, 123.675)  # the deviation is 1: the pretrained backbone expects caffe-style input
STRIDE = 32  # of the coarsest backbone level


def photometric(image: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Random brightness, contrast, saturation, hue and channel order of one (H, W, 3) BGR image.

    Takes uint8 or float32 values 0..255, returns float32. The draws and their order are the reference's, so one seed
    gives the same picture there and here.
    """
    out: np.ndarray = image.astype(np.float32)
    if rng.randint(2):
        out += float(rng.uniform(-32, 32))
    contrast_first = rng.randint(2) == 1
    if contrast_first and rng.randint(2):
        out *= float(rng.uniform(0.5, 1.5))
    hsv: np.ndarray = cv2.cvtColor(out, cv2.COLOR_BGR2HSV)  # hue in degrees, saturation 0..1, value 0..255
    if rng.randint(2):
        hsv[..., 1] *= float(rng.uniform(0.5, 1.5))
    if rng.randint(2):
        hue = hsv[..., 0]
        hue += float(rng.uniform(-18, 18))
        hue[hue > 360] -= 360
        hue[hue < 0] += 360
    # Done also where nothing was drawn, because values below 0 do not survive the way there and back.
    out = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
    if not contrast_first and rng.randint(2):
        out *= float(rng.uniform(0.5, 1.5))
    if rng.randint(2):
        out = out[..., rng.permutation(3)]
    return out


def padded_shape(height: int, width: int) -> Tuple[int, int]:
    """The next multiples of 32."""
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def network_images(
    frame: Frame, cfg: DataConfig, rng: Optional[np.random.RandomState]
) -> Tuple[np.ndarray, np.ndarray]:
    """What the network is shown, and where LiDAR points fall in it.

    ``rng`` draws the training augmentations that ``cfg`` asks for; None (validation) leaves the images alone.
    Returns images (N, 3, H, W) float32 and lidar2img (N, 4, 4) float64 in pixels of those images.
    Raises DataError where the cameras' images differ in size.
    """
    shapes = {image.shape for image in frame.images}
    if len(shapes) > 1:
        raise DataError(
            f"sample {frame.token}: the cameras' images have different sizes {sorted(shapes)}; one size is expected, "
            "so rescale the images and their intrinsics to it"
        )
    height, width = (int(n * cfg.image_scale) for n in frame.images[0].shape[:2])
    out = np.zeros((len(frame.images), 3) + padded_shape(height, width), np.float32)
    for view, image in zip(out, frame.images):
        values = photometric(image, rng) if rng is not None and cfg.photometric else image
        for channel, mean in enumerate(MEAN_BGR):
            plane = np.subtract(values[..., channel], np.float32(mean), dtype=np.float32)
            if cfg.image_scale != 1:
                plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            view[channel, :height, :width] = plane
    if rng is not None and cfg.grid_mask:
        keep = grid_mask(out.shape[2], out.shape[3], rng)  # one mask for all cameras
        if keep is not None:
            out *= keep
    to_pixels = np.diag([cfg.image_scale, cfg.image_scale, 1.0, 1.0])
    return out, to_pixels @ frame.lidar2img


def make_sample(frame: Frame, cfg: DataConfig, grid: GridConfig, rng: Optional[np.random.RandomState]) -> Sample:
    """The tensors of one frame; ``rng`` as in ``network_images``. The points themselves are never augmented."""
    images, lidar2img = network_images(frame, cfg, rng)
    index = grid_index(frame.points, grid.voxels, grid.pc_range)
    cells, point_voxel = occupied_voxels(index, grid.voxels)
    labels = vote(frame.labels, point_voxel, cells, grid.voxels, cfg.fill_label)
    return Sample(
        token=frame.token,
        images=torch.from_numpy(images),
        lidar2img=torch.from_numpy(lidar2img.astype(np.float32)),
        image_shape=(images.shape[2], images.shape[3]),
        grid_index=torch.from_numpy(index),
        point_labels=torch.from_numpy(frame.labels.astype(np.int64)),
        voxel_labels=torch.from_numpy(labels),
        voxels=torch.from_numpy(cells),
        point_voxel=torch.from_numpy(point_voxel),
    )
