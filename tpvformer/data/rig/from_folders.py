"""Write the rig file of a drive: a calibration, a folder of images for each camera, and a table of poses and times."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tpvformer.data.record import Record
from tpvformer.data.rig.camera import read_camera, read_pose
from tpvformer.data.rig.json_file import MOST_SECONDS, Node, read_json
from tpvformer.data.rig.read import IMAGE_KINDS, records_of
from tpvformer.data.windows import LONGEST_GAP, predecessors
from tpvformer.errors import ConfigError, DataError
from tpvformer.files import atomic_file
from tpvformer.geometry import matrices, quaternions

COLUMNS = ("timestamp", "x", "y", "z", "qw", "qx", "qy", "qz")  # of a CSV file, in any order
TUM = ("timestamp", "x", "y", "z", "qx", "qy", "qz", "qw")  # of a text file, in this order
_LARGEST = 1 << 28  # bytes of a table
_UNIT = 0.01  # by which the length of a quaternion may differ from 1


class Pose(NamedTuple):
    """Hold a row of the table: seconds, and the pose (4, 4) float64, metres."""

    timestamp: float
    pose: np.ndarray


def write_drive(
    calibration: Path, images: Path, poses: Path, out: Path, pose_of: str = "ego", scene: Optional[str] = None
) -> List[str]:
    """Write the rig file ``out`` of a drive; return lines about it.

    calibration: a rig file, whose frames are not read. images: holds a folder with the images of each camera, named as
    the camera is; the n-th image of each, ordered by name, and the n-th row of ``poses`` are one frame. pose_of: what
    the poses are of, "ego", "lidar" or a camera. scene: the drive's name; default: that of the folder. Raises DataError
    where they do not fit together or the poses jump, and ConfigError where ``out`` cannot be written.
    """
    scene = scene or images.absolute().name
    root = read_json(calibration)
    if isinstance(root.value, dict):
        root = Node({key: value for key, value in root.value.items() if key != "frames"}, root.where)
    records_of(root, calibration.absolute().parent, scene)  # its checks
    names = [camera["name"] for camera in root.value["cameras"]]
    files, rows = images_of(images, names), read_poses(poses)
    if len(rows) != len(files):
        raise DataError(
            f"{poses}: has {len(rows)} poses, and {images / names[0]} {len(files)} images; expected a pose for each "
            "image, in the order of their names"
        )
    to_ego, folder = _ego2sensor(root, pose_of), out.absolute().parent
    frames = [
        {
            "token": f"{scene}-{i:06d}",
            "scene": scene,
            "timestamp": row.timestamp,
            "images": {name: _beside(file, folder) for name, file in moment.items()},
            "ego2global": _parts(row.pose @ to_ego),
        }
        for i, (row, moment) in enumerate(zip(rows, files))
    ]
    content = {**root.value, "frames": frames}
    records = records_of(Node(content, str(out)), folder, scene)
    before = predecessors(records, "ego", str(poses))
    with atomic_file(out) as file:
        file.write(json.dumps(content, indent=1).encode())
    return list(_about(out, records, before))


def _about(out: Path, records: Sequence[Record], before: Sequence[Optional[int]]) -> Iterator[str]:
    times = [record.timestamp or 0.0 for record in records]
    places = np.array([record.ego2global[:3, 3] for record in records if record.ego2global is not None])
    metres = float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
    cameras = len(records[0].camera_names)
    yield f"{out}: {len(records)} frames of {cameras} cameras, {times[-1] - times[0]:.1f} s, {metres:.1f} m"
    for i, last in enumerate(before):
        if i and last is None:
            yield (
                f"{records[i].token} is {times[i] - times[i - 1]:.2f} s after the frame before it, more than "
                f"{LONGEST_GAP:g} s: it is not read as its past"
            )


def images_of(folder: Path, names: Sequence[str]) -> List[Dict[str, Path]]:
    """Return the images of each moment by camera: the n-th of each camera's folder, numbers in names by their value.

    Raises DataError for a folder that is absent or empty, and for different numbers of images.
    """
    found: Dict[str, List[Path]] = {}
    for name in names:
        own = folder / name
        if not own.is_dir():
            raise DataError(f"{own}: no such folder; expected the images of camera {name}, of one moment each")
        found[name] = sorted((p for p in own.iterdir() if p.suffix.lower() in IMAGE_KINDS), key=_by_number)
        if not found[name]:
            raise DataError(f"{own}: holds no image ({', '.join(IMAGE_KINDS)})")
    fewest, most = (choose(names, key=lambda name: len(found[name])) for choose in (min, max))
    if len(found[fewest]) != len(found[most]):
        raise DataError(
            f"{folder}: camera {fewest} has {len(found[fewest])} images, {most} has {len(found[most])}; expected "
            "as many of each, because the n-th images of all cameras are one frame: remove those that a "
            "camera missed"
        )
    return [dict(zip(names, moment)) for moment in zip(*(found[name] for name in names))]


def _by_number(path: Path) -> Tuple[List[Any], str]:
    """Return the key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"(\d+)", path.stem)
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], path.name


