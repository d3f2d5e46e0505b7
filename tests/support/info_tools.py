"""Info files in the layouts of several tools, made from the pickle of a tiny set (tiny_nuscenes.py)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from tiny_nuscenes import write_tiny

from tpvformer.config import DataConfig
from tpvformer.data.nuscenes.infos.columns import Infos, Shots
from tpvformer.data.nuscenes.infos.tensor_file import TensorFile, write_tensors
from tpvformer.untrusted.pickle import load_pickle

Info = Dict[str, Any]
LAYOUTS = ("infos", "list", "scenes", "data_list", "bevdepth", "safetensors")
IDENTITY = {"translation": [0.0, 0.0, 0.0], "rotation": [1.0, 0.0, 0.0, 0.0]}


def records(cfg: DataConfig) -> List[Info]:
    return load_pickle(cfg.val_infos)["infos"]


def write_set(root: Path, *args: Any, **options: Any) -> DataConfig:
    """``write_tiny`` with cameras that are no mirrors, whose rotations can be quaternions."""
    cfg = write_tiny(root, *args, **options)
    infos = records(cfg)
    for info in infos:
        for camera in info["cams"].values():
            camera["sensor2lidar_rotation"] = np.asarray(camera["sensor2lidar_rotation"]) * [-1, 1, 1]
    store(cfg, {"infos": infos})
    return cfg


def store(cfg: DataConfig, content: Any) -> None:
    """Writes the info file of a set anew."""
    Path(cfg.val_infos).write_bytes(pickle.dumps(content, protocol=2))


def edit(cfg: DataConfig, change: Callable[[List[Info]], Any]) -> None:
    infos = records(cfg)
    change(infos)
    store(cfg, {"infos": infos})


def listed(info: Info, order: Optional[Sequence[str]]) -> Info:
    """The record with its cameras in another order; those that ``order`` leaves out are absent."""
    return {**info, "cams": {name: info["cams"][name] for name in order or info["cams"]}}


def camera2lidar(camera: Info) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
    return made


def modern(info: Info) -> Info:
    """The record as mmdetection3d 1.x has it; files keep their folders."""
    images = {
        name: {
            "img_path": camera["data_path"],
            "cam2img": camera["cam_intrinsic"].tolist(),
            "lidar2cam": np.linalg.inv(camera2lidar(camera)).tolist(),
        }
        for name, camera in info["cams"].items()
    }
    points = {"num_pts_feats": 5, "lidar_path": info["lidar_path"]}
    return {"sample_idx": 0, "token": info["token"], "images": images, "lidar_points": points}


def depth(info: Info) -> Info:
    """The record as BEVDepth has it, of a lidar at the vehicle's origin and a vehicle that stands; rotations as rows
    of a matrix are turned into quaternions by the reader."""
    cameras = {
        name: {
            "filename": camera["data_path"],
            "calibrated_sensor": {
                "translation": camera["sensor2lidar_translation"].tolist(),
                "rotation": camera["sensor2lidar_rotation"].tolist(),
                "camera_intrinsic": camera["cam_intrinsic"].tolist(),
            },
            "ego_pose": IDENTITY,
        }
        for name, camera in info["cams"].items()
    }
    lidar = {"filename": info["lidar_path"], "calibrated_sensor": IDENTITY, "ego_pose": IDENTITY}
    return {"sample_token": info["token"], "cam_infos": cameras, "lidar_infos": {"LIDAR_TOP": lidar}}


def tensors(infos: Sequence[Info], path: Path) -> None:
    """A file of ours whose cameras have the order of the first record."""
    cameras = tuple(infos[0]["cams"])
    views = [info["cams"][name] for info in infos for name in cameras]
    count, sweeps = len(infos), np.zeros(len(infos) + 1, np.int64)

    def shots(files: List[str], rotation: np.ndarray, translation: np.ndarray) -> Shots:
        poses = np.tile([0.0, 0, 0, 1, 0, 0, 0], (len(files), 1))
        names = [str(i) for i in range(len(files))]
        return Shots(names, files, np.zeros(len(files), np.int64), poses, poses, rotation, translation)

    images = shots(
        [view["data_path"] for view in views],
        np.array([view["sensor2lidar_rotation"] for view in views]),
        np.array([view["sensor2lidar_translation"] for view in views]),
    )
    scans = shots([info["lidar_path"] for info in infos], np.tile(np.eye(3), (count, 1, 1)), np.zeros((count, 3)))
    none = shots([], np.zeros((0, 3, 3)), np.zeros((0, 3)))
    intrinsics = np.array([view["cam_intrinsic"] for view in views]).reshape(count, len(cameras), 3, 3)
    tokens, stamps = [info["token"] for info in infos], np.zeros(count, np.int64)
    made = Infos("v1.0-mini", cameras, tokens, [""] * count, stamps, scans, images, intrinsics, none, sweeps)
    write_tensors(made, path)


def columns_of(file: TensorFile) -> Dict[str, Any]:
    """Every column of a file of ours, by its name. Raises DataError where one is damaged."""
    count, cameras = file.count, len(file.cameras)
    columns: Dict[str, Any] = {name: file.text(name, count) for name in ("tokens", "scenes")}
    columns["timestamps"] = file.array("timestamps", count)
    columns["intrinsics"] = file.array("intrinsics", count, cameras, 3, 3)
    for name, rows in (("scans", count), ("images", count * cameras)):
        shapes = {"timestamps": (), "sensor2ego": (7,), "ego2global": (7,), "rotation": (3, 3), "translation": (3,)}
        columns[name] = {
            **{part: file.text(f"{name}.{part}", rows) for part in ("tokens", "files")},
            **{part: file.array(f"{name}.{part}", rows, *shape) for part, shape in shapes.items()},
        }
    return columns


def write_layout(cfg: DataConfig, layout: str, folder: Path, order: Optional[Sequence[str]] = None) -> Path:
    """The set's infos in a layout, with their cameras in ``order``; returns the file."""
    infos = [listed(info, order) for info in records(cfg)]
    path = folder / (f"{layout}.safetensors" if layout == "safetensors" else f"{layout}.pkl")
    if layout == "safetensors":
        tensors(infos, path)
        return path
    content: Any = {
        "infos": lambda: {"infos": infos, "metadata": {}},
        "list": lambda: infos,
        "scenes": lambda: {"infos": {"scene-1": infos[:1], "scene-2": infos[1:]}},
        "data_list": lambda: {"metainfo": {}, "data_list": [modern(info) for info in infos]},
        "bevdepth": lambda: [depth(info) for info in infos],
    }[layout]()
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path
