"""Info records of synthetic scenes, in the form that BEVFormer and TPVFormer read."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from . import rig
from .drive import KeyFrame, Reading
from .tables import Row, Tokens


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
    """One record of an info file, in the form that BEVFormer and TPVFormer read; paths relative to the data root."""
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
