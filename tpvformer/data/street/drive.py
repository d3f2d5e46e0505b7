"""One scene on disk: the ego drives down a street, six cameras and the lidar record key frames.

Each sensor sees the street as it is at its own time.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import cv2
import numpy as np

from tpvformer.data.street import rig
from tpvformer.data.street.camera import render_camera
from tpvformer.data.street.dense import write_dense_labels
from tpvformer.data.street.lidar import LIDAR_REACH, render_lidar
from tpvformer.data.street.populate import Thing
from tpvformer.data.street.shadows import cast_shadows
from tpvformer.data.street.visibility import Visibility
from tpvformer.data.street.world import Street, build_street

VERSION = "v1.0-mini"
JPEG_QUALITY = 95
LONGEST = 7.0  # metres: no object reaches farther from its middle
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


class Sight(NamedTuple):
    """An annotated object at a key frame."""

    thing: Thing  # in the global frame, at the lidar's time
    points: int  # of the lidar
    share: float  # of it that the cameras see, 0 to 1


@dataclass(frozen=True)
class KeyFrame:
    """One sample: its readings (lidar first), and the annotated objects by their index in the scene."""

    timestamp: int
    readings: List[Reading]
    sights: Dict[int, Sight]


@dataclass(frozen=True)
class SceneRecord:
    """The facts of a scene that the tables contain.

    An object is annotated from the first frame in which the lidar hits it to the last, where it is within reach.
    """

    name: str
    logfile: str
    date: str
    frames: List[KeyFrame]

    def annotated(self, index: int) -> List[int]:
        """Return the frames that annotate an object."""
        return [k for k, frame in enumerate(self.frames) if index in frame.sights]


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


def start_ride(seed: int, index: int, frames: int, still: bool = False) -> Ride:
    """Draw the street of scene number ``index`` and the ride through it; equal arguments give equal rides.

    With ``still`` the street is meant to be seen as it is at time 0 from the whole ride.
    """
    rng = np.random.default_rng([seed, index])
    speed, seconds = rng.uniform(5.0, 11.0), (frames - 1) * rig.KEYFRAME_MICROSECONDS * 1e-6
    street = build_street(rng, speed * seconds, 0.0 if still else seconds)
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
        poses: Dict[str, np.ndarray] = {}
        streets: Dict[str, Street] = {}
        hits: Dict[int, int] = {}
        moment = k * rig.KEYFRAME_MICROSECONDS * 1e-6
        things = _near(ride, moment)
        view = Visibility(ride.street.at(moment), list(things), ride.ego(moment)[0], LIDAR_REACH + 2 * LONGEST)
        for channel, delay, extension in [
            (rig.LIDAR_CHANNEL, 0, "pcd.bin"),
            *((c.channel, c.trigger_us, "jpg") for c in rig.CAMERAS),
        ]:
            seconds = (k * rig.KEYFRAME_MICROSECONDS + delay) * 1e-6
            position, angles = ride.ego(seconds)
            street = streets[channel] = ride.street.at(seconds)
            sensor2scene = rig.pose(position, rig.euler_quaternion(*angles)) @ sensors[channel]
            poses[channel] = sensor2scene
            filename = f"samples/{channel}/{logfile}__{channel}__{stamp + delay}.{extension}"
            grain = int(rng.integers(1, 1 << 20))
            if channel == rig.LIDAR_CHANNEL:
                sweep = render_lidar(street, sensor2scene, grain)
                content = sweep.points.tobytes()
                labels = root / "lidarseg" / VERSION / f"{task.lidar_tokens[k]}_lidarseg.bin"
                labels.write_bytes(sweep.labels.tobytes())
                seen, counts = np.unique(sweep.objects[sweep.objects >= 0], return_counts=True)
                hits = dict(zip(seen.tolist(), counts.tolist()))
            else:
                camera = next(c for c in rig.CAMERAS if c.channel == channel)
                view.look(street, camera, sensor2scene)
                gain, shaded = (
                    street.light.exposure * rng.uniform(0.92, 1.08),
                    shadows.with_movers(street, sensor2scene),
                )
                image, _, _ = render_camera(
                    street, shaded, sensor2scene, camera.intrinsic(task.size), task.size, gain, grain
                )
                content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
            (root / filename).write_bytes(content)
            x, y = ride.to_global(position[0], position[1])
            rotation = rig.euler_quaternion(angles[0] + ride.yaw, angles[1], angles[2])
            readings.append(Reading(channel, stamp + delay, filename, (x, y, 0.0), rotation))
        shares = view.shares()
        sights = {i: Sight(_in_global(ride, thing), hits.get(i, 0), shares[i]) for i, thing in things.items()}
        frames.append(KeyFrame(stamp, readings, sights))
        if task.sample_tokens:
            ego2scene = poses[rig.LIDAR_CHANNEL] @ np.linalg.inv(sensors[rig.LIDAR_CHANNEL])
            scan = Path(readings[0].filename).name
            write_dense_labels(root, task.name, task.sample_tokens[k], scan, streets, ego2scene, poses)
    return SceneRecord(task.name, logfile, date, _lives(frames))


def _near(ride: Ride, seconds: float) -> Dict[int, Thing]:
    """Return the annotated objects, in the scene frame, of which the lidar reaches some part, and a few more."""
    (x, y, _), _ = ride.ego(seconds)
    things = enumerate(ride.street.things_at(seconds))
    reach = LIDAR_REACH + LONGEST
    return {i: t for i, t in things if math.hypot(t.centre[0] - x, t.centre[1] - y) < reach}


def _in_global(ride: Ride, thing: Thing) -> Thing:
    (x, y), (vx, vy) = ride.to_global(*thing.centre[:2]), thing.velocity
    co, si = math.cos(ride.yaw), math.sin(ride.yaw)
    velocity = (co * vx - si * vy, si * vx + co * vy)
    return Thing(thing.label, thing.attribute, (x, y, thing.centre[2]), thing.size, thing.yaw + ride.yaw, velocity)


def _lives(frames: List[KeyFrame]) -> List[KeyFrame]:
    """Return the frames with each object's sights from the first with lidar points to the last."""
    first: Dict[int, int] = {}
    last: Dict[int, int] = {}
    for k, frame in enumerate(frames):
        for i in (i for i, sight in frame.sights.items() if sight.points):
            last[i] = k
            first.setdefault(i, k)
    return [
        dataclasses.replace(
            frame, sights={i: s for i, s in frame.sights.items() if first.get(i, k + 1) <= k <= last[i]}
        )
        for k, frame in enumerate(frames)
    ]
