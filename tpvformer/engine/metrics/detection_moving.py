"""Compute the velocity error of moving objects: the mean over true positives whose true speed exceeds 0.2 m/s.

mave averages over all objects, most of which stand, and is then small for a model that predicts no velocity at all.
Here the length of the difference between true and predicted velocity is averaged over the matches within 2 m alone
whose truth moves; every match counts once, whatever its class and score. The threshold is that of the attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from tpvformer.data.detection.attributes import MOVING
from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.engine.metrics.bootstrap import interval
from tpvformer.engine.metrics.detection_curves import DEFINED, ERROR_NAMES

_VELOCITY = ERROR_NAMES.index("ave")


@dataclass(frozen=True)
class MovingVelocity:
    """Hold the velocity error of moving objects in m/s; None where no moving object was found.

    ``interval`` holds 95 % bounds, from the bootstrap over scenes; None for fewer than two scenes.
    """

    error: Optional[float]
    interval: Optional[Tuple[float, float]]
    of_class: Tuple[Optional[float], ...]  # by DETECTION_CLASSES
    count: int  # matches that are averaged


def moving_velocity(
    labels: np.ndarray, errors: np.ndarray, speeds: np.ndarray, scenes: np.ndarray, many: int
) -> MovingVelocity:
    """Return the error of n matches within 2 m: labels (n,), errors (n, 5), true speeds (n,) m/s, scenes (n,).

    ``scenes`` are numbers below ``many``, the number of scenes of the set. Rows are summed in the order given.
    """
    fast = speeds.astype(np.float32) > np.float32(MOVING)  # as velocities are stored; false where they are unknown
    kept = fast & DEFINED[labels, _VELOCITY]
    values, labels = errors[kept, _VELOCITY], labels[kept]
    of_class = tuple(_mean(values[labels == label]) for label in range(len(DETECTION_CLASSES)))
    per_scene = np.zeros((many, 2))
    np.add.at(per_scene, scenes[kept], np.stack([values, np.ones(len(values))], 1))
    bounds = interval(torch.from_numpy(per_scene), _share) if len(values) else None
    return MovingVelocity(_mean(values), bounds, of_class, len(values))


def _mean(values: np.ndarray) -> Optional[float]:
    return float(values.mean()) if len(values) else None


def _share(sums: Tensor) -> Tensor:
    """Return the mean (...) of sums and counts (..., 2); NaN where nothing was counted."""
    total, count = sums.unbind(-1)
    return torch.where(count > 0, total / count, torch.nan)
