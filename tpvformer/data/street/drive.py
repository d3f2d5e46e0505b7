"""One scene on disk: the ego drives down a street, six cameras and the lidar record key frames."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

import cv2
import numpy as np

from tpvformer.data.street import rig
from tpvformer.data.street.camera import render_camera
from tpvformer.data.street.dense import write_dense_labels
from tpvformer.data.street.lidar import render_lidar
from tpvformer.data.street.populate import Thing
from tpvformer.data.street.shadows import cast_shadows
from tpvformer.data.street.world import Street, build_street

VERSION = "v1.0-mini"
JPEG_QUALITY = 95
FIRST_SECOND = 1_532_400_000  # the first scene's time stamp, in seconds since 1970
SECONDS_BETWEEN_SCENES = 1000


@dataclass(frozen=True)
class Task:
    """One scene for a worker to render. ``size`` is (width, height) of the images in pixels."""

    folder: str
    name: str
    index: int
    frames: int
    size: Tuple[int, int]
    seed: int
    lidar_tokens: Tuple[str, ...]  # of the lidar sample_data records; label files are named by them
    sample_tokens: Tuple[str, ...] = ()  # of the key frames, where dense labels are wanted; those are named by them


@dataclass(frozen=True)
class Reading:
    """One sensor's file of a key frame and the ego2global pose at that moment."""

    channel: str
    timestamp: int  # microseconds
    filename: str  # relative to the data root
    ego_translation: Tuple[float, float, float]
    ego_rotation: Tuple[float, float, float, float]


@dataclass(frozen=True)
class KeyFrame:
    """One sample: its readings (lidar first) and the number of lidar points on each annotated object that was hit."""

    timestamp: int
    readings: List[Reading]
    hits: Dict[int, int]  # index of SceneRecord.things -> points


@dataclass(frozen=True)
class SceneRecord:
    """The facts of a scene that the tables contain. ``things`` are in the global frame."""

    name: str
    logfile: str
    date: str
    frames: List[KeyFrame]
    things: List[Thing]


@dataclass(frozen=True)
class Ride:
    """The ego's motion, constant speed along the road with a little pitch and roll, and the scene's global pose."""

    street: Street
    speed: float  # m/s
    sway: Tuple[float, float, float, float]  # pitch and roll amplitude (rad), their frequencies (rad/s)
    yaw: float  # scene2global
    offset: Tuple[float, float]

    def ego(self, seconds: float) -> Tuple[Tuple[float, float, float], Tuple[float, float, float]]:
        """Return position (metres) and (yaw, pitch, roll) (radians) in the scene frame."""
        x, y, heading = self.street.road.at(self.speed * seconds, self.street.ego_s)
        pitch, roll, f, g = self.sway
        return (x, y, 0.0), (heading, pitch * math.sin(f * seconds + 1), roll * math.sin(g * seconds))

    def to_global(self, x: float, y: float) -> Tuple[float, float]:
        co, si = math.cos(self.yaw), math.sin(self.yaw)
        return self.offset[0] + co * x - si * y, self.offset[1] + si * x + co * y


def start_ride(seed: int, index: int, frames: int) -> Ride:
    """Draw the street of scene number ``index`` and the ride through it; equal arguments give equal rides."""
    rng = np.random.default_rng([seed, index])
    speed = rng.uniform(5.0, 11.0)
    street = build_street(rng, speed * (frames - 1) * rig.KEYFRAME_MICROSECONDS * 1e-6)
    sway = (rng.uniform(0, 0.006), rng.uniform(0, 0.006), rng.uniform(1, 4), rng.uniform(1, 4))
    return Ride(street, speed, sway, rng.uniform(-math.pi, math.pi), (rng.uniform(300, 1500), rng.uniform(500, 1800)))


def scene_clock(index: int) -> Tuple[int, str, str]:
    """Return time stamp in microseconds, log file name and date of the scene with this number."""
    second = FIRST_SECOND + index * SECONDS_BETWEEN_SCENES
    local = datetime.datetime.fromtimestamp(second, datetime.timezone(datetime.timedelta(hours=8)))
    return second * 1_000_000, local.strftime("n015-%Y-%m-%d-%H-%M-%S+0800"), local.strftime("%Y-%m-%d")


def record_scene(task: Task) -> SceneRecord:
    """Render every key frame of a scene and write its images, sweeps and labels. Raises OSError."""
    ride = start_ride(task.seed, task.index, task.frames)
    rng = np.random.default_rng([task.seed, task.index, 1])
    shadows = cast_shadows(ride.street)
    sensors = rig.sensor_poses()
    start, logfile, date = scene_clock(task.index)
    root = Path(task.folder)
    frames = []
    for k in range(task.frames):
        stamp = start + k * rig.KEYFRAME_MICROSECONDS
        readings = []
        hits: Dict[int, int] = {}
        poses: Dict[str, np.ndarray] = {}
        for channel, delay, extension in [
            (rig.LIDAR_CHANNEL, 0, "pcd.bin"),
            *((c.channel, c.trigger_us, "jpg") for c in rig.CAMERAS),
        ]:
            position, angles = ride.ego((k * rig.KEYFRAME_MICROSECONDS + delay) * 1e-6)
            sensor2scene = rig.pose(position, rig.euler_quaternion(*angles)) @ sensors[channel]
            poses[channel] = sensor2scene
            filename = f"samples/{channel}/{logfile}__{channel}__{stamp + delay}.{extension}"
            grain = int(rng.integers(1, 1 << 20))
            if channel == rig.LIDAR_CHANNEL:
                sweep = render_lidar(ride.street, sensor2scene, grain)
                content = sweep.points.tobytes()
                labels = root / "lidarseg" / VERSION / f"{task.lidar_tokens[k]}_lidarseg.bin"
                labels.write_bytes(sweep.labels.tobytes())
                seen, counts = np.unique(sweep.objects[sweep.objects >= 0], return_counts=True)
                hits = {int(i): int(n) for i, n in zip(seen, counts)}
            else:
                camera = next(c for c in rig.CAMERAS if c.channel == channel)
                gain = ride.street.light.exposure * rng.uniform(0.92, 1.08)
                image, _, _ = render_camera(
                    ride.street, shadows, sensor2scene, camera.intrinsic(task.size), task.size, gain, grain
                )
                content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
            (root / filename).write_bytes(content)
            x, y = ride.to_global(position[0], position[1])
            rotation = rig.euler_quaternion(angles[0] + ride.yaw, angles[1], angles[2])
            readings.append(Reading(channel, stamp + delay, filename, (x, y, 0.0), rotation))
        frames.append(KeyFrame(stamp, readings, hits))
        if task.sample_tokens:
            ego2scene = poses[rig.LIDAR_CHANNEL] @ np.linalg.inv(sensors[rig.LIDAR_CHANNEL])
            scan = Path(readings[0].filename).name
            token = task.sample_tokens[k]
            write_dense_labels(root, task.name, token, scan, ride.street, ego2scene, poses)
    things = [
        Thing(t.label, (*ride.to_global(t.centre[0], t.centre[1]), t.centre[2]), t.size, t.yaw + ride.yaw)
        for t in ride.street.things
    ]
    return SceneRecord(task.name, logfile, date, frames, things)
