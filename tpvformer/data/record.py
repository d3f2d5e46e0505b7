"""One key frame of a data set as its info file, tables or rig file describe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Tuple

import numpy as np


class Held(NamedTuple):
    """Content of a frame that is in memory instead of in files."""

    images: Tuple[np.ndarray, ...]  # N of (h, w, 3) uint8, BGR, in the order of the cameras
    points: np.ndarray  # (P, 3) float32, metres, lidar frame


@dataclass(frozen=True)
class Record:
    """What is kept of one info record; paths as stored, with slashes; cameras in the order of their embeddings."""

    token: str
    scan: str  # empty where there is no lidar
    camera_names: Tuple[str, ...]
    images: Tuple[str, ...]
    lidar2img: np.ndarray  # (N, 4, 4) float64
    scene: str = ""  # token of its scene, or the name of its log where the record holds none
    lidar2ego: Optional[np.ndarray] = None  # (4, 4) float64; these two where the record holds them
    ego2global: Optional[np.ndarray] = None  # (4, 4) float64, at the time of the lidar
    labels: str = ""  # file of its point labels, where the record names one; nuScenes' tables do so otherwise
    rig: str = ""  # the rig file it stands in, all of whose paths are absolute; empty: an info file
    sizes: Tuple[Tuple[int, int], ...] = ()  # width, height of each image; empty where the file does not say
    slots: Tuple[int, ...] = ()  # the camera embedding of each camera, where these are not the first ones in order
    crop: Optional[Tuple[int, int]] = None  # rows, columns that images are cut to, from the upper left
    held: Optional[Held] = None  # images and points that a program holds; ``images`` and ``scan`` are then empty
    scan_columns: Optional[int] = None  # float32 numbers a point, x, y, z first, as declared; None: five, if they fit
