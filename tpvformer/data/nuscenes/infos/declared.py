"""What info records say beside paths and poses: numbers a point of the scan, distortion of the lenses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Mapping, Optional

import numpy as np

_EXACT = frozenset(("d", "dist", "k1", "k2", "k3", "k4", "p1", "p2", "xi"))
_MOST_COLUMNS = 64


def scan_columns(info: Mapping[str, Any]) -> Optional[int]:
    """Numbers a point that a record declares for its raw scan, as mmdetection3d does; None where it does not.
    Raises ValueError where that is no such number."""
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
    """Raises ValueError where the record of a camera holds coefficients of distortion other than zero."""
    cameras = next((info[key] for key in ("cams", "images", "cam_infos") if isinstance(info.get(key), Mapping)), {})
    for name, camera in cameras.items():
        if not isinstance(camera, Mapping):
            continue  # KITTI's R0_rect stands among the cameras
        inner = camera.get("calibrated_sensor")  # of BEVDepth's
        for source in (camera, inner if isinstance(inner, Mapping) else {}):
            check_distortion(str(name), source)


def check_distortion(name: str, camera: Mapping[str, Any]) -> None:
    """The same for one camera, or its row of calibrated_sensor."""
    for key, value in camera.items():
        if isinstance(key, str) and _is_distortion(key) and _any_number(value):
            raise ValueError(
                f"{name} has the {key[:40]} {' '.join(str(value).split())[:40]}, but the model knows pinhole cameras "
                "only: undistort the images, store the intrinsics of the result, leave the key out"
            )


@lru_cache(maxsize=1024)  # the same few keys stand in every record
def _is_distortion(key: str) -> bool:
    key = key.lower()
    return key in _EXACT or (key.startswith(("distort", "dist_", "cam_dist", "camera_dist")) or "_distort" in key)


def _any_number(value: Any) -> bool:
    """Whether anything but zeros, text and nothing stands in numbers, lists, arrays or dicts of them."""
    left = [value]
    while left:  # not by recursion, because these may be nested deeper than Python calls
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
