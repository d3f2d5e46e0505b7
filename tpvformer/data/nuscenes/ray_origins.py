"""Compute the origins of RayIoU's rays: positions of the lidar along the drive, so that rays also reach voxels that are
hidden from the lidar of the current frame (SparseOcc, arXiv:2312.17118, section 4)."""

from __future__ import annotations

from typing import List, Optional, Sequence

import numpy as np

from tpvformer.data.record import Record

MOST = 8
REACH = 39.0  # metres along the ego's x and y, as in SparseOcc's evaluation: a voxel or two inside its grid


def ray_origins(record: Record, scene: Sequence[Record]) -> np.ndarray:
    """Return (O, 3) float64, metres, in the lidar frame of ``record``: the lidar at the key frames of its scene.

    Positions beyond ``REACH`` are left out; of the others at most ``MOST`` are kept, evenly spread over the drive.
    Where the records have no poses, only the current position is returned.
    """
    own = _lidar2global(record)
    if own is None or record.lidar2ego is None:
        return np.zeros((1, 3))
    places: List[np.ndarray] = []
    for other in scene:
        there = _lidar2global(other)
        if there is None:
            continue
        place = np.zeros(3) if other is record else (np.linalg.inv(own) @ there)[:3, 3]
        if (np.abs(record.lidar2ego[:3, :3] @ place + record.lidar2ego[:3, 3])[:2] < REACH).all():
            places.append(place)
    if len(places) > MOST:
        places = [places[i] for i in np.linspace(0, len(places) - 1, MOST).round().astype(int)]
    return np.stack(places)


def _lidar2global(record: Record) -> Optional[np.ndarray]:
    if record.lidar2ego is None or record.ego2global is None:
        return None
    return record.ego2global @ record.lidar2ego
