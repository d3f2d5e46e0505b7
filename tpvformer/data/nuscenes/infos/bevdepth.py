"""Read records of BEVDepth's infos, which have each sensor's row of nuScenes' calibrated_sensor and ego_pose tables."""

from __future__ import annotations

from typing import Any, Mapping, Tuple

import numpy as np

from tpvformer.data.nuscenes.infos.parts import each, file_of, image_of, intrinsics, pose, seconds_of, token_of
from tpvformer.data.record import Record
from tpvformer.geometry import lidar_to_image, matrices, relative

_LIDAR = "LIDAR_TOP"


def bevdepth_record(info: Any) -> Record:
    """Convert a record. Its lidar2img contains the vehicle's motion between the times of camera and lidar.

    Raises KeyError or ValueError where the record is incomplete.
    """
    cameras, lidar = info["cam_infos"], info["lidar_infos"][_LIDAR]
    own = _poses(lidar)

    def placed(camera: Mapping[str, Any]) -> Tuple[np.ndarray, np.ndarray]:
        rotation, translation = relative(*_poses(camera), *own)
        return rotation[0], translation[0]

    places = each(cameras, placed)
    pixels = each(cameras, lambda camera: intrinsics(camera["calibrated_sensor"]["camera_intrinsic"]))
    return Record(
        token_of(info),
        file_of(lidar.get("filename")),
        tuple(map(str, cameras)),
        tuple(each(cameras, lambda camera: image_of(camera["filename"]))),
        lidar_to_image(np.stack([r for r, _ in places]), np.stack([t for _, t in places]), np.stack(pixels)),
        str(info.get("scene_token") or info.get("scene_name") or ""),
        matrices(own[0])[0],
        matrices(own[1])[0],
        timestamp=seconds_of(info["timestamp"] if "timestamp" in info else lidar.get("timestamp")),
    )


def _poses(sensor: Mapping[str, Any]) -> Tuple[np.ndarray, np.ndarray]:
    """Return sensor2ego and ego2global at the sensor's time, (1, 7) each."""
    return pose(sensor["calibrated_sensor"]), pose(sensor["ego_pose"])
