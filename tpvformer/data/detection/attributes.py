"""Choose the attribute of a predicted box from its class and speed, as entries to nuScenes' detection task do."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE, Boxes

MOVING = 0.2  # m/s; a faster box moves

_VEHICLE = ("vehicle.parked", "vehicle.moving")
_CYCLE = ("cycle.without_rider", "cycle.with_rider")
_BY_CLASS: Dict[str, Optional[Tuple[str, str]]] = {  # at rest, moving
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "bus": _VEHICLE,
    "trailer": _VEHICLE,
    "barrier": None,
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
    "traffic_cone": None,
}
_TABLE = np.array(
    [
        [NO_ATTRIBUTE, NO_ATTRIBUTE] if pair is None else [ATTRIBUTES.index(name) for name in pair]
        for pair in (_BY_CLASS[name] for name in DETECTION_CLASSES)
    ]
)


def attributes_of(boxes: Boxes) -> np.ndarray:
    """Return the attribute (N,) int64 of each box, an index of ATTRIBUTES or NO_ATTRIBUTE (cones and barriers).

    A box whose velocity is unknown (NaN) is taken to stand. Labels must be those of DETECTION_CLASSES.
    """
    speed = np.linalg.norm(boxes.velocities, axis=1)
    return _TABLE[boxes.labels, (speed > MOVING).astype(np.int64)]
