"""Define Frame (data as stored), Sample (tensors) and Batch (collated samples).

P points, N cameras, M occupied voxels, (X, Y, Z) voxels along x, y, z of the grid's frame. Lidar frames: nuScenes' x is
right, y forward, SemanticKITTI's x is forward, y left; z is up.

Images stay uint8 until they are on the device. There data/images/preprocess.py turns them into the network's input,
with the augmentation parameters that the loader drew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.detection.targets import Targets
from tpvformer.errors import DataError as DataError  # public import path

LIDAR_BIT, CAMERA_BIT = 1, 2  # bits of a voxel mask: observed by the lidar, by a camera


@dataclass(frozen=True)
class DenseLabels:
    """Hold a label for every voxel, as dense data sets publish it (data/nuscenes/occupancy.py)."""

    classes: np.ndarray  # (X, Y, Z) uint8, classes of labels.py; 255: SemanticKITTI gives no label
    mask: Optional[np.ndarray]  # (X, Y, Z) uint8, LIDAR_BIT | CAMERA_BIT; None where no masks are published


@dataclass(frozen=True)
class Frame:
    """One key frame as ``read_frame`` returns it, before any transform. ``dataclasses.replace`` makes another."""

    token: str
    images: Tensor  # (N, H, W, 3) uint8, BGR
    camera_names: List[str]
    lidar2img: np.ndarray  # (N, 4, 4) float64: homogeneous lidar metres -> (u * depth, v * depth, depth, 1), pixels
    points: np.ndarray  # (P, 3) float32, metres, lidar frame
    labels: np.ndarray  # (P,) uint8, classes of labels.py
    lidar2ego: Optional[np.ndarray] = None  # (4, 4) float64, metres; None if the info record lacks it
    dense: Optional[DenseLabels] = None
    ray_origins: Optional[np.ndarray] = None  # (O, 3) float64, metres, lidar frame: origins of RayIoU's rays
    camera_slots: Sequence[int] = ()  # the embedding of each camera; empty: the first N in order
    valid_sizes: Sequence[Tuple[int, int]] = ()  # (h, w) of each image without padding; empty: no image is padded
    lost_points: int = 0  # number of scan points left out because their coordinates are not finite (no return)
    boxes: Optional[Boxes] = None  # annotated objects, lidar frame; None: not asked for, or not known
    no_scan: str = ""  # why a sample of an info file has no points; empty if it has points, and for rigs
    scene: str = ""  # as in the record, like the next one
    timestamp: Optional[float] = None  # seconds; None if not known
    lidar2global: Optional[np.ndarray] = None  # (4, 4) float64, metres; None if not known

    def pictures(self) -> List[np.ndarray]:
        """Return the images without padding: N arrays (h, w, 3)."""
        images = list(self.images.numpy())
        return [image[:h, :w] for image, (h, w) in zip(images, self.valid_sizes)] if self.valid_sizes else images


@dataclass
class PastSample:
    """What the network is shown of an earlier frame; the first fields are those of Sample.

    Where there is no such frame (the start of a scene, or a past that was dropped) ``valid`` is False, the images are
    the present ones and nothing has moved: shapes are the same with a past and without.
    """

    token: str
    images: Tensor
    photometric: Optional[Tensor]
    keep_rows: Optional[Tensor]
    keep_columns: Optional[Tensor]
    grid2img: Tensor
    image_shape: Tuple[int, int]
    camera_slots: Optional[Tensor]
    now2past: Tensor  # (4, 4) float32, metres: from the present frame's grid to this frame's
    seconds: Tensor  # () float32: this long before the present frame
    motion: Tensor  # (4, 4) float32: from the grid of the next newer frame, which may be the present one, to this
    gap: Tensor  # () float32, seconds: this long before that frame
    valid: Tensor  # () bool
    crops: Optional[Tensor] = None


@dataclass
class Sample:
    """Hold one sample as tensors. ``(h, w)`` is the shape of the network input, scaled and padded."""

    token: str
    images: Tensor  # (N, H, W, 3) uint8, BGR, as decoded
    photometric: Optional[Tensor]  # (N, 8) float32, augment.draw_photometric; None: no photometric distortion
    keep_rows: Optional[Tensor]  # (h,) bool: rows that GridMask keeps; None: no GridMask
    keep_columns: Optional[Tensor]  # (w,) bool: columns that GridMask keeps
    grid2img: Tensor  # (N, 4, 4) float32, metres in the grid's frame -> pixels of the network input
    image_shape: Tuple[int, int]  # (h, w) of the network input
    grid_index: Tensor  # (P, 3) int64: x, y, z of the voxel a point lies in
    point_labels: Tensor  # (P,) int64
    voxel_labels: Tensor  # (X, Y, Z) uint8
    voxel_coords: Tensor  # (M, 3) int64: the occupied voxels, in lexicographic order
    point2voxel: Tensor  # (P,) int64: the row of ``voxel_coords`` a point lies in
    voxel_mask: Optional[Tensor] = None  # (X, Y, Z) uint8, LIDAR_BIT | CAMERA_BIT
    ray_origins: Optional[Tensor] = None  # (O, 3) float32, metres in the grid's frame
    replaced: str = ""  # error of the unreadable sample that this one replaces; empty if it replaces none
    camera_slots: Optional[Tensor] = None  # (N,) int64: the embedding of each camera; None: the first N in order
    boxes: Optional[Boxes] = None  # annotated objects, the grid's frame; None: not asked for, or not known
    box_targets: Optional[Targets] = None  # what the detection head learns from them
    past: Tuple[PastSample, ...] = ()  # earlier frames, newest first, as many for each sample; empty if not asked for
    crops: Optional[Tensor] = None  # (N, 5) int32, images/crops.py; None: images are scaled whole
    augmented: Optional[np.ndarray] = None  # (4, 4) float64, augment.py: the grid's frame to this sample's; None: same


@dataclass
class PastBatch:
    """Hold one past frame of each sample of a batch; the first fields are those of Batch."""

    tokens: List[str]
    images: Tensor  # (B, N, H, W, 3) uint8
    photometric: Optional[Tensor]
    keep_rows: Optional[Tensor]
    keep_columns: Optional[Tensor]
    grid2img: Tensor  # (B, N, 4, 4) float32
    camera_slots: Optional[Tensor]
    query_rows: Optional[Tensor]
    row_counts: List[int]
    now2past: Tensor  # (B, 4, 4) float32, as in PastSample
    seconds: Tensor  # (B,) float32
    motion: Tensor  # (B, 4, 4) float32
    gap: Tensor  # (B,) float32
    valid: Tensor  # (B,) bool: False where the sample has no such frame
    crops: Optional[Tensor] = None  # (B, N, 5) int32


@dataclass
class Batch:
    """Hold collated samples; lists of unequal length are padded, and ``*_lengths`` gives the length without padding."""

    tokens: List[str]
    images: Tensor  # (B, N, H, W, 3) uint8
    photometric: Optional[Tensor]  # (B, N, 8) float32
    keep_rows: Optional[Tensor]  # (B, h) bool
    keep_columns: Optional[Tensor]  # (B, w) bool
    grid2img: Tensor  # (B, N, 4, 4) float32, as Sample.grid2img
    grid_index: Tensor  # (B, P, 3) int64, padded with 0
    point_labels: Tensor  # (B, P) int64, padded with the ignore label
    point_lengths: Tensor  # (B,) int64
    voxel_labels: Tensor  # (B, X, Y, Z) uint8
    voxel_coords: Tensor  # (B, M, 3) int64, padded with 0
    voxel_lengths: Tensor  # (B,) int64
    point2voxel: Tensor  # (B, P) int64, padded with 0
    voxel_mask: Optional[Tensor] = None  # (B, X, Y, Z) uint8
    ray_origins: Optional[Tensor] = None  # (B, O, 3) float32, padded with 0
    camera_slots: Optional[Tensor] = None  # (B, N) int64; None: the first N in order
    query_rows: Optional[Tensor] = None  # (B, N, R) int32: queries that cameras see, all planes; None: not listed
    row_counts: List[int] = field(default_factory=list)  # each plane's part of R, on the host
    ray_lengths: List[int] = field(default_factory=list)  # number of origins of each sample; ints, to slice with
    replaced: List[str] = field(default_factory=list)  # errors of the samples that could not be read and were replaced
    boxes: List[Optional[Boxes]] = field(default_factory=list)  # as Sample.boxes; empty if not asked for
    # what the detection head learns (data/detection/targets.py), N the most boxes of a sample
    heatmaps: Optional[Tensor] = None  # (B, 10, Y, X) float32
    box_cells: Optional[Tensor] = None  # (B, N) int64, padded with 0
    box_labels: Optional[Tensor] = None  # (B, N) int64, padded with -1
    box_values: Optional[Tensor] = None  # (B, N, 10) float32, padded with 0
    past: List[PastBatch] = field(default_factory=list)  # earlier frames, newest first; empty if not asked for
    crops: Optional[Tensor] = None  # (B, N, 5) int32, as Sample.crops
    pin_device: str = ""  # device type that page-locked memory is for; empty: PyTorch's default

    def to(self, device: Union[str, torch.device], non_blocking: bool = False) -> Batch:
        """Copy every tensor of the batch to ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory (the loader calls this when asked to pin)."""
        kind = (self.pin_device,) if self.pin_device else ()
        return self._map(lambda tensor: tensor.pin_memory(*kind))

    def tensors(self) -> List[Tensor]:
        """Return the tensors of the batch that are on the device."""
        return [value for held in (self, *self.past) for value in vars(held).values() if isinstance(value, Tensor)]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        past = [dataclasses.replace(each, **_changed(each, change)) for each in self.past]
        return dataclasses.replace(self, past=past, **_changed(self, change))


def _changed(held: Union[Batch, PastBatch], change: Callable[[Tensor], Tensor]) -> Dict[str, Any]:
    """Return the fields of ``held`` that are tensors, changed."""
    return {name: change(value) for name, value in vars(held).items() if isinstance(value, Tensor)}
