"""Convert a Frame to a Sample: draw augmentations, compute grid2img, voxelize points.

The model works in the frame of its grid. If this is the ego frame, points are transformed to it. grid2img is lidar2img
times the inverse of the transform to that frame, scaled to the network input. An augmentation in space is a further
transform after it (augment.py). Images are preprocessed later, on the device (data/images/preprocess.py).
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from tpvformer.config import OCCUPANCY_GRIDS, DataConfig, GridConfig
from tpvformer.data.augment import Augmentation, augmented_frame, moved_boxes, moved_labels
from tpvformer.data.images.crops import crop_matrices
from tpvformer.data.images.grid_mask import grid_mask
from tpvformer.data.images.photometric import draw_photometric
from tpvformer.data.images.preprocess import padded_shape, scaled_shape
from tpvformer.data.record import Record
from tpvformer.data.types import DenseLabels, Frame, Sample
from tpvformer.data.voxels.voxelize import voxelize
from tpvformer.errors import DataError
from tpvformer.geometry import transform_points


class Views(NamedTuple):
    """What the network is shown of one frame; the fields are those of Sample."""

    images: Tensor
    photometric: Optional[Tensor]
    keep_rows: Optional[Tensor]
    keep_columns: Optional[Tensor]
    grid2img: Tensor
    image_shape: Tuple[int, int]
    crops: Optional[Tensor] = None


def make_views(
    images: Tensor,
    lidar2img: np.ndarray,
    lidar2grid: np.ndarray,
    cfg: DataConfig,
    rng: Optional[np.random.RandomState],
    augmentation: Optional[Augmentation] = None,
) -> Views:
    """Return what the network is shown of images (N, H, W, 3) with lidar2img (N, 4, 4).

    ``rng`` draws the training augmentations that ``cfg`` asks for: mirroring first, then, in the reference's order, a
    photometric distortion for each camera and one GridMask for all. None (validation) draws none.
    ``augmentation`` draws the images' crops; what moves the scene is part of ``lidar2grid``.
    """
    cameras, height, width, _ = images.shape
    if rng is not None and cfg.mirror and rng.randint(2):
        images, lidar2img = mirrored(images, lidar2img)
    valid = scaled_shape(height, width, cfg.image_scale)
    shape = padded_shape(*valid)
    photometric = keep_rows = keep_columns = None
    if rng is not None and cfg.photometric:
        photometric = torch.from_numpy(np.stack([draw_photometric(rng) for _ in range(cameras)]))
    if rng is not None and cfg.grid_mask:
        keep_rows, keep_columns = (torch.from_numpy(keep) for keep in grid_mask(*shape, rng))
    to_pixels = np.diag([cfg.image_scale, cfg.image_scale, 1.0, 1.0])
    crops = None if augmentation is None else augmentation.crops(cameras, *valid)
    if crops is not None:
        to_pixels = crop_matrices(crops, height, width)
    grid2img = torch.from_numpy((to_pixels @ lidar2img @ np.linalg.inv(lidar2grid)).astype(np.float32))
    drawn = None if crops is None else torch.from_numpy(crops)
    return Views(images, photometric, keep_rows, keep_columns, grid2img, shape, drawn)


def make_sample(
    frame: Frame,
    cfg: DataConfig,
    grid: GridConfig,
    rng: Optional[np.random.RandomState],
    augmentation: Optional[Augmentation] = None,
) -> Sample:
    """Return the tensors of one frame. ``rng`` draws for images, as in ``make_views``.

    Points, labels and boxes are moved by ``augmentation`` alone.
    """
    matrix = None if augmentation is None else augmentation.matrix
    lidar2grid = augmented_frame(frame_of_grid(frame, grid), matrix)
    stays = grid.frame == "lidar" and matrix is None
    views = make_views(frame.images, frame.lidar2img, lidar2grid, cfg, rng, augmentation)
    points, labels, voxel_mask, ray_origins = frame.points, frame.labels, None, None
    if not stays:
        points = transform_points(points, lidar2grid).astype(np.float32)
    cells = voxelize(points, labels, grid.shape, grid.pc_range, cfg.fill_label, divide_by_n=cfg.cells_are_even)
    voxel_labels = cells.labels
    if frame.dense is not None:
        low, high = np.array(grid.pc_range[:3]), np.array(grid.pc_range[3:])
        inside = ((points >= low) & (points < high)).all(1)
        # voxelize clamped points outside the grid to border cells, where their labels must not count
        labels = np.where(inside, labels, cfg.ignore_label)
        dense = part_of_labels(frame.dense, cfg, grid)
        if matrix is not None:
            dense = moved_labels(dense, matrix, grid, cfg.ignore_label)
        voxel_labels = dense.classes
        voxel_mask = None if dense.mask is None else torch.from_numpy(dense.mask)
        if frame.ray_origins is not None:
            ray_origins = torch.from_numpy(transform_points(frame.ray_origins, lidar2grid).astype(np.float32))
    return Sample(
        token=frame.token,
        **views._asdict(),
        grid_index=torch.from_numpy(cells.grid_index),
        point_labels=torch.from_numpy(labels.astype(np.int64)),
        voxel_labels=torch.from_numpy(voxel_labels),
        voxel_coords=torch.from_numpy(cells.occupied),
        point2voxel=torch.from_numpy(cells.point_row),
        voxel_mask=voxel_mask,
        ray_origins=ray_origins,
        camera_slots=torch.tensor(frame.camera_slots) if frame.camera_slots else None,
        boxes=frame.boxes if frame.boxes is None or stays else moved_boxes(frame.boxes, lidar2grid, matrix),
        augmented=matrix,
    )


def part_of_labels(dense: DenseLabels, cfg: DataConfig, grid: GridConfig) -> DenseLabels:
    """Return the labels and the mask of the voxels that ``grid`` covers, which may be a part of the published grid."""
    if dense.classes.shape == grid.shape:
        return dense
    part = OCCUPANCY_GRIDS[cfg.occupancy].part(grid)
    assert part is not None, "checked when the configuration was made"
    mask = None if dense.mask is None else np.ascontiguousarray(dense.mask[part])
    return DenseLabels(np.ascontiguousarray(dense.classes[part]), mask)


def mirrored(images: Tensor, lidar2img: np.ndarray) -> Tuple[Tensor, np.ndarray]:
    """Mirror images (N, H, W, 3) left to right, and their lidar2img (N, 4, 4): u becomes W - u.

    The scene is not mirrored, so labels stay.
    """
    flip = np.eye(4)
    flip[0, 0], flip[0, 2] = -1, images.shape[2]
    return images.flip(2), flip @ lidar2img


def frame_of_grid(frame: Union[Frame, Record], grid: GridConfig) -> np.ndarray:
    """Return the transform (4, 4) float64 from the lidar frame to the grid's. Raises DataError without calibration."""
    if grid.frame == "lidar":
        return np.eye(4)
    if frame.lidar2ego is None:
        raise DataError(
            f"sample {frame.token}: its info record has no lidar2ego_translation and lidar2ego_rotation (its rig file "
            "no lidar2ego), which model.grid.frame=ego needs; make the infos again with them, or add it"
        )
    return frame.lidar2ego
