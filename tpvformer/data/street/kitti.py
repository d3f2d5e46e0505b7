"""A sequence of SemanticKITTI on disk: the ego drives down a street and one camera and the lidar record every fifth
frame (formats: data/semantickitti.py).

Differences: the labels are the whole solids (solid.py), where a sensor observed them, not accumulated scans; nothing
but the ego moves, so no label is one of moving things; the lidar has the beams of rig.py; scans, poses and the frames
without voxels are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.config import OCCUPANCY_GRIDS, OccupancyGrid
from tpvformer.data.street import rig
from tpvformer.data.street.camera import render_camera
from tpvformer.data.street.drive import start_ride
from tpvformer.data.street.lidar import render_lidar
from tpvformer.data.street.shadows import cast_shadows
from tpvformer.data.street.solid import fill_voxels, observe_by_lidar
from tpvformer.data.street.world import Street
from tpvformer.data.voxels.voxelize import grid_index
from tpvformer.labels import CLASS_NAMES, EMPTY

STEP = 5  # frames of 0.1 s between two that are written
BEHIND = 2  # cells that the traced grid begins before the written one, see _observed
SIZES = ((1241, 376), (1226, 370))  # width, height of the images: they differ between the real sequences too
LIDAR2EGO = rig.pose((0.76, 0.0, 1.73), (1.0, 0.0, 0.0, 0.0))
# Calibration of the odometry benchmark's sequence 00, to six digits.
P2 = np.array([[718.856, 0, 607.193, 45.3823], [0, 718.856, 185.216, -0.113089], [0, 0, 1, 0.00377976]])
TR = np.array(
    [
        [0.000427680, -0.999967, -0.00808449, -0.0119846],
        [-0.00721063, 0.00808120, -0.999941, -0.0540398],
        [0.999974, 0.000485949, -0.00720693, -0.292197],
    ]
)
RAW_BY_NAME = {
    "noise": 99,
    "barrier": 51,
    "bicycle": 11,
    "bus": 13,
    "car": 10,
    "construction_vehicle": 20,
    "motorcycle": 15,
    "pedestrian": 30,
    "traffic_cone": 99,
    "trailer": 20,
    "truck": 18,
    "driveable_surface": 40,
    "other_flat": 49,
    "sidewalk": 48,
    "terrain": 72,
    "manmade": 50,
    "vegetation": 70,
}
RAW = np.array([RAW_BY_NAME[name] for name in CLASS_NAMES] + [0], np.uint16)  # by class of the street; 17 is free
assert len(RAW) == EMPTY + 1


@dataclass(frozen=True)
class SequenceTask:
    """One sequence for a worker to render."""

    folder: str  # that of the sequence
    name: str
    index: int
    frames: int
    seed: int


@dataclass(frozen=True)
class SequenceRecord:
    """The sequence that was written."""

    name: str
    frames: List[str]


def record_sequence(task: SequenceTask) -> SequenceRecord:
    """Render every fifth frame of a sequence and write image, voxels and calibration. Raises OSError."""
    ride = start_ride(task.seed, task.index, task.frames, still=True)
    rng = np.random.default_rng([task.seed, task.index, 2])
    shadows, folder = cast_shadows(ride.street), Path(task.folder)
    for name in ("image_2", "voxels"):
        (folder / name).mkdir(parents=True)
    size = SIZES[task.index % len(SIZES)]
    (folder / "calib.txt").write_text(_calibration(), encoding="utf-8")
    seconds = [k * rig.KEYFRAME_MICROSECONDS * 1e-6 for k in range(task.frames)]
    poses = [rig.pose(at, rig.euler_quaternion(*turn)) @ LIDAR2EGO for at, turn in map(ride.ego, seconds)]
    intrinsic, camera2lidar = camera_pose()
    frames = [f"{k * STEP:06d}" for k in range(task.frames)]
    grid = OCCUPANCY_GRIDS["semantickitti"]
    for k, frame in enumerate(frames):
        grain, gain = int(rng.integers(1, 1 << 20)), ride.street.light.exposure * rng.uniform(0.92, 1.08)
        camera = poses[k] @ camera2lidar
        shaded = shadows.with_movers(ride.street, camera)
        image, _, _ = render_camera(ride.street, shaded, camera, intrinsic, size, gain, grain)
        (folder / "image_2" / f"{frame}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        now = _observed(ride.street, poses[k : k + 1], poses[k], grid)
        ever = _observed(ride.street, poses[k:], poses[k], grid)  # from the later positions on the road as well
        raw = RAW[fill_voxels(ride.street, poses[k], grid.shape, grid.pc_range)]
        raw[~ever] = 0
        hit = np.zeros(grid.shape, bool)
        points = render_lidar(ride.street, poses[k], grain).points[:, :3]
        low, high = np.array(grid.pc_range[:3]), np.array(grid.pc_range[3:])
        cells = grid_index(
            points[((points >= low) & (points < high)).all(1)], grid.shape, grid.pc_range, divide_by_n=True
        )
        hit[tuple(cells.T)] = True
        files = {"label": raw.astype("<u2").tobytes(), "invalid": _bits(~ever), "bin": _bits(hit)}
        files["occluded"] = _bits(ever & ~now)
        for suffix, content in files.items():
            (folder / "voxels" / f"{frame}.{suffix}").write_bytes(content)
    return SequenceRecord(task.name, frames)


def camera_pose() -> Tuple[np.ndarray, np.ndarray]:
    """Return the camera's intrinsics (3, 3), pixels, and its pose (4, 4) in the lidar frame, metres."""
    intrinsic, lidar2camera = P2[:, :3], np.vstack([TR, [0, 0, 0, 1]])
    lidar2camera[:3, 3] += np.linalg.inv(intrinsic) @ P2[:, 3]  # from camera 0 to camera 2 beside it
    return intrinsic, np.linalg.inv(lidar2camera)


def _observed(street: Street, sensors: Sequence[np.ndarray], lidar: np.ndarray, grid: OccupancyGrid) -> np.ndarray:
    """Return (X, Y, Z) bool: the voxels of the grid at pose ``lidar`` that one turn of any of the sensors observes.

    Rays must begin inside the traced grid, but the lidar is on the border of its own: BEHIND cells are added there.
    """
    cell = (grid.pc_range[3] - grid.pc_range[0]) / grid.shape[0]
    mask = np.zeros((grid.shape[0] + BEHIND, *grid.shape[1:]), np.uint8)
    pc_range = (grid.pc_range[0] - BEHIND * cell, *grid.pc_range[1:])
    for sensor in sensors:
        observe_by_lidar(mask, street, sensor, lidar, pc_range)
    return mask[BEHIND:] > 0


def _bits(voxels: np.ndarray) -> bytes:
    return np.packbits(voxels.ravel()).tobytes()


def _calibration() -> str:
    """Return the five lines of calib.txt; cameras that are not rendered get the matrix of the one that is."""
    rows = {**{f"P{k}": P2 for k in range(4)}, "Tr": TR}
    return "".join(f"{name}: {' '.join(f'{v:.12e}' for v in matrix.ravel())}\n" for name, matrix in rows.items())
