"""The nuScenes tables of synthetic scenes: plain dictionaries, ready for JSON.

Field meanings: nuScenes schema v1.0. Tokens are MD5 digests of the seed and of the row's name, so that equal parameters
give equal files.
"""

from __future__ import annotations

import hashlib
from typing import Any, Dict, List, Sequence, Tuple

from tpvformer.data.street import rig
from tpvformer.data.street.drive import VERSION, SceneRecord
from tpvformer.data.street.visibility import level
from tpvformer.labels import RAW_NAMES

Row = Dict[str, Any]
CHANNELS = (*(c.channel for c in rig.CAMERAS), rig.LIDAR_CHANNEL)
ATTRIBUTE_NAMES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
LOCATION = "singapore-onenorth"
TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip


class Tokens:
    """Make tokens: 32 hexadecimal digits for each name, the same for the same name and seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, *name: object) -> str:
        text = "/".join(str(part) for part in (self.seed, *name))
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    def reading(self, scene: str, frame: int, channel: str) -> str:
        """Return the token of a sample_data record, which its ego_pose and lidarseg records share."""
        return self("sample_data", scene, frame, channel)


def _linked(tokens: Sequence[str], k: int) -> Dict[str, str]:
    return {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}


def constant_tables(token: Tokens) -> Dict[str, List[Row]]:
    """Return the tables that do not depend on scenes: categories, attributes, visibility levels, sensors."""
    return {
        "category": [
            {"token": token("category", i), "name": name, "description": "", "index": i}
            for i, name in enumerate(RAW_NAMES)
        ],
        "attribute": [{"token": token("attribute", n), "name": n, "description": ""} for n in ATTRIBUTE_NAMES],
        "visibility": [
            {"token": str(i + 1), "level": name, "description": f"visibility of the whole object is {name[1:]} %"}
            for i, name in enumerate(VISIBILITY)
        ],
        "sensor": [
            {"token": token("sensor", c), "channel": c, "modality": "lidar" if c == rig.LIDAR_CHANNEL else "camera"}
            for c in CHANNELS
        ],
    }


def _calibration(token: Tokens, scene: str, size: Tuple[int, int]) -> List[Row]:
    rows = [
        {
            "token": token("calibrated_sensor", scene, rig.LIDAR_CHANNEL),
            "sensor_token": token("sensor", rig.LIDAR_CHANNEL),
            "translation": list(rig.LIDAR_TRANSLATION),
            "rotation": list(rig.LIDAR_ROTATION),
            "camera_intrinsic": [],
        }
    ]
    for camera in rig.CAMERAS:
        rows.append(
            {
                "token": token("calibrated_sensor", scene, camera.channel),
                "sensor_token": token("sensor", camera.channel),
                "translation": list(camera.translation),
                "rotation": list(camera.rotation),
                "camera_intrinsic": camera.intrinsic(size).tolist(),
            }
        )
    return rows


def _annotations(token: Tokens, record: SceneRecord) -> Tuple[List[Row], List[Row]]:
    """Return the instances, and an annotation for every frame of an object's life (SceneRecord)."""
    instances, annotations = [], []
    for i in sorted({i for frame in record.frames for i in frame.sights}):
        seen = record.annotated(i)
        names = [token("annotation", record.name, i, k) for k in seen]
        instance = token("instance", record.name, i)
        instances.append(
            {
                "token": instance,
                "category_token": token("category", record.frames[seen[0]].sights[i].thing.label),
                "nbr_annotations": len(seen),
                "first_annotation_token": names[0],
                "last_annotation_token": names[-1],
            }
        )
        for n, k in enumerate(seen):
            sight = record.frames[k].sights[i]
            thing = sight.thing
            annotations.append(
                {
                    "token": names[n],
                    "sample_token": token("sample", record.name, k),
                    "instance_token": instance,
                    "visibility_token": str(level(sight.share)),
                    "attribute_tokens": [token("attribute", thing.attribute)] if thing.attribute else [],
                    "translation": list(thing.centre),
                    "size": list(thing.size),
                    "rotation": list(rig.euler_quaternion(thing.yaw)),
                    **_linked(names, n),
                    "num_lidar_pts": sight.points,
                    "num_radar_pts": 0,
                }
            )
    return instances, annotations


def scene_tables(token: Tokens, record: SceneRecord, size: Tuple[int, int]) -> Dict[str, List[Row]]:
    """Return the rows that one scene adds to the tables. ``size`` is the images' (width, height)."""
    count = len(record.frames)
    samples = [token("sample", record.name, k) for k in range(count)]
    scene, log = token("scene", record.name), token("log", record.name)
    rows: Dict[str, List[Row]] = {name: [] for name in (*TABLES, "lidarseg")}
    rows["log"].append(
        {"token": log, "logfile": record.logfile, "vehicle": "n015", "date_captured": record.date, "location": LOCATION}
    )
    rows["scene"].append(
        {
            "token": scene,
            "log_token": log,
            "nbr_samples": count,
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": record.name,
            "description": "Synthetic street",
        }
    )
    rows["calibrated_sensor"] = _calibration(token, record.name, size)
    rows["instance"], rows["sample_annotation"] = _annotations(token, record)
    chains = {c: [token.reading(record.name, k, c) for k in range(count)] for c in CHANNELS}
    for k, frame in enumerate(record.frames):
        rows["sample"].append(
            {"token": samples[k], "timestamp": frame.timestamp, **_linked(samples, k), "scene_token": scene}
        )
        for reading in frame.readings:
            lidar = reading.channel == rig.LIDAR_CHANNEL
            own = chains[reading.channel][k]
            rows["ego_pose"].append(
                {
                    "token": own,
                    "timestamp": reading.timestamp,
                    "rotation": list(reading.ego_rotation),
                    "translation": list(reading.ego_translation),
                }
            )
            rows["sample_data"].append(
                {
                    "token": own,
                    "sample_token": samples[k],
                    "ego_pose_token": own,
                    "calibrated_sensor_token": token("calibrated_sensor", record.name, reading.channel),
                    "timestamp": reading.timestamp,
                    "fileformat": "pcd" if lidar else "jpg",
                    "is_key_frame": True,
                    "height": 0 if lidar else size[1],
                    "width": 0 if lidar else size[0],
                    "filename": reading.filename,
                    **_linked(chains[reading.channel], k),
                }
            )
            if lidar:
                labels = f"lidarseg/{VERSION}/{own}_lidarseg.bin"
                rows["lidarseg"].append({"token": own, "sample_data_token": own, "filename": labels})
    return rows
