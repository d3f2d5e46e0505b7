"""The content of an info file as columns: arrays with one row for each sample or file, instead of nested records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np

from tpvformer.data.nuscenes.annotations import Annotations
from tpvformer.geometry import lidar_to_image


@dataclass
class Shots:
    """K sensor files, one a row. Poses are seven numbers: translation in metres, quaternion w, x, y, z."""

    tokens: List[str]  # of sample_data
    files: List[str]
    timestamps: np.ndarray  # (K,) int64, microseconds
    sensor2ego: np.ndarray  # (K, 7) float64
    ego2global: np.ndarray  # (K, 7) float64: the vehicle's pose at the time of this file
    rotation: np.ndarray  # (K, 3, 3) float64, from the sensor to the key frame's lidar
    translation: np.ndarray  # (K, 3) float64, metres

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Infos:
    """N key frames with C cameras each, and S sweeps of the lidar before them."""

    version: str  # of nuScenes, such as v1.0-mini
    cameras: Tuple[str, ...]  # channels, in the order of the columns
    tokens: List[str]  # of the samples
    scenes: List[str]  # token of each sample's scene
    timestamps: np.ndarray  # (N,) int64, microseconds
    scans: Shots  # N
    images: Shots  # N * C, all cameras of a sample in a row; the file is "" where the sample has no such image
    intrinsics: np.ndarray  # (N, C, 3, 3) float64, pixels
    sweeps: Shots  # S, of each key frame the latest first
    sweep_start: np.ndarray  # (N + 1,) int64: the sweeps of sample i are sweep_start[i] to sweep_start[i + 1]
    boxes: Optional[Annotations] = None  # objects of the N key frames; None: not read, or the tables have none

    def __len__(self) -> int:
        return len(self.tokens)

    def lidar2img(self) -> np.ndarray:
        """Return the projections (N, C, 4, 4), float64: lidar metres to (u * depth, v * depth, depth, 1), pixels."""
        shape = self.intrinsics.shape[:2]
        rotation, translation = self.images.rotation, self.images.translation
        return lidar_to_image(rotation.reshape(*shape, 3, 3), translation.reshape(*shape, 3), self.intrinsics)
