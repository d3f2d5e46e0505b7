"""Preprocess uint8 images into the network input, on the device that holds them.

Order: photometric distortion (training), mean subtraction, scaling or crops (training, crops.py), padding to multiples
of 32, GridMask (training). Images are BGR throughout, 0..255 as float32; nothing is clipped, so distorted values may
leave that range. The random numbers are part of the batch (photometric.py). OpenCV processes images on a CPU, tensor
operations process them on other devices.
"""

from __future__ import annotations

from typing import Tuple, Union

import torch
from torch import Tensor

from tpvformer.config import DataConfig
from tpvformer.data.images import preprocess_opencv as pixels_opencv
from tpvformer.data.images import preprocess_planes as pixels_planes
from tpvformer.data.images import preprocess_tensor as pixels_tensor
from tpvformer.data.types import Batch, PastBatch

MEAN_BGR = (103.530, 116.280, 123.675)  # the deviation is 1: the pretrained backbone expects caffe-style input
STRIDE = 32  # of the coarsest backbone level


def scaled_shape(height: int, width: int, scale: float) -> Tuple[int, int]:
    """Return (height, width) of a stored image after scaling."""
    return int(height * scale), int(width * scale)


def padded_shape(height: int, width: int) -> Tuple[int, int]:
    """Round height and width up to multiples of 32."""
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def network_images(batch: Union[Batch, PastBatch], cfg: DataConfig, planes: bool = False) -> Tensor:
    """Return the network input: (B, N, 3, h, w) float32, on the batch's device.

    It is channels last in memory or, with ``planes``, contiguous, and then no operation but the first reads or writes a
    strided tensor.
    """
    b, n, height, width, _ = batch.images.shape
    valid = scaled_shape(height, width, cfg.image_scale)
    images = batch.images.flatten(0, 1)
    draws = None if batch.photometric is None else batch.photometric.flatten(0, 1)
    crops = None if batch.crops is None else batch.crops.flatten(0, 1)
    if planes:
        filled = pixels_planes.network_planes(images, draws, MEAN_BGR, valid, padded_shape(*valid), crops)
        filled = filled.unflatten(0, (b, n))
        masks = batch.keep_rows is not None and batch.keep_columns is not None
        return pixels_planes.masked(filled, batch.keep_rows, batch.keep_columns) if masks else filled
    out = images.new_zeros((b, n, *padded_shape(*valid), 3), dtype=torch.float32)
    kind = pixels_opencv if images.device.type == "cpu" else pixels_tensor
    kind.fill(out.flatten(0, 1)[:, : valid[0], : valid[1]], images, draws, MEAN_BGR, crops)
    if batch.keep_rows is not None and batch.keep_columns is not None:
        kind.mask(out, batch.keep_rows, batch.keep_columns)
    return out.permute(0, 1, 4, 2, 3)
