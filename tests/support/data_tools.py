"""Frames without a disk, and recorded draws, for the tests of the data path."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import torch

from tpvformer.data.types import Frame


class Script:
    """Answers each draw with the next recorded value, whatever is asked for."""

    def __init__(self, draws: List[Any]) -> None:
        self.left = list(draws)

    def _next(self, *_: Any) -> Any:
        return self.left.pop(0)

    rand = randint = uniform = permutation = _next


def frame_of(images: np.ndarray, lidar2img: np.ndarray) -> Frame:
    """A frame of images (N, H, W, 3) and 40 random points."""
    points = np.random.RandomState(3).uniform(-60, 60, (40, 3)).astype(np.float32)
    names = [f"CAM_{i}" for i in range(len(images))]
    return Frame("t", torch.from_numpy(images), names, lidar2img, points, np.arange(40, dtype=np.uint8) % 17)
