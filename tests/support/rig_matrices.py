"""Projections of a rig, for tests of the Python interface."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np


def matrices(cameras: List[Dict[str, Any]]) -> Dict[str, np.ndarray]:
    made = {}
    for one in cameras:
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = one["intrinsics"]
        made[one["name"]] = intrinsics @ np.linalg.inv(one["camera2lidar"])
    return made
