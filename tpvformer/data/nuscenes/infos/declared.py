"""Read further fields of info records: the numbers of a scan's point, and lens distortion, which is refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Mapping, Optional

import numpy as np

_EXACT = frozenset(("d", "dist", "k1", "k2", "k3", "k4", "p1", "p2", "xi"))
_MOST_COLUMNS = 64


def scan_columns(info: Mapping[str, Any]) -> Optional[int]:
    """Return the declared numbers of a point in the raw scan, as mmdetection3d writes it; None where it is absent.

    Raises ValueError where the value is no such number.
    """
    for place, name in (("lidar_points", "num_pts_feats"), ("point_cloud", "num_features")):
        value = info[place].get(name) if isinstance(info.get(place), Mapping) else None
        if value is not None:
            number = np.asarray(value)
            if number.shape != () or number.dtype.kind not in "iu" or not 3 <= number <= _MOST_COLUMNS:
                shown = " ".join(str(value).split())[:40]
                raise ValueError(f"{name} is {shown}; expected 3 to {_MOST_COLUMNS} numbers a point")
            return int(number)
    return None


def check_distortions(info: Mapping[str, Any]) -> None:
    """Raise ValueError where the record of a camera has distortion coefficients other than zero."""
    cameras = next((info[key] for key in ("cams", "images", "cam_infos") if isinstance(info.get(key), Mapping)), {})
    for name, camera in cameras.items():
        if not isinstance(camera, Mapping):
            continue  # KITTI's infos list the matrix R0_rect among the cameras
        inner = camera.get("calibrated_sensor")  # BEVDepth's layout
        for source in (camera, inner if isinstance(inner, Mapping) else {}):
            check_distortion(str(name), source)


def check_distortion(name: str, camera: Mapping[str, Any]) -> None:
    """Raise ValueError where a camera, or its row of calibrated_sensor, has distortion coefficients other than zero."""
    for key, value in camera.items():
        if isinstance(key, str) and _is_distortion(key) and _any_number(value):
            raise ValueError(
                f"{name} has the {key[:40]} {' '.join(str(value).split())[:40]}, but the model knows pinhole cameras "
                "only: undistort the images, store the intrinsics of the result, leave the key out"
            )


@lru_cache(maxsize=1024)  # every record has the same few keys
def _is_distortion(key: str) -> bool:
    key = key.lower()
    return key in _EXACT or (key.startswith(("distort", "dist_", "cam_dist", "camera_dist")) or "_distort" in key)


def _any_number(value: Any) -> bool:
    """Tell whether a number, or nested lists, arrays or dicts, contain a number other than zero."""
    left = [value]
    while left:  # no recursion, because the nesting may be deeper than Python's limit
        found = left.pop()
        if isinstance(found, Mapping):
            left.extend(found.values())
        elif isinstance(found, (list, tuple)):
            left.extend(found)
        elif not isinstance(found, (str, bytes, bool)) and found is not None:
            array = np.asarray(found)
            if array.dtype.kind in "iuf" and np.any(array != 0):
                return True
    return False
