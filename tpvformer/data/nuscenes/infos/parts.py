"""The pieces that records of every layout are made of: numbers, poses, intrinsics, tokens and the names of files."""

from __future__ import annotations

from typing import Any, Callable, List, Mapping, TypeVar

import numpy as np

from tpvformer.data.nuscenes.infos.plausible import intrinsics_problem
from tpvformer.geometry import quaternions

_Made = TypeVar("_Made")


def each(cameras: Mapping[str, Any], read: Callable[[Any], _Made]) -> List[_Made]:
    """What ``read`` makes of each camera; raises ValueError that names the camera it cannot read."""
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
    """float64 of exactly this shape; raises ValueError."""
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise ValueError(f"{array.dtype} of shape {array.shape} where numbers of shape {shape} belong")
    return array.astype(np.float64)


def intrinsics(value: Any) -> np.ndarray:
    """(4, 4) float64, camera metres to (u * depth, v * depth, depth, 1): of a 3x3 matrix, or of a 3x4 or 4x4 one,
    whose last column is kept (KITTI's cameras stand beside the one that the others are measured from)."""
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
    if problem and np.isfinite(made).all():  # others are found with the projection
        raise ValueError(f"the matrix of intrinsics {problem}")
    return made


def square(value: Any) -> np.ndarray:
    """(4, 4) float64 of a transform that is stored with its last row, 0 0 0 1, or without; raises ValueError."""
    array = np.asarray(value)
    given, made = numbers(value, *((3, 4) if array.shape == (3, 4) else (4, 4))), np.eye(4)
    made[: len(given)] = given
    if not np.abs(made[3] - [0, 0, 0, 1]).max() < 1e-6:
        raise ValueError(f"a matrix with the last row {made[3].tolist()}, where [0, 0, 0, 1] belongs (transposed?)")
    return made


def pose(source: Mapping[str, Any], name: str = "") -> np.ndarray:
    """(1, 7): translation and quaternion, of ``name``_translation and ``name``_rotation: w, x, y, z, or a matrix."""
    translation, rotation = (source[f"{name}{part}"] for part in ("translation", "rotation"))
    turn = np.asarray(rotation)
    turn = quaternions(numbers(turn, 3, 3)) if turn.shape == (3, 3) else numbers(turn, 4)
    length = float(np.linalg.norm(turn))
    if np.isfinite(length) and abs(length - 1) > 0.01:
        raise ValueError(f"{name}rotation is {turn.tolist()}, no unit quaternion (w, x, y, z)")
    return np.concatenate([numbers(translation, 3), turn])[None]


def file_of(value: Any) -> str:
    """The name of a file as it is written here: what Windows wrote has other separators. Empty for None."""
    return "" if value is None else str(value).replace("\\", "/")


def image_of(value: Any) -> str:
    """The same of an image, without which there is no camera; raises ValueError."""
    name = file_of(value)
    if not name:
        raise ValueError("names no image")
    return name


def token_of(info: Mapping[str, Any]) -> str:
    """The record's token, or its number where the layout has numbers (KITTI, Waymo); raises KeyError."""
    found = next((key for key in ("token", "sample_token", "sample_idx") if info.get(key) is not None), "token")
    return str(info[found])
