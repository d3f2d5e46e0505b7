"""Read the boxes of the records of info pickles, whose layouts differ in frame, size and yaw.

- ``gt_boxes`` beside ``cams``, lidar frame, middle of the box, after which some tools add the velocity. mmdetection3d
  before 1.0, BEVFormer, TPVFormer and BEVFusion write width, length, height and -yaw - pi/2; mmdetection3d from 1.0 on,
  BEVDet and OpenPCDet write length, width, height and the yaw. No key tells which, so the data of the whole file do:
  cars are longer than wide, so the side with the larger sum over all cars is the length (other vehicles where there is
  no car; the older layout where no vehicle is in the file).
- ``instances`` of mmdetection3d 1.x, lidar frame: length, width, height, yaw; the numbers of the classes are those of
  the file's ``metainfo``.
- ``ann_infos`` of BEVDepth: rows of nuScenes' sample_annotation, in the global frame.

Names are detection classes or nuScenes' categories; boxes of other categories are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES as ATTRIBUTE_NAMES
from tpvformer.data.detection.boxes import CATEGORY_LABELS, DETECTION_CLASSES, NO_ATTRIBUTE, Boxes
from tpvformer.data.nuscenes.annotations import LARGEST_SIDE, OTHER, to_lidar
from tpvformer.data.nuscenes.infos.parts import numbers
from tpvformer.data.record import Record
from tpvformer.errors import DataError
from tpvformer.labels import RAW_NAMES
from tpvformer.untrusted.names import short

LABEL_OF: Dict[str, int] = {
    **dict.fromkeys(RAW_NAMES, OTHER),
    **CATEGORY_LABELS,
    **{name: i for i, name in enumerate(DETECTION_CLASSES)},
}
_LONG = ("car", "truck", "bus", "trailer", "motorcycle", "bicycle")  # classes whose boxes are longer than wide
_REMEDY = "make the infos again, tpvformer data infos does so from nuScenes' tables"
_FARTHEST = 1e5  # metres
_FASTEST = 1e3  # m/s


class _Stored(NamedTuple):
    """The boxes of one record as they are stored, of every category."""

    boxes: np.ndarray  # (N, 7) float64
    names: List[str]
    velocities: np.ndarray  # (N, 2)
    points: Optional[np.ndarray]  # (N,) int64
    attributes: Optional[np.ndarray] = None  # (N,) int64


def pickled_boxes(
    path: Union[str, Path], stored: Any, listed: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> List[Optional[Boxes]]:
    """Return the boxes of each record, lidar frame; None where it stores none.

    ``stored`` is the content of the file and ``listed`` its records. Raises DataError where boxes are damaged.
    """
    names = _classes(stored)
    found: List[Optional[_Stored]] = []
    for i, (info, record) in enumerate(zip(listed, records)):
        where = f"{path}: record {i} (sample {record.token})"
        try:
            found.append(_stored(info, record, names))
        except KeyError as err:
            raise DataError(f"{where}: its boxes have no {err}; {_REMEDY}") from err
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as err:
            raise DataError(f"{where}: {' '.join(str(err).split())[:300]}; {_REMEDY}") from err
    if any("gt_boxes" in info for info in listed) and width_first([one for one in found if one is not None]):
        found = [None if one is None else one._replace(boxes=turned(one.boxes)) for one in found]
    made: List[Optional[Boxes]] = []
    for i, (one, record) in enumerate(zip(found, records)):
        made.append(None if one is None else _made(f"{path}: record {i} (sample {record.token})", one))
    return made


def turned(boxes: np.ndarray) -> np.ndarray:
    """Exchange length and width of (N, 7) and turn the yaw between mmdetection3d's conventions before and from 1.0.

    The function is its own inverse.
    """
    yaws = -boxes[:, 6] - np.pi / 2
    return np.concatenate([boxes[:, [0, 1, 2, 4, 3, 5]], np.arctan2(np.sin(yaws), np.cos(yaws))[:, None]], axis=1)


def width_first(found: Sequence[_Stored]) -> bool:
    """Return whether a file's boxes have width, length, height and mmdetection3d's yaw from before 1.0."""
    for classes in (_LONG[:1], _LONG[1:]):
        labels = {DETECTION_CLASSES.index(name) for name in classes}
        sides = np.zeros(2)
        for one in found:
            long = np.array([LABEL_OF.get(name) in labels for name in one.names], bool)
            usable = long & np.isfinite(one.boxes[:, 3:5]).all(1) if len(long) else long
            sides += one.boxes[usable, 3:5].sum(0)
        if sides[0] != sides[1]:
            return bool(sides[1] > sides[0])
    return True


def check_boxes(where: str, boxes: Boxes) -> None:
    """Raise DataError for the first box whose numbers are unusable; an unknown velocity (NaN) is none of them."""
    with np.errstate(invalid="ignore"):
        faults = (
            ("centre", boxes.centres, ~(np.abs(boxes.centres) < _FARTHEST).all(1), "3 finite metres"),
            ("size", boxes.sizes, ~((boxes.sizes > 0) & (boxes.sizes < LARGEST_SIDE)).all(1), "3 metres above 0"),
            ("yaw", boxes.yaws, ~(np.abs(boxes.yaws) < 1e4), "finite radians"),
            (
                "velocity",
                boxes.velocities,
                (np.abs(boxes.velocities) >= _FASTEST).any(1),
                f"m/s below {_FASTEST:g}, or NaN where it is unknown",
            ),
        )
    for name, values, bad, expected in faults:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            value = [round(float(number), 4) for number in np.atleast_1d(values[at])]
            raise DataError(f"{where}: box {at} has the {name} {value}; expected {expected}; {_REMEDY}")
    if boxes.points is not None and (boxes.points < 0).any():
        at = int(np.flatnonzero(boxes.points < 0)[0])
        raise DataError(f"{where}: box {at} has {boxes.points[at]} points; expected a number from 0 on; {_REMEDY}")


def _made(where: str, one: _Stored) -> Boxes:
    labels = np.array([LABEL_OF.get(name, -2) for name in one.names], np.int64)
    if (labels < OTHER).any():
        name = one.names[int(np.flatnonzero(labels < OTHER)[0])]
        raise DataError(
            f"{where}: a box has the class {short(name)}; expected one of {', '.join(DETECTION_CLASSES)}, or a "
            f"category of nuScenes such as vehicle.car; {_REMEDY}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        centres, sizes, yaws = (one.boxes[:, part].astype(np.float32) for part in (slice(3), slice(3, 6), 6))
        velocities = one.velocities.astype(np.float32)
    made = Boxes(centres, sizes, yaws, velocities, labels, points=one.points, attributes=one.attributes)
    check_boxes(where, made)
    return made.take(labels != OTHER)


def _stored(info: Mapping[str, Any], record: Record, names: Mapping[int, str]) -> Optional[_Stored]:
    """Return the boxes of a record as stored; those of BEVDepth in the lidar frame.

    Raises KeyError or ValueError where they are no boxes.
    """
    if info.get("gt_boxes") is not None:
        return _columns(info)
    if info.get("instances") is not None and "images" in info:
        return _instances(info["instances"], names)
    if info.get("ann_infos") is not None and "cam_infos" in info:
        return _rows(info["ann_infos"], record)
    return None


def _columns(info: Mapping[str, Any]) -> _Stored:
    stored = np.asarray(info["gt_boxes"])
    count = len(stored) if stored.ndim else 0
    width = stored.shape[1] if stored.ndim == 2 and stored.shape[1] in (7, 9) else 7
    boxes = np.zeros((0, width)) if not stored.size else numbers(stored, count, width)
    count = len(boxes)

    def column(key: str, *shape: int) -> Optional[np.ndarray]:
        value = info.get(key)
        if value is None:
            return None
        array = np.asarray(value)
        if (len(array) if array.ndim else -1) != count:
            raise ValueError(f"its {key} has {len(array) if array.ndim else 0} entries for {count} boxes")
        return numbers(array, count, *shape) if count else np.zeros((0, *shape))

    names = list(map(str, np.asarray(info["gt_names"]).reshape(-1)))
    if len(names) != count:
        raise ValueError(f"its gt_names has {len(names)} entries for {count} boxes")
    velocities = column("gt_velocity", 2)
    if velocities is None and info.get("gt_boxes_velocity") is not None:
        velocities = np.asarray(info["gt_boxes_velocity"], np.float64).reshape(count, -1)[:, :2]
    if velocities is None:
        velocities = boxes[:, 7:] if width == 9 else np.full((count, 2), np.nan)
    counted = [_whole(array) for array in (column("num_lidar_pts"), column("num_radar_pts")) if array is not None]
    given = info.get("gt_attributes")  # of our own files
    attributes = None
    if given is not None:
        listed = list(map(str, np.asarray(given).reshape(-1)))
        if len(listed) != count:
            raise ValueError(f"its gt_attributes has {len(listed)} entries for {count} boxes")
        number = {name: i for i, name in enumerate(ATTRIBUTE_NAMES)}
        attributes = np.array([number.get(name, NO_ATTRIBUTE) for name in listed], np.int64)
    return _Stored(boxes[:, :7], names, velocities, sum(counted[1:], counted[0]) if counted else None, attributes)


def _whole(values: np.ndarray) -> np.ndarray:
    """Return counts as int64. Raises ValueError where one is none."""
    if not (np.abs(values) < 1 << 32).all() or (values < 0).any():
        raise ValueError("the points of a box are no number from 0 on")
    return values.astype(np.int64)


def _classes(stored: Any) -> Dict[int, str]:
    """Return the name of each number of ``bbox_label_3d`` as mmdetection3d 1.x names them in ``metainfo``."""
    meta = stored.get("metainfo") if isinstance(stored, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    categories, classes = meta.get("categories"), meta.get("classes", meta.get("CLASSES"))
    if isinstance(categories, Mapping):
        return {int(number): str(name) for name, number in categories.items() if isinstance(number, (int, np.integer))}
    return dict(enumerate(map(str, classes))) if isinstance(classes, (list, tuple)) else {}


def _instances(stored: Any, names: Mapping[int, str]) -> _Stored:
    kept, labels = [], []
    for instance in stored:
        label = int(instance["bbox_label_3d"])
        if label == -1:  # a category that is not detected
            continue
        if label not in names:
            listed = ", ".join(f"{number} {name}" for number, name in names.items())
            raise ValueError(f"a box has bbox_label_3d {label}, which metainfo's categories ({listed or 'none'}) lack")
        kept.append(instance)
        labels.append(names[label])
    boxes = np.array([numbers(np.asarray(one["bbox_3d"])[:7], 7) for one in kept]).reshape(-1, 7)
    unknown = [np.nan, np.nan]
    velocities = [numbers(unknown if one.get("velocity") is None else one["velocity"], 2) for one in kept]
    return _Stored(boxes, labels, np.array(velocities).reshape(-1, 2), _counts(kept))


def _rows(stored: Any, record: Record) -> _Stored:
    if record.lidar2ego is None or record.ego2global is None:
        raise ValueError("it has boxes in the global frame, but not the pose of the lidar")
    rows = list(stored)
    poses = [np.concatenate([numbers(row["translation"], 3), numbers(row["rotation"], 4)]) for row in rows]
    velocities = [numbers([np.nan] * 3 if row.get("velocity") is None else row["velocity"], 3) for row in rows]
    table = np.array(poses).reshape(-1, 7)
    centres, yaws, flat = to_lidar(
        record.ego2global @ record.lidar2ego, table, np.array(velocities, np.float64).reshape(-1, 3)
    )
    sizes = np.array([numbers(row["size"], 3) for row in rows]).reshape(-1, 3)[:, [1, 0, 2]]
    boxes = np.concatenate([centres, sizes, yaws[:, None]], axis=1)
    return _Stored(boxes, [str(row["category_name"]) for row in rows], flat, _counts(rows))


def _counts(rows: Sequence[Mapping[str, Any]]) -> Optional[np.ndarray]:
    """Return the lidar and radar points (N,) of rows that all name them, else None."""
    if not all("num_lidar_pts" in row for row in rows):
        return None
    counts = [[float(row["num_lidar_pts"]), float(row.get("num_radar_pts") or 0)] for row in rows]
    return _whole(np.array(counts).reshape(-1, 2)).sum(1)
