"""Boxes as arrays of an archive, and read back from it with every array checked."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import numpy as np

from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.errors import DataError
from tpvformer.predict.checked_arrays import CheckedArrays

PREDICTED, TRUE = "box_", "true_box_"  # what the arrays' names begin with
MAX_BOXES = 1 << 14
_LARGEST = 1e6  # metres, or m/s: what untrained weights give is below it
_NUMBERS = (("centres", 3), ("sizes", 3), ("yaws", 0), ("velocities", 2))


def box_arrays(boxes: Optional[Boxes], prefix: str) -> Dict[str, np.ndarray]:
    """Return the arrays of boxes in the lidar frame, as docs/rig.md lists them; none without boxes."""
    if boxes is None:
        return {}
    arrays = {prefix + name: getattr(boxes, name).astype(np.float32) for name, _ in _NUMBERS}
    arrays[prefix + "labels"] = boxes.labels.astype(np.uint8)
    if boxes.scores is not None:
        arrays[prefix + "scores"] = boxes.scores.astype(np.float32)
    return {**arrays, "box_names": np.array(DETECTION_CLASSES)}


def observed(boxes: Optional[Boxes]) -> Optional[Boxes]:
    """Return the true boxes that are shown: of the ten classes, with lidar or radar points where these are counted."""
    if boxes is None:
        return None
    kept = boxes.labels < len(DETECTION_CLASSES)  # no bicycle racks
    return boxes.take(kept if boxes.points is None else kept & (boxes.points > 0))


def read_names(arrays: CheckedArrays) -> Tuple[str, ...]:
    """Return the class names of boxes by label; nuScenes' ten where the file has none. Raises DataError."""
    names = arrays.take("box_names", "text", (None,), np.array(DETECTION_CLASSES))
    if len(names) > 256:
        raise DataError(f"{arrays.path}: has {len(names)} box_names; expected 256 at most")
    return tuple(str(name)[:80] for name in names)


def read_boxes(arrays: CheckedArrays, prefix: str, classes: int) -> Optional[Boxes]:
    """Return the boxes that ``box_arrays`` stored; None where the file has none. Raises DataError."""
    centres = arrays.maybe(prefix + "centres", "numbers", (None, 3))
    if centres is None:
        return None
    count = len(centres)
    if count > MAX_BOXES:
        raise DataError(f"{arrays.path}: holds {count} {prefix}centres; expected {MAX_BOXES} at most")
    values: Dict[str, np.ndarray] = {}
    for name, width in _NUMBERS:
        shape = (count, width) if width else (count,)
        unknown = name == "velocities"
        values[name] = arrays.take(prefix + name, "numbers", shape, unknown=unknown).astype(np.float32)
        if (np.abs(values[name]) > _LARGEST).any():
            raise DataError(f"{arrays.path}: {prefix}{name} holds numbers beyond {_LARGEST:g}; make the file again")
    if (values["sizes"] <= 0).any():
        raise DataError(f"{arrays.path}: {prefix}sizes holds {values['sizes'].min()}; expected metres above 0")
    labels = arrays.take(prefix + "labels", "whole numbers", (count,)).astype(np.int64)
    if count and labels.max() >= classes:
        raise DataError(f"{arrays.path}: {prefix}labels hold class {labels.max()}, but there are {classes} box_names")
    scores = None
    if prefix == PREDICTED:
        scores = arrays.take(prefix + "scores", "numbers", (count,)).astype(np.float32)
        if count and not 0 <= scores.min() <= scores.max() <= 1:
            raise DataError(f"{arrays.path}: {prefix}scores are {scores.min()} to {scores.max()}; expected 0 to 1")
    return Boxes(labels=labels, scores=scores, **values)
