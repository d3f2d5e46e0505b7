"""Writes nuScenes tables of any size, row by row: all twelve channels, files between the key frames, a turning vehicle.

No images or scans are written. With 850 scenes of 40 or 41 key frames sample_data has as many rows as v1.0-trainval's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Dict, List, Sequence, TextIO, Tuple

from tpvformer.data.street import rig

RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
LIDAR_FILES, CAMERA_FILES, RADAR_FILES = 10, 6, 6.5  # of a channel in the half second up to a key frame
STEP = 500_000  # microseconds between key frames
FIRST = 1_532_402_927_000_000


def token(kind: int, *numbers: int) -> str:
    """32 hexadecimal digits."""
    value = kind
    for number in numbers:
        value = value * 100_003 + number
    return f"{value * 0x9E3779B97F4A7C15 % 2**64:016x}{value % 2**64:016x}"


def vehicle(scene: int, time: int) -> Tuple[List[float], List[float]]:
    """Translation and quaternion of ego2global, ``time`` microseconds after the scene's start: a bend at 8 m/s."""
    seconds = time / 1e6
    yaw = 0.3 * scene + 0.05 * seconds
    place = [400 + scene % 50 + 160 * math.sin(yaw), 1200 + scene % 70 - 160 * math.cos(yaw), 0.0]
    return place, list(rig.euler_quaternion(yaw, 0.01 * math.sin(seconds), 0.02 * math.cos(seconds)))


def mounted() -> Dict[str, Tuple[Sequence[float], Sequence[float], List[List[float]], int, float]]:
    """By channel: translation, rotation, intrinsics, microseconds after the key frame, files in half a second."""
    found: Dict[str, Tuple[Sequence[float], Sequence[float], List[List[float]], int, float]] = {
        rig.LIDAR_CHANNEL: (rig.LIDAR_TRANSLATION, rig.LIDAR_ROTATION, [], 0, LIDAR_FILES)
    }
    for camera in rig.CAMERAS:
        own = (camera.translation, camera.rotation, camera.intrinsic((1600, 900)).tolist(), camera.trigger_us)
        found[camera.channel] = (*own, CAMERA_FILES)
    for i, channel in enumerate(RADARS):
        found[channel] = ((3.4, 0.1 * i, 0.5), (1.0, 0.0, 0.0, 0.0), [], -3000 * i, RADAR_FILES)
    return found


def write_tables(root: Path, version: str, scenes: Sequence[str], samples: Sequence[int]) -> int:
    """Tables of the scenes with these numbers of key frames; returns the rows of sample_data."""
    folder = root / version
    folder.mkdir(parents=True)
    (root / "maps").mkdir()
    (root / "maps" / "all.png").touch()
    logs = [token(1, s) for s in range(len(scenes))]
    sensors = mounted()
    tables: Dict[str, List[dict]] = {name: [] for name in ("category", "attribute", "visibility", "instance")}
    tables["sample_annotation"] = []
    tables["map"] = [{"token": "m", "log_tokens": logs, "category": "semantic_prior", "filename": "maps/all.png"}]
    tables["log"] = [
        {"token": t, "logfile": f"n015-{s}", "vehicle": "n015", "date_captured": "2018-07-24", "location": "boston"}
        for s, t in enumerate(logs)
    ]
    tables["sensor"] = [{"token": token(2, i), "channel": c, "modality": kind(c)} for i, c in enumerate(sensors)]
    tables["calibrated_sensor"] = [
        {
            "token": token(3, s, i),
            "sensor_token": token(2, i),
            "translation": list(sensors[c][0]),
            "rotation": list(sensors[c][1]),
            "camera_intrinsic": sensors[c][2],
        }
        for s in range(len(scenes))
        for i, c in enumerate(sensors)
    ]
    tables["scene"] = [
        {
            "token": token(4, s),
            "log_token": logs[s],
            "nbr_samples": samples[s],
            "first_sample_token": token(5, s, 0),
            "last_sample_token": token(5, s, samples[s] - 1),
            "name": name,
            "description": "braces } in { a text",
        }
        for s, name in enumerate(scenes)
    ]
    tables["sample"] = [
        {
            "token": token(5, s, k),
            "timestamp": start(s) + k * STEP,
            "prev": token(5, s, k - 1) if k else "",
            "next": token(5, s, k + 1) if k + 1 < samples[s] else "",
            "scene_token": token(4, s),
        }
        for s in range(len(scenes))
        for k in range(samples[s])
    ]
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    with (folder / "sample_data.json").open("w") as shots, (folder / "ego_pose.json").open("w") as poses:
        return sum(write_scene(shots, poses, s, samples[s], last=s + 1 == len(scenes)) for s in range(len(scenes)))


def kind(channel: str) -> str:
    return {"C": "camera", "L": "lidar", "R": "radar"}[channel[0]]


def start(scene: int) -> int:
    return FIRST + scene * 100_000_000


def write_scene(shots: TextIO, poses: TextIO, scene: int, count: int, last: bool) -> int:
    """The scene's rows of the two large tables, channel by channel, one key a line as in the real files."""
    rows, places = [], []
    for i, (channel, (_, _, _, offset, rate)) in enumerate(mounted().items()):
        total = int((count - 1) * rate) + 1
        keys = {int(k * rate): k for k in range(count)}
        sample = 0
        camera = channel.startswith("CAM")
        for n in range(total):
            key = n in keys
            sample = keys[n] if key else int(n // rate) + 1
            # a file's time lies on the line between the key frames around it; key frames are hit exactly
            before = int((sample - 1) * rate)
            time = sample * STEP if key else (sample - 1) * STEP + (n - before) * STEP // (int(sample * rate) - before)
            own, extension = token(6, scene, i, n), "jpg" if camera else "pcd.bin" if channel[0] == "L" else "pcd"
            name = f"{'samples' if key else 'sweeps'}/{channel}/n015-{scene}__{channel}__{start(scene) + time + offset}"
            rows.append(
                f'{{\n"token": "{own}",\n"sample_token": "{token(5, scene, sample)}",\n"ego_pose_token": "{own}",\n'
                f'"calibrated_sensor_token": "{token(3, scene, i)}",\n"timestamp": {start(scene) + time + offset},\n'
                f'"fileformat": "{"jpg" if camera else "pcd"}",\n"is_key_frame": {"true" if key else "false"},\n'
                f'"height": {900 if camera else 0},\n"width": {1600 if camera else 0},\n'
                f'"filename": "{name}.{extension}",\n'
                f'"prev": "{token(6, scene, i, n - 1) if n else ""}",\n'
                f'"next": "{token(6, scene, i, n + 1) if n + 1 < total else ""}"\n}}'
            )
            place, turn = vehicle(scene, time + offset)
            places.append(
                f'{{\n"token": "{own}",\n"timestamp": {start(scene) + time + offset},\n'
                f'"rotation": {json.dumps(turn)},\n"translation": {json.dumps(place)}\n}}'
            )
    for file, texts in ((shots, rows), (poses, places)):
        file.write(("[\n" if scene == 0 else ",\n") + ",\n".join(texts) + ("\n]" if last else ""))
    return len(rows)
