"""Info records of synthetic scenes, in the form that BEVFormer and TPVFormer read; one of them as a rig file."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from tpvformer.data.street import rig
from tpvformer.data.street.drive import KeyFrame, Reading
from tpvformer.data.street.tables import Row, Tokens


def _camera_info(
    token: Tokens,
    scene: str,
    k: int,
    camera: rig.Camera,
    reading: Reading,
    lidar2global: np.ndarray,
    size: Tuple[int, int],
) -> Row:
    ego2global = rig.pose(reading.ego_translation, reading.ego_rotation)
    camera2lidar = np.linalg.inv(lidar2global) @ ego2global @ rig.pose(camera.translation, camera.rotation)
    return {
        "data_path": reading.filename,
        "type": camera.channel,
        "sample_data_token": token.reading(scene, k, camera.channel),
        "sensor2ego_translation": list(camera.translation),
        "sensor2ego_rotation": list(camera.rotation),
        "ego2global_translation": list(reading.ego_translation),
        "ego2global_rotation": list(reading.ego_rotation),
        "timestamp": reading.timestamp,
        "sensor2lidar_rotation": camera2lidar[:3, :3].copy(),
        "sensor2lidar_translation": camera2lidar[:3, 3].copy(),
        "cam_intrinsic": camera.intrinsic(size),
    }


def frame_info(token: Tokens, scene: str, k: int, frame: KeyFrame, size: Tuple[int, int]) -> Row:
    """Return one record of an info file, in the form that BEVFormer and TPVFormer read; paths relative to the root."""
    readings = {r.channel: r for r in frame.readings}
    lidar = readings[rig.LIDAR_CHANNEL]
    lidar2global = rig.pose(lidar.ego_translation, lidar.ego_rotation) @ rig.pose(
        rig.LIDAR_TRANSLATION, rig.LIDAR_ROTATION
    )
    return {
        "lidar_path": lidar.filename,
        "token": token("sample", scene, k),
        "sweeps": [],
        "cams": {
            c.channel: _camera_info(token, scene, k, c, readings[c.channel], lidar2global, size) for c in rig.CAMERAS
        },
        "lidar2ego_translation": list(rig.LIDAR_TRANSLATION),
        "lidar2ego_rotation": list(rig.LIDAR_ROTATION),
        "ego2global_translation": list(lidar.ego_translation),
        "ego2global_rotation": list(lidar.ego_rotation),
        "timestamp": frame.timestamp,
        "scene_token": token("scene", scene),
    }


def prefixed(info: Row, prefix: str) -> Row:
    """Return the record with ``prefix`` before its file names."""
    cameras = {name: {**camera, "data_path": prefix + camera["data_path"]} for name, camera in info["cams"].items()}
    return {**info, "lidar_path": prefix + info["lidar_path"], "cams": cameras}


def rig_file(info: Row, labels: str, size: Tuple[int, int]) -> Row:
    """Return the record as a rig file describes a frame (docs/rig.md), with the record's paths.

    The poses hold for this frame only: cameras fire up to 43 ms before the lidar, while the vehicle drives.
    """
    cameras = []
    for name, camera in info["cams"].items():
        camera2lidar = np.eye(4)
        camera2lidar[:3, :3], camera2lidar[:3, 3] = camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
        cameras.append(
            {
                "name": name,
                "width": size[0],
                "height": size[1],
                "intrinsics": camera["cam_intrinsic"].tolist(),
                "camera2lidar": camera2lidar.tolist(),
            }
        )
    frame = {
        "token": info["token"],
        "images": {name: camera["data_path"] for name, camera in info["cams"].items()},
        "lidar": info["lidar_path"],
        "labels": labels,
    }
    pose = {"translation": info["lidar2ego_translation"], "rotation": info["lidar2ego_rotation"]}
    return {"format": "tpvformer-rig-1", "cameras": cameras, "lidar2ego": pose, "frames": [frame]}
