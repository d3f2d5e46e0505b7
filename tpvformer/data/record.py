"""Define the record of one key frame, which info files, tables and rig files are read into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Tuple

import numpy as np

from tpvformer.data.detection.boxes import Boxes


class Held(NamedTuple):
    """Content of a frame that is in memory instead of in files."""

    images: Tuple[np.ndarray, ...]  # N of (h, w, 3) uint8, BGR, in the order of the cameras
    points: np.ndarray  # (P, 3) float32, metres, lidar frame


@dataclass(frozen=True)
class Record:
    """Hold one key frame: paths as stored, with slashes; cameras in the order of their embeddings."""

    token: str
    scan: str  # empty where there is no lidar
    camera_names: Tuple[str, ...]
    images: Tuple[str, ...]
    lidar2img: np.ndarray  # (N, 4, 4) float64
    scene: str = ""  # token of the scene, or the name of the log if the record has no scene
    lidar2ego: Optional[np.ndarray] = None  # (4, 4) float64; None if the record lacks it, as for the next field
    ego2global: Optional[np.ndarray] = None  # (4, 4) float64, at the time of the lidar
    labels: str = ""  # file of the point labels if the record names one; else it is looked up in nuScenes' tables
    rig: str = ""  # the rig file of this record, with absolute paths; empty for a record of an info file
    sizes: Tuple[Tuple[int, int], ...] = ()  # width, height of each image; empty if the file does not give them
    slots: Tuple[int, ...] = ()  # the embedding of each camera; empty: the first N in order
    crop: Optional[Tuple[int, int]] = None  # rows, columns that images are cut to, from the upper left
    held: Optional[Held] = None  # images and points in memory; ``images`` and ``scan`` are then empty
    scan_columns: Optional[int] = None  # declared float32 values per point, x, y, z first; None: five, if they fit
    boxes: Optional[Boxes] = None  # annotated objects, lidar frame; None: not asked for, or not known
    timestamp: Optional[float] = None  # seconds, from any origin that a scene's frames share; None if not known
