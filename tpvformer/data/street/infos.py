"""Info records of synthetic scenes, in the form that BEVFormer and TPVFormer read; one of them as a rig file."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from tpvformer.data.street import rig
from tpvformer.data.street.drive import Reading, SceneRecord
from tpvformer.data.street.tables import Row, Tokens
from tpvformer.labels import CLASS_NAMES, RAW_TO_CLASS

LONGEST_GAP = 1.5  # seconds between two annotations, beyond which the devkit gives no velocity; twice that for three


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


def _velocity(record: SceneRecord, index: int, k: int) -> np.ndarray:
    """Return an object's velocity (2,) in the global frame, m/s, NaN where unknown, as nuscenes-devkit computes it.

    It is the difference between the annotations before and after frame ``k``, or between one of them and this one.
    """
    frames = record.annotated(index)
    n = frames.index(k)
    before, after = max(n - 1, 0), min(n + 1, len(frames) - 1)
    first, last = record.frames[frames[before]], record.frames[frames[after]]
    seconds = (last.timestamp - first.timestamp) * 1e-6
    if not 0 < seconds <= LONGEST_GAP * (after - before):
        return np.full(2, np.nan)
    return np.subtract(last.sights[index].thing.centre, first.sights[index].thing.centre)[:2] / seconds


def _boxes(record: SceneRecord, k: int, lidar2global: np.ndarray) -> Row:
    """Return the annotations of a frame in the lidar frame, as BEVFormer's and mmdetection3d 0.x's converters do.

    ``gt_boxes`` (N, 7) float64 holds the middle of the box (its gravity centre), width, length, height, and -yaw - pi/2
    where yaw is that of the box in the lidar frame, counter-clockwise from its x axis. mmdetection3d 1.x differs.
    """
    rotation, origin = lidar2global[:3, :3].T, lidar2global[:3, 3]
    sights = record.frames[k].sights
    things = [sight.thing for sight in sights.values()]
    centres = (np.array([thing.centre for thing in things]).reshape(-1, 3) - origin) @ rotation.T
    yaw = np.array([thing.yaw for thing in things])
    co, si = np.cos(yaw), np.sin(yaw)  # below: pyquaternion's yaw of the box's rotation in the lidar frame
    yaw = np.arctan2(rotation[0, 0] * si - rotation[0, 1] * co, rotation[0, 0] * co + rotation[0, 1] * si)
    sizes = np.array([thing.size for thing in things]).reshape(-1, 3)
    velocities = np.array([_velocity(record, i, k) for i in sights]).reshape(-1, 2)
    points = np.array([sight.points for sight in sights.values()], np.int64)
    return {
        "gt_boxes": np.concatenate([centres, sizes, -yaw[:, None] - np.pi / 2], 1),
        "gt_names": np.array([CLASS_NAMES[RAW_TO_CLASS[thing.label]] for thing in things], np.str_),
        "gt_velocity": velocities @ rotation[:2, :2].T,
        "num_lidar_pts": points,
        "num_radar_pts": np.zeros_like(points),
        "valid_flag": points > 0,
    }


def frame_info(token: Tokens, record: SceneRecord, k: int, size: Tuple[int, int]) -> Row:
    """Return one record of an info file, in the form that BEVFormer and TPVFormer read; paths relative to the root."""
    scene, frame, count = record.name, record.frames[k], len(record.frames)
    readings = {r.channel: r for r in frame.readings}
    lidar = readings[rig.LIDAR_CHANNEL]
    lidar2global = rig.pose(lidar.ego_translation, lidar.ego_rotation) @ rig.pose(
        rig.LIDAR_TRANSLATION, rig.LIDAR_ROTATION
    )
    return {
        "lidar_path": lidar.filename,
        "token": token("sample", scene, k),
        "prev": token("sample", scene, k - 1) if k else "",
        "next": token("sample", scene, k + 1) if k + 1 < count else "",
        "frame_idx": k,
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
        **_boxes(record, k, lidar2global),
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
