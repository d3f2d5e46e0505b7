"""Give records and infos the boxes of nuScenes' tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from tpvformer.data.detection.boxes import NO_ATTRIBUTE, Boxes
from tpvformer.data.nuscenes.annotations import box_tables_there, read_annotations
from tpvformer.data.nuscenes.infos.columns import Infos
from tpvformer.data.nuscenes.tables import Progress
from tpvformer.data.record import Record
from tpvformer.errors import DataError
from tpvformer.files import gc_paused, to_path
from tpvformer.geometry import matrices

_SAME = 0.2  # metres between two places of one box


def with_table_boxes(
    records: List[Record], root: Union[str, Path], version: str, attributes: bool = True
) -> List[Record]:
    """Return the records with boxes from the tables where they have none, and with ``attributes`` where they lack them.

    A record stays as it is where the tables are absent, do not have its sample or have no annotation at all, or where
    it names no pose of the lidar. Raises DataError where the tables are damaged.
    """
    wanted = [r for r in records if r.boxes is None or (attributes and r.boxes.attributes is None)]
    poses = {
        record.token: record.ego2global @ record.lidar2ego
        for record in wanted
        if record.lidar2ego is not None and record.ego2global is not None
    }
    folder: Any = to_path(root, version)
    if not poses or not box_tables_there(folder):
        return records
    with gc_paused():
        read = read_annotations(folder, poses)
    if read is None:
        return records
    place = {token: i for i, token in enumerate(read[0])}
    made = []  # ``place`` has the records of ``poses`` alone
    for record in records:
        if record.token in place:
            found, held = read[1].boxes(place[record.token]), record.boxes
            record = replace(record, boxes=found if held is None else with_attributes(held, found))
        made.append(record)
    return made


def with_attributes(boxes: Boxes, truth: Boxes) -> Boxes:
    """Return boxes with the attributes of those boxes of ``truth`` that have the same class and place."""
    attributes = np.full(len(boxes), NO_ATTRIBUTE, np.int64)
    if truth.attributes is not None and len(truth) and len(boxes):
        apart = np.linalg.norm(boxes.centres[:, None] - truth.centres[None], axis=-1)
        apart[boxes.labels[:, None] != truth.labels[None]] = np.inf
        nearest = apart.argmin(1)
        same = apart[np.arange(len(boxes)), nearest] < _SAME
        attributes[same] = truth.attributes[nearest[same]]
    return replace(boxes, attributes=attributes)


def require_boxes(records: Sequence[Record], source: str, root: Union[str, Path], version: str) -> None:
    """Raise DataError where a record has no boxes."""
    lost = [record for record in records if record.boxes is None]
    if lost:
        raise DataError(
            f"{source}: {len(lost)} of {len(records)} records (the first is {lost[0].token}) have no boxes, nor do "
            f"the tables below {to_path(root, version)} have any of them; detection needs boxes, so make the infos "
            "with tpvformer data infos, put nuScenes' tables there, or leave out model.detection (rig files and "
            "SemanticKITTI hold no boxes)"
        )


def add_boxes(infos: Dict[str, Infos], folder: Path, progress: Optional[Progress] = None) -> None:
    """Put the annotated objects of the tables in ``folder`` into infos made from them, by split.

    Infos stay as they are where a table is absent or none of its rows is an annotation. Raises DataError.
    """
    if not box_tables_there(folder):
        return
    poses: Dict[str, np.ndarray] = {}
    for one in infos.values():
        lidar2global = matrices(one.scans.ego2global) @ matrices(one.scans.sensor2ego)
        poses.update(zip(one.tokens, lidar2global))
    with gc_paused():
        read = read_annotations(folder, poses, progress)
    if read is None:
        return
    place = {token: i for i, token in enumerate(read[0])}
    for one in infos.values():
        one.boxes = read[1].take([place[token] for token in one.tokens])
