"""Read one camera of a rig: image size, intrinsics and pose."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import numpy as np

from tpvformer.data.nuscenes.infos.plausible import intrinsics_problem
from tpvformer.data.rig.json_file import Node
from tpvformer.errors import DataError
from tpvformer.geometry import is_degenerate, lidar_to_image, matrices

KEYS = ("name", "width", "height", "intrinsics", "camera2ego", "camera2lidar", "distortion")
PLACES = ("camera2ego", "camera2lidar")
LONGEST_SIDE = 16384  # pixels
_MODELS = ("pinhole", "plumb_bob", "rational_polynomial", "radtan", "none")  # without distortion they are all the same
TOLERANCE = 0.01  # of a rotation's entries, so that three digits are enough


class Camera(NamedTuple):
    """Hold a camera as described in the rig file."""

    name: str
    size: Tuple[int, int]  # width, height in pixels
    intrinsics: np.ndarray  # (3, 3) float64, pixels
    place: str  # "camera2ego" or "camera2lidar"
    pose: np.ndarray  # (4, 4) float64, metres; camera axes: x right, y down, z forward

    def camera2lidar(self, lidar2ego: Optional[np.ndarray]) -> np.ndarray:
        """Return camera2lidar (4, 4); ``lidar2ego`` is needed if the file gives camera2ego."""
        if self.place == "camera2lidar":
            return self.pose
        assert lidar2ego is not None
        return np.linalg.inv(lidar2ego) @ self.pose


def read_camera(node: Node) -> Camera:
    """Read a camera. Raises DataError if it is not a valid pinhole camera."""
    fields = node.fields(KEYS, needed=("name", "width", "height", "intrinsics"))
    name = fields["name"].text()
    if len(name) > 200:
        raise fields["name"].refuse("a name of 200 letters at most")
    fields = {key: Node(field.value, f"{node.where} ({name}): {key}") for key, field in fields.items()}
    given = [key for key in PLACES if key in fields]
    if len(given) != 1:
        raise DataError(
            f"{node.where} ({name}) has {' and '.join(given) or 'neither camera2ego nor camera2lidar'}; expected one "
            "of the two, the camera's pose"
        )
    _check_distortion(fields.get("distortion"))
    size = fields["width"].count(LONGEST_SIDE), fields["height"].count(LONGEST_SIDE)
    camera = Camera(name, size, _intrinsics(fields["intrinsics"]), given[0], read_pose(fields[given[0]]))
    if is_degenerate(lidar_to_image(camera.pose[:3, :3], camera.pose[:3, 3], camera.intrinsics)):
        raise DataError(f"{node.where} ({name}): its numbers make no projection that can be inverted; correct them")
    return camera


def _intrinsics(node: Node) -> np.ndarray:
    matrix = node.numbers(3, 3)
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or matrix[1, 0] != 0 or matrix[2].tolist() != [0, 0, 1]:
        raise node.refuse("[[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels, with fx and fy above 0")
    problem = intrinsics_problem(matrix)
    if problem:
        raise DataError(f"{node.where} {problem}; expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    return matrix


def _check_distortion(node: Optional[Node]) -> None:
    if node is not None and _any_number(node.value):
        raise DataError(
            f"{node.where} is not zero, but the model knows pinhole cameras only; undistort the images (cv2.undistort, "
            "cv2.fisheye.undistortImage), give the intrinsics of the result, and leave the key out"
        )


def _any_number(value: Any) -> bool:
    """Return whether a value contains anything but zeros, nulls and names of distortion models."""
    left = [value]
    while left:  # no recursion, because the nesting may be deeper than Python's limit
        found = left.pop()
        if isinstance(found, list):
            left.extend(found)
        elif isinstance(found, dict):  # the model's name does not matter where all coefficients are 0
            left.extend(v for v in found.values() if v not in _MODELS)
        elif found is not None and (isinstance(found, bool) or found != 0):
            return True
    return False


def read_pose(node: Node) -> np.ndarray:
    """Read a pose (4, 4) float64 from a 4x4 or 3x4 matrix, or of {translation, rotation} with a quaternion or a 3x3
    matrix; raises DataError where it is no rigid motion."""
    if isinstance(node.value, dict):
        return _of_parts(node)
    if not isinstance(node.value, list):
        raise node.refuse("a 4x4 matrix, or an object with translation and rotation")
    pose = np.eye(4)
    if len(node.value) in (3, 12):  # [R | t]
        pose[:3] = node.numbers(3, 4)
    else:
        pose = node.numbers(4, 4)
    if pose[3].tolist() != [0, 0, 0, 1]:
        raise DataError(f"{node.where} has the last row {pose[3].tolist()}; expected [0, 0, 0, 1]")
    _check_rotation(pose[:3, :3], node.where)
    return pose


def _of_parts(node: Node) -> np.ndarray:
    parts = node.fields(("translation", "rotation"), needed=("translation", "rotation"))
    translation, rotation = parts["translation"].numbers(3), parts["rotation"]
    given = rotation.value if isinstance(rotation.value, list) else []
    if len(given) == 9 or (given and isinstance(given[0], list)):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation.numbers(3, 3), translation
        _check_rotation(pose[:3, :3], rotation.where)
        return pose
    if len(given) == 3:
        raise rotation.refuse("a quaternion (w, x, y, z) or a 3x3 matrix; turn angles or a rotation vector into one")
    quaternion = rotation.numbers(4)
    if abs(np.linalg.norm(quaternion) - 1) > TOLERANCE:
        raise rotation.refuse("a unit quaternion, in the order w, x, y, z")
    return matrices(np.concatenate([translation, quaternion]))


def _check_rotation(turn: np.ndarray, where: str) -> None:
    """Raise DataError if a 3x3 matrix is not a rotation."""
    with np.errstate(all="ignore"):
        error = float(np.abs(turn @ turn.T - np.eye(3)).max())
        if not error <= TOLERANCE:
            raise DataError(f"{where}: its 3x3 part is no rotation (R R^T misses 1 by {error:.3g}); correct it")
        if np.linalg.det(turn) < 0:
            raise DataError(f"{where}: its 3x3 part is a mirror, not a rotation (determinant -1); correct an axis")
