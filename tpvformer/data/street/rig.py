"""The sensor rig of nuScenes vehicle n015: six cameras and a 32-beam lidar, with the arithmetic of poses.

Quaternions are [w, x, y, z]. A pose ``a2b`` is a 4x4 float64 matrix that takes points of frame a to frame b, metres.
Frames: ego (x forward, y left, z up, on the ground under the rear axle); lidar (x right, y forward, z up);
camera (x right, y down, z forward). Calibration values: nuScenes scene-0061 (facts of the public data set).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Sequence, Tuple

import numpy as np

REFERENCE_SIZE = (1600, 900)  # width, height of the images the intrinsics were measured on
BEAMS = 32
FIRINGS = 1085  # azimuth steps of one turn; a sweep has at most FIRINGS * BEAMS points
KEYFRAME_MICROSECONDS = 500_000


@dataclass(frozen=True)
class Camera:
    """One camera of the rig. ``focal`` and ``centre`` are pixels of REFERENCE_SIZE."""

    channel: str
    focal: float
    centre: Tuple[float, float]
    translation: Tuple[float, float, float]  # sensor -> ego, metres
    rotation: Tuple[float, float, float, float]  # sensor -> ego
    trigger_us: int  # microseconds after the lidar time stamp (cameras fire before it)

    def intrinsic(self, size: Tuple[int, int]) -> np.ndarray:
        """Return the intrinsics (3, 3) in pixels of an image of ``size`` (width, height); pixel i spans [i, i + 1)."""
        sx, sy = size[0] / REFERENCE_SIZE[0], size[1] / REFERENCE_SIZE[1]
        return np.array(
            [[self.focal * sx, 0, self.centre[0] * sx], [0, self.focal * sy, self.centre[1] * sy], [0, 0, 1]]
        )


# in the order of the info files, which is the order of the model's camera embeddings
CAMERAS: Tuple[Camera, ...] = (
    Camera(
        "CAM_FRONT",
        1266.417203046554,
        (816.2670197447984, 491.50706579294757),
        (1.70079118954, 0.0159456324149, 1.51095763913),
        (0.4998015430569128, -0.5030316162024876, 0.4997798114386805, -0.49737083824542755),
        -35491,
    ),
    Camera(
        "CAM_FRONT_RIGHT",
        1260.8474446004698,
        (807.968244525554, 495.3344268742088),
        (1.5508477543, -0.493404796419, 1.49574800619),
        (0.2060347966337182, -0.2026940577919598, 0.6824507824531167, -0.6713610884174485),
        -27612,
    ),
    Camera(
        "CAM_FRONT_LEFT",
        1272.5979470598488,
        (826.6154927353808, 479.75165386361925),
        (1.52387798135, 0.494631336551, 1.50932822144),
        (0.6757265034669446, -0.6736266522251881, 0.21214015046209478, -0.21122827103904068),
        -43107,
    ),
    Camera(
        "CAM_BACK",
        809.2209905677063,
        (829.2196003259838, 481.77842384512485),
        (0.0283260309358, 0.00345136761476, 1.57910346144),
        (0.5037872666382278, -0.49740249788611096, -0.4941850223835201, 0.5045496097725578),
        -10426,
    ),
    Camera(
        "CAM_BACK_LEFT",
        1256.7414812095406,
        (792.1125740759628, 492.7757465151356),
        (1.03569100218, 0.484795032713, 1.59097014818),
        (0.6924185592174665, -0.7031619420114925, -0.11648342771943819, 0.11203317912370753),
        -528,
    ),
    Camera(
        "CAM_BACK_RIGHT",
        1259.5137405846733,
        (807.2529053838625, 501.19579884916527),
        (1.0148780988, -0.480568219723, 1.56239545128),
        (0.12280980120078765, -0.132400842670559, -0.7004305821388234, 0.690496031265798),
        -20058,
    ),
)
LIDAR_CHANNEL = "LIDAR_TOP"
LIDAR_TRANSLATION = (0.943713, 0.0, 1.84023)
LIDAR_ROTATION = (0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817)


def beam_elevations() -> np.ndarray:
    """Return the elevation of each beam, (32,) radians above the lidar's horizon, ring 0 (lowest) first."""
    return np.radians(-30.667 + 1.3333 * np.arange(BEAMS))


def rotation_matrix(q: Sequence[float]) -> np.ndarray:
    """Return the rotation matrix (3, 3) of a quaternion, which is normalised first."""
    w, x, y, z = np.asarray(q, np.float64) / math.sqrt(sum(v * v for v in q))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def euler_quaternion(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Tuple[float, float, float, float]:
    """Return the quaternion of rotations about z, then the new y, then the new x (radians)."""
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    cp, sp = math.cos(pitch / 2), math.sin(pitch / 2)
    cr, sr = math.cos(roll / 2), math.sin(roll / 2)
    return (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )


def pose(translation: Sequence[float], rotation: Sequence[float]) -> np.ndarray:
    """Return the pose matrix (4, 4) of a translation in metres and a quaternion."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(rotation)
    matrix[:3, 3] = translation
    return matrix


def sensor_poses() -> Dict[str, np.ndarray]:
    """Return sensor2ego (4, 4) of the lidar and of every camera, by channel."""
    poses = {LIDAR_CHANNEL: pose(LIDAR_TRANSLATION, LIDAR_ROTATION)}
    poses.update({c.channel: pose(c.translation, c.rotation) for c in CAMERAS})
    return poses
