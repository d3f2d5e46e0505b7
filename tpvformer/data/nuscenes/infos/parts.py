"""Read the parts of info records of every layout: numbers, poses, intrinsics, tokens and file names."""

from __future__ import annotations

from typing import Any, Callable, List, Mapping, Optional, TypeVar

import numpy as np

from tpvformer.data.nuscenes.infos.plausible import intrinsics_problem
from tpvformer.geometry import quaternions

_Made = TypeVar("_Made")
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # (smallest, numbers a second): since 1970 in ns, us, ms; else seconds


def each(cameras: Mapping[str, Any], read: Callable[[Any], _Made]) -> List[_Made]:
    """Apply ``read`` to each camera. Raises ValueError with the name of a camera that it cannot read."""
    if not cameras:
        raise ValueError("it lists no cameras")
    made = []
    for name, camera in cameras.items():
        try:
            made.append(read(camera))
        except KeyError as err:
            raise ValueError(f"camera {name} has no {err}") from err
        except (TypeError, ValueError, AttributeError, IndexError) as err:
            raise ValueError(f"camera {name}: {err}") from err
    return made


def numbers(value: Any, *shape: int) -> np.ndarray:
    """Convert to a float64 array. Raises ValueError where it has another shape or is not numeric."""
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise ValueError(f"{array.dtype} of shape {array.shape} where numbers of shape {shape} belong")
    return array.astype(np.float64)


def intrinsics(value: Any) -> np.ndarray:
    """Return (4, 4) float64, camera metres to (u * depth, v * depth, depth, 1), from a 3x3, 3x4 or 4x4 matrix.

    The last column is kept: KITTI's P matrices contain the camera's offset from camera 0. Raises ValueError.
    """
    array = np.asarray(value)
    if array.shape not in ((3, 3), (3, 4), (4, 4)):
        return numbers(value, 3, 3)  # raises
    given, made = numbers(value, *array.shape), np.eye(4)
    made[: array.shape[0], : array.shape[1]] = given
    if array.shape != (3, 3) and (made[2, :3].tolist() != [0, 0, 1] or made[3].tolist() != [0, 0, 0, 1]):
        raise ValueError(
            f"intrinsics of shape {array.shape} with the last rows {made[2:].tolist()}, where [0, 0, 1, t] and "
            "[0, 0, 0, 1] belong (is the matrix transposed?)"
        )
    problem = intrinsics_problem(made[:3, :3])
    if problem and np.isfinite(made).all():  # values that are not finite are found with the projection
        raise ValueError(f"the matrix of intrinsics {problem}")
    return made


def square(value: Any) -> np.ndarray:
    """Return a transform as (4, 4) float64, stored with its last row, 0 0 0 1, or without. Raises ValueError."""
    array = np.asarray(value)
    given, made = numbers(value, *((3, 4) if array.shape == (3, 4) else (4, 4))), np.eye(4)
    made[: len(given)] = given
    if not np.abs(made[3] - [0, 0, 0, 1]).max() < 1e-6:
        raise ValueError(f"a matrix with the last row {made[3].tolist()}, where [0, 0, 0, 1] belongs (transposed?)")
    return made


def pose(source: Mapping[str, Any], name: str = "") -> np.ndarray:
    """Return (1, 7), translation and quaternion, of the keys ``name`` + "translation" and ``name`` + "rotation".

    The rotation may be a quaternion w, x, y, z or a matrix. Raises KeyError or ValueError.
    """
    translation, rotation = (source[f"{name}{part}"] for part in ("translation", "rotation"))
    turn = np.asarray(rotation)
    turn = quaternions(numbers(turn, 3, 3)) if turn.shape == (3, 3) else numbers(turn, 4)
    length = float(np.linalg.norm(turn))
    if np.isfinite(length) and abs(length - 1) > 0.01:
        raise ValueError(f"{name}rotation is {turn.tolist()}, no unit quaternion (w, x, y, z)")
    return np.concatenate([numbers(translation, 3), turn])[None]


def seconds_of(value: Any) -> Optional[float]:
    """Return a timestamp in seconds; None where it is absent or no finite number.

    Tools store seconds (mmdetection3d 1.x, OpenPCDet) or microseconds (nuScenes' tables and most others) since 1970, so
    the number's size gives its unit. Times from another origin are taken for seconds.
    """
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "iuf" or not np.isfinite(array):
        return None
    stamp = float(array)
    return stamp / next((many for smallest, many in _UNITS if abs(stamp) >= smallest), 1.0)


def file_of(value: Any) -> str:
    """Return a file name with forward slashes, also where Windows wrote it; "" for None."""
    return "" if value is None else str(value).replace("\\", "/")


def image_of(value: Any) -> str:
    """Return the file name of an image like ``file_of``. Raises ValueError where it is empty."""
    name = file_of(value)
    if not name:
        raise ValueError("names no image")
    return name


def token_of(info: Mapping[str, Any]) -> str:
    """Return the record's token, or its number in layouts with numbers (KITTI, Waymo). Raises KeyError."""
    found = next((key for key in ("token", "sample_token", "sample_idx") if info.get(key) is not None), "token")
    return str(info[found])
