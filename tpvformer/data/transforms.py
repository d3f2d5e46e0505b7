"""A Frame becomes a Sample: augmentations are drawn, lidar2img follows the scaling, points become voxels.

The pixels themselves wait for the device (pixels.py).
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.augment import draw_photometric
from tpvformer.data.grid_mask import grid_mask
from tpvformer.data.pixels import padded_shape, scaled_shape
from tpvformer.data.types import Frame, Sample
from tpvformer.data.voxelize import voxelize


def make_sample(frame: Frame, cfg: DataConfig, grid: GridConfig, rng: Optional[np.random.RandomState]) -> Sample:
    """The tensors of one frame. The points themselves are never augmented.

    ``rng`` draws the training augmentations that ``cfg`` asks for, in the reference's order: camera by camera the
    distortion, then one GridMask for all; None (validation) leaves the images alone.
    """
    cameras, height, width, _ = frame.images.shape
    shape = padded_shape(*scaled_shape(height, width, cfg.image_scale))
    photometric = keep_rows = keep_columns = None
    if rng is not None and cfg.photometric:
        photometric = torch.from_numpy(np.stack([draw_photometric(rng) for _ in range(cameras)]))
    if rng is not None and cfg.grid_mask:
        keep_rows, keep_columns = (torch.from_numpy(keep) for keep in grid_mask(*shape, rng))
    to_pixels = np.diag([cfg.image_scale, cfg.image_scale, 1.0, 1.0])
    cells = voxelize(frame.points, frame.labels, grid.voxels, grid.pc_range, cfg.fill_label)
    return Sample(
        token=frame.token,
        images=frame.images,
        photometric=photometric,
        keep_rows=keep_rows,
        keep_columns=keep_columns,
        lidar2img=torch.from_numpy((to_pixels @ frame.lidar2img).astype(np.float32)),
        image_shape=shape,
        grid_index=torch.from_numpy(cells.grid_index),
        point_labels=torch.from_numpy(frame.labels.astype(np.int64)),
        voxel_labels=torch.from_numpy(cells.labels),
        voxels=torch.from_numpy(cells.occupied),
        point_voxel=torch.from_numpy(cells.point_row),
    )
