"""Dense labels of a key frame on disk, as Occ3D-nuScenes and SurroundOcc publish theirs.

Differences: the published labels are made from accumulated sweeps and contain surfaces only; these contain the whole
solids (solid.py). The lidar mask is that of this key frame's turn, not of the whole drive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np

from tpvformer.config import OCCUPANCY_GRIDS
from tpvformer.data.street import rig
from tpvformer.data.street.solid import fill_voxels, observe_by_camera, observe_by_lidar
from tpvformer.data.street.world import Street
from tpvformer.labels import EMPTY

OCC3D_FOLDER, SURROUNDOCC_FOLDER = "gts", "surroundocc"


def write_dense_labels(
    root: Path,
    scene: str,
    token: str,
    scan: str,
    streets: Mapping[str, Street],
    ego2scene: np.ndarray,
    sensors2scene: Mapping[str, np.ndarray],
) -> None:
    """Write both kinds for one key frame: what is where at the lidar's time.

    ``scan`` is the base name of its lidar file; ``ego2scene`` (4,4) at the lidar's time; ``streets`` and
    ``sensors2scene`` by channel, each at its own time. Raises OSError where a file cannot be written.
    """
    street = streets[rig.LIDAR_CHANNEL]
    grid = OCCUPANCY_GRIDS["occ3d"]
    mask_lidar, mask_camera = (np.zeros(grid.shape, np.uint8) for _ in range(2))
    lidar2scene = sensors2scene[rig.LIDAR_CHANNEL]
    observe_by_lidar(mask_lidar, street, lidar2scene, ego2scene, grid.pc_range)
    for camera in rig.CAMERAS:
        channel = camera.channel
        observe_by_camera(mask_camera, streets[channel], camera, sensors2scene[channel], ego2scene, grid.pc_range)
    folder = root / OCC3D_FOLDER / scene / token
    folder.mkdir(parents=True)
    classes = fill_voxels(street, ego2scene, grid.shape, grid.pc_range)
    np.savez_compressed(folder / "labels.npz", semantics=classes, mask_lidar=mask_lidar, mask_camera=mask_camera)

    grid = OCCUPANCY_GRIDS["surroundocc"]
    classes = fill_voxels(street, lidar2scene, grid.shape, grid.pc_range)
    cells = np.argwhere(classes != EMPTY)
    rows = np.concatenate([cells, classes[tuple(cells.T)][:, None]], 1)
    folder = root / SURROUNDOCC_FOLDER / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{scan}.npy", rows.astype(np.int16))
