"""Rigs for the tests: files of tiny frames and of samples of info files, projections, a ring of pinhole cameras."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from torch import Tensor

Rig = Dict[str, Any]


def camera(name: str, turn: float = 0.0, size: Tuple[int, int] = (77, 45), focal: float = 60.0) -> Rig:
    """A level camera that looks ``turn`` degrees to the right of lidar y."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    pose = [[c, 0, s, 0.1], [-s, 0, c, 0.2], [0, -1, 0, -0.3], [0, 0, 0, 1]]
    intrinsics = [[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]]
    return {"name": name, "width": size[0], "height": size[1], "intrinsics": intrinsics, "camera2lidar": pose}


THREE = (camera("front"), camera("left", -90, (96, 64), 48.0), camera("right", 90, (48, 64), 40.0))


def write_images(folder: Path, cameras: Sequence[Rig], frame: str = "", seed: int = 0) -> Dict[str, str]:
    """Random pictures of the cameras' sizes; their names by camera."""
    rng, names = np.random.RandomState(seed), {}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for one in cameras:
        names[one["name"]] = f"images/{frame}{one['name']}.jpg"
        picture = rng.randint(0, 256, (one["height"], one["width"], 3)).astype(np.uint8)
        assert cv2.imwrite(str(folder / names[one["name"]]), picture)
    return names


def write_rig(
    folder: Path, cameras: Sequence[Rig] = THREE, points: Sequence[int] = (), labelled: bool = True, **more: Any
) -> Path:
    """A rig file in ``folder`` with its images; one frame for each entry of ``points``, which has a scan of so many
    points, or none for 0; without entries one frame without a list."""
    rig: Rig = {"format": "tpvformer-rig-1", "cameras": list(cameras), **more}
    rng = np.random.RandomState(1)
    if not points:
        write_images(folder, cameras)
    for i, number in enumerate(points):
        frame: Rig = {
            "token": f"frame{i}",
            "images": write_images(folder, cameras, f"{i}-", i),
            "scene": f"drive{i % 2}",
        }
        if number:
            frame["lidar"] = f"{i}.bin"
            cloud = rng.uniform(-50, 50, (number, 5)).astype("<f4")
            cloud[:, 4] = np.arange(number) % 32  # the ring
            cloud.tofile(folder / frame["lidar"])
        if number and labelled:
            frame["labels"] = f"{i}.label.bin"
            rng.randint(0, 32, number).astype(np.uint8).tofile(folder / frame["labels"])
        rig.setdefault("frames", []).append(frame)
    return save(folder / "rig.json", rig)


def save(path: Path, rig: Any) -> Path:
    path.write_text(json.dumps(rig))
    return path


POSES = [np.eye(4) for _ in range(4)]  # of a vehicle that drives on
for _i, _pose in enumerate(POSES):
    _pose[:2, 3] = 3 * _i, 0.5 * _i


def drive_of(folder: Path, **more: Any) -> Path:
    """A rig of four frames, of one scene, with POSES and times, half a second apart."""
    rig = json.loads(
        write_rig(folder, THREE, (40, 0, 30, 20), labelled=False, lidar2ego=np.eye(4).tolist()).read_text()
    )
    for i, one in enumerate(rig["frames"]):
        one.update(scene="drive", ego2global=POSES[i].tolist(), timestamp=100 + i / 2, **more)
    return save(folder / "rig.json", rig)


def rig_of_infos(infos: Path, files: Path, out: Path, index: int = 0, scan: str = "", labels: str = "") -> Path:
    """The rig file of one sample of an info pickle whose images lie anywhere below ``files``; cameras in reverse."""
    info = pickle.loads(infos.read_bytes())["infos"][index]  # noqa: S301 - only the tests' own files and recorded ones
    rig: Rig = {"format": "tpvformer-rig-1", "cameras": []}
    images: Dict[str, str] = {}
    for name, stored in reversed(list(info["cams"].items())):
        path = find(files, stored["data_path"])
        height, width = cv2.imread(str(path)).shape[:2]
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = stored["sensor2lidar_rotation"], stored["sensor2lidar_translation"]
        intrinsics = np.asarray(stored["cam_intrinsic"]).tolist()
        images[name] = str(path)
        rig["cameras"].append(
            {"name": name, "width": width, "height": height, "intrinsics": intrinsics, "camera2lidar": pose.tolist()}
        )
    frame: Rig = {"token": info["token"], "images": images}
    if scan:
        frame["lidar"] = scan
    if labels:
        frame["labels"] = labels
    rig["frames"] = [frame]
    return save(out, rig)


def find(folder: Path, stored: Union[str, Path]) -> Path:
    return next(iter(folder.rglob(Path(stored).name)))


def changed(rig: Rig, where: str, value: Any = None, remove: Optional[bool] = None) -> Rig:
    """A copy with another value at a dotted place, such as "cameras.0.width"."""
    copy = json.loads(json.dumps(rig))
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    node = copy
    for part in path:
        node = node[part]
    if remove:
        del node[last]
    else:
        node[last] = value
    return copy


def matrices(cameras: Sequence[Rig]) -> Dict[str, np.ndarray]:
    """lidar2img (4,4) of each camera by its name."""
    made = {}
    for one in cameras:
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = one["intrinsics"]
        made[one["name"]] = intrinsics @ np.linalg.inv(one["camera2lidar"])
    return made


def ring_of_cameras(height: int, width: int, cameras: int = 6, turn: float = 0.0) -> Tensor:
    """lidar2img (cameras,4,4) float32 of level cameras 60 degrees apart, turned together by ``turn`` radians."""
    focal = 0.8 * width
    intrinsics = torch.tensor([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    rig = []
    for camera in range(cameras):
        yaw = turn + camera * math.pi / 3
        right = [math.cos(yaw), math.sin(yaw), 0, 0]
        ahead = [-math.sin(yaw), math.cos(yaw), 0, -0.5]
        extrinsics = torch.tensor([right, [0, 0, -1, -0.3], ahead, [0, 0, 0, 1]])
        rig.append(intrinsics @ extrinsics)
    return torch.stack(rig)
