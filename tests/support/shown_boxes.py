"""Boxes for the tests of archives and views, and a detection head's stand-in."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np

from tpvformer.data.detection.boxes import Boxes
from tpvformer.predict.box_arrays import box_arrays

CAR, PEDESTRIAN, CONE = 0, 8, 9  # labels of boxes


def some_boxes(scores: bool = True, **changes: Any) -> Boxes:
    """A car 6 m ahead that drives to the right, a pedestrian behind, a cone; their scores are 0.9, 0.5 and 0.1."""
    values: Dict[str, Any] = {
        "centres": np.array([[1, 6, -0.5], [0, -5, -1], [-4, 8, -1]], np.float32),
        "sizes": np.array([[4, 2, 1.5], [0.7, 0.7, 1.8], [0.4, 0.4, 0.8]], np.float32),
        "yaws": np.array([0.0, 1.0, -2.0], np.float32),
        "velocities": np.array([[3, 0], [np.nan, np.nan], [0, 0]], np.float32),
        "labels": np.array([CAR, PEDESTRIAN, CONE]),
        "scores": np.array([0.9, 0.5, 0.1], np.float32) if scores else None,
    }
    return Boxes(**{**values, **changes})


def boxed(arrays: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """An archive's arrays with predicted boxes; the truth is the car, 1 m farther away."""
    found = some_boxes()
    centres = found.centres + np.array([0, 1, 0], np.float32)
    true = some_boxes(scores=False, centres=centres).take(np.array([0]))
    return {**arrays, **box_arrays(found, "box_"), **box_arrays(true, "true_box_")}
