"""A ring of pinhole cameras around the car, for tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ring_of_cameras(height: int, width: int, cameras: int = 6, turn: float = 0.0) -> Tensor:
    """lidar2img (cameras,4,4) float32 of level cameras 60 degrees apart, turned together by ``turn`` radians."""
    focal = 0.8 * width
    intrinsics = torch.tensor([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    rig = []
    for camera in range(cameras):
        yaw = turn + camera * math.pi / 3
        right = [math.cos(yaw), math.sin(yaw), 0, 0]
        ahead = [-math.sin(yaw), math.cos(yaw), 0, -0.5]
        extrinsics = torch.tensor([right, [0, 0, -1, -0.3], ahead, [0, 0, 0, 1]])
        rig.append(intrinsics @ extrinsics)
    return torch.stack(rig)
