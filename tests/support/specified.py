"""The input pipeline as it is specified, image by image in NumPy and OpenCV: what the product's must equal, and the
measure of its speed."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.config import DataConfig
from tpvformer.data.images.preprocess import MEAN_BGR, padded_shape


def photometric(image: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Random brightness, contrast, saturation, hue and channel order of one (H, W, 3) BGR image, as float32."""
    out: np.ndarray = image.astype(np.float32)
    if rng.randint(2):
        out += float(rng.uniform(-32, 32))
    contrast_first = rng.randint(2) == 1
    if contrast_first and rng.randint(2):
        out *= float(rng.uniform(0.5, 1.5))
    hsv: np.ndarray = cv2.cvtColor(out, cv2.COLOR_BGR2HSV)
    if rng.randint(2):
        hsv[..., 1] *= float(rng.uniform(0.5, 1.5))
    if rng.randint(2):
        hue = hsv[..., 0]
        hue += float(rng.uniform(-18, 18))
        hue[hue > 360] -= 360
        hue[hue < 0] += 360
    out = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
    if not contrast_first and rng.randint(2):
        out *= float(rng.uniform(0.5, 1.5))
    if rng.randint(2):
        out = out[..., rng.permutation(3)]
    return out


def grid_mask(height: int, width: int, rng: np.random.RandomState) -> Optional[np.ndarray]:
    """(height, width) bool, True where the pixel stays; None where the draw leaves the image whole."""
    if rng.rand() > 0.7:
        return None
    period = int(rng.randint(2, height))
    band = min(max(int(period * 0.5 + 0.5), 1), period - 1)
    starts = int(rng.randint(period)), int(rng.randint(period))
    rng.randint(1)
    keep = []
    for size, start in zip((height, width), starts):
        canvas = int(1.5 * size)
        line = np.zeros(canvas, bool)
        for i in range(canvas // period):
            line[start + i * period : start + i * period + band] = True
        keep.append(line[(canvas - size) // 2 :][:size])
    return keep[0][:, None] | keep[1][None, :]


def network_images(images: Sequence[np.ndarray], cfg: DataConfig, rng: Optional[np.random.RandomState]) -> np.ndarray:
    """(N, 3, h, w) float32 of N images (H, W, 3) uint8; ``rng`` None draws nothing."""
    height, width = (int(n * cfg.image_scale) for n in images[0].shape[:2])
    out = np.zeros((len(images), 3) + padded_shape(height, width), np.float32)
    for view, image in zip(out, images):
        values = photometric(image, rng) if rng is not None and cfg.photometric else image
        for channel, mean in enumerate(MEAN_BGR):
            plane = np.subtract(values[..., channel], np.float32(mean), dtype=np.float32)
            if cfg.image_scale != 1:
                plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            view[channel, :height, :width] = plane
    if rng is not None and cfg.grid_mask:
        keep = grid_mask(out.shape[2], out.shape[3], rng)
        if keep is not None:
            out *= keep
    return out


def voxel_labels(points: np.ndarray, labels: np.ndarray, voxels: Tuple[int, ...], pc_range: Sequence[float], fill: int):
    """(grid index (P,3), label grid (X,Y,Z)): points sorted by cell, the most frequent label of each run."""
    low, high, last = np.array(pc_range[:3]), np.array(pc_range[3:]), np.array(voxels) - 1
    index = np.floor((np.clip(points.astype(np.float64), low, high) - low) / ((high - low) / last)).astype(np.int64)
    grid = np.full(voxels, fill, np.uint8)
    order = np.lexsort(index.T[::-1])
    starts = np.flatnonzero(np.r_[True, (np.diff(index[order], axis=0) != 0).any(1)])
    for run in np.split(order, starts[1:]):
        grid[tuple(index[run[0]])] = np.bincount(labels[run]).argmax()
    return index, grid