def read_poses(path: Path) -> List[Pose]:
    """Return the rows of a table: CSV whose first line names COLUMNS, or text with TUM's eight numbers a line.

    Raises DataError for a file of another kind, numbers that are no pose, and times that do not increase.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path}: has more than {_LARGEST >> 20} MB; expected a table of poses")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is no text"
        raise DataError(f"{path}: cannot be read ({reason}); expected a table of poses, CSV or TUM's") from err
    kept = [(i + 1, line) for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    if not kept:
        raise DataError(f"{path}: is empty; expected {_layouts()}")
    order: Sequence[str] = TUM
    if "," in kept[0][1]:
        order = [word.strip() for word in next(csv.reader([kept.pop(0)[1]]))]
        if sorted(order) != sorted(COLUMNS):
            raise DataError(f"{path}: its first line is {', '.join(order)[:200]}; expected {_layouts()}")
    rows = [_row(f"{path}: line {number}", line, order) for number, line in kept]
    for (number, _), before, now in zip(kept[1:], rows, rows[1:]):
        if now.timestamp <= before.timestamp:
            raise DataError(
                f"{path}: line {number} has the time {now.timestamp:.6f} s, not later than {before.timestamp:.6f} s "
                "of the line before; expected the order of time"
            )
    return rows


def _layouts() -> str:
    return f"CSV whose first line has the names {','.join(COLUMNS)}, or TUM's lines of {' '.join(TUM)}"


def _row(where: str, line: str, order: Sequence[str]) -> Pose:
    words = line.split(",") if order is not TUM else line.split()
    try:
        values = dict(zip(order, map(float, words)))
    except ValueError:
        values = {}
    if len(words) != len(order) or not all(math.isfinite(value) for value in values.values()) or not values:
        raise DataError(f"{where} is {line.strip()[:80]!r}; expected {len(order)} finite numbers, {' '.join(order)}")
    if not abs(values["timestamp"]) < MOST_SECONDS:
        raise DataError(
            f"{where} has the time {values['timestamp']:g}; expected seconds (divide micro- or nanoseconds)"
        )
    pose = np.array([values[name] for name in ("x", "y", "z", "qw", "qx", "qy", "qz")])
    length = float(np.linalg.norm(pose[3:]))
    if abs(length - 1) > _UNIT:
        raise DataError(
            f"{where} has a quaternion of length {length:.3g}; expected 1 (the order is {' '.join(order[4:])})"
        )
    return Pose(values["timestamp"], matrices(pose))


def _ego2sensor(root: Node, pose_of: str) -> np.ndarray:
    """Return the transform (4, 4) from the vehicle's frame to that of the lidar or of a camera, whose poses are given.

    Raises ConfigError for another name, and DataError where the calibration does not say where it is on the vehicle.
    """
    if pose_of == "ego":
        return np.eye(4)
    nodes = root.fields(tuple(root.value))["cameras"].items("cameras")
    cameras = {camera.name: camera for camera in map(read_camera, nodes)}
    if pose_of != "lidar" and pose_of not in cameras:
        raise ConfigError(f"poses are said to be of {pose_of!r}; expected ego, lidar or a camera: {', '.join(cameras)}")
    lidar2ego = read_pose(Node(root.value["lidar2ego"], "lidar2ego")) if "lidar2ego" in root.value else None
    on_vehicle = lidar2ego if pose_of == "lidar" else None
    if pose_of in cameras:
        camera = cameras[pose_of]
        if camera.place == "camera2ego":
            on_vehicle = camera.pose
        elif lidar2ego is not None:
            on_vehicle = lidar2ego @ camera.pose
    if on_vehicle is None:
        raise DataError(
            f"{root.where}: does not say where {pose_of} is on the vehicle, whose poses are given; add lidar2ego, or "
            "camera2ego of that camera"
        )
    return np.linalg.inv(on_vehicle)


def _parts(pose: np.ndarray) -> Dict[str, List[float]]:
    return {"translation": pose[:3, 3].tolist(), "rotation": quaternions(pose[:3, :3]).tolist()}


def _beside(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.absolute(), folder)).as_posix()
