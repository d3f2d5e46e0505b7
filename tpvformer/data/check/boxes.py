"""Check annotated boxes: of nuScenes' tables and of an info file, against their own rules and against lidar points."""

from __future__ import annotations

from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tpvformer.data.check.report import Report
from tpvformer.data.detection.boxes import BICYCLE_RACK, Boxes
from tpvformer.data.detection.inside import points_inside
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.annotations import BOX_TABLES, box_tables_there, read_annotations
from tpvformer.data.nuscenes.tables import Progress
from tpvformer.data.record import Record
from tpvformer.data.scans.read import read_cloud
from tpvformer.errors import DataError
from tpvformer.files import gc_paused

FAR_BOX = 200.0  # metres in x or y from the lidar, beyond which a note is printed: radars reach as far
FARTHEST = 1000.0  # metres, beyond which it is a fault
_FRAMES = 5  # whose lidar points are looked at
_FEWEST = 5  # lidar points of a box that is compared
_SHARE = 0.5  # of the points that the boxes name, which must lie in them


class Boxed(NamedTuple):
    """Hold the boxes of one key frame, lidar frame, and its scan."""

    token: str
    boxes: Boxes
    lidar_points: np.ndarray  # (N,) int64, as stored
    scan: Optional[Path]  # None where it is not there


def check_tables_boxes(
    report: Report,
    folder: Path,
    lidar2global: Mapping[str, np.ndarray],
    scans: Mapping[str, Path],
    progress: Optional[Progress],
) -> None:
    """Check the annotations in the tables; ``lidar2global`` (4, 4) and ``scans`` are by sample.

    A set without tables of annotations gets a note. Raises DataError for tables that cannot be read.
    """
    if not box_tables_there(folder):
        lost = [name for name in BOX_TABLES if not (folder / f"{name}.json").is_file()]
        report.notes.append(
            f"no boxes: {', '.join(lost)} missing among the tables: only detection and nuscenes-devkit need them"
        )
        return

    def fault(text: str) -> None:
        report.fault("boxes", text)

    try:
        with gc_paused():
            read = read_annotations(folder, lidar2global, progress, fault)
    except DataError as err:
        report.fault("boxes", str(err))
        return
    if read is None:
        report.notes.append("no boxes: sample_annotation.json has no rows, as in the test set")
        return
    tokens, found = read
    labels = found.labels
    frames = []
    for i, token in enumerate(tokens):
        own = slice(int(found.starts[i]), int(found.starts[i + 1]))
        kept = labels[own] >= 0
        frames.append(Boxed(token, found.boxes(i), found.lidar_points[own][kept], scans.get(token)))
    _check_frames(report, frames, "sample_annotation.json and ego_pose.json")


def check_info_boxes(report: Report, path: Path, records: Sequence[Record]) -> None:
    """Check the boxes of an info file; ``records`` are those of ``load_infos``, with the places of their scans.

    The first damaged box is one fault; an info file without boxes has none.
    """
    try:
        boxed = load_infos(path, boxes=True)
    except DataError as err:
        report.fault("boxes", str(err))
        return
    frames = [
        Boxed(record.token, own.boxes, own.boxes.points, Path(record.scan) if record.scan else None)
        for record, own in zip(records, boxed)
        if own.boxes is not None and own.boxes.points is not None
    ]
    lost = sum(record.boxes is None for record in boxed)
    if lost < len(boxed):
        if lost:
            report.fault("boxes", f"{path}: {lost} of {len(boxed)} records have no boxes; make the infos again")
        _check_frames(report, frames, str(path))


def _check_frames(report: Report, frames: List[Boxed], source: str) -> None:
    count = sum(int((frame.boxes.labels < BICYCLE_RACK).sum()) for frame in frames)
    report.notes.append(f"{count} boxes of the classes of detection in {len(frames)} samples")
    reach = [(float(np.abs(frame.boxes.centres[:, :2]).max(initial=0)), frame.token) for frame in frames]
    distance, token = max(reach, default=(0.0, ""))
    if distance >= FAR_BOX:
        text = (
            f"sample {token}: by {source} a box lies {distance:.0f} m from the lidar; expected less than {FAR_BOX:g} m "
            "(are these places on a map, or the poses of another drive?)"
        )
        if distance < FARTHEST:
            report.notes.append(text)
        else:
            report.fault("boxes", text)
            return
    said, seen, scans = _points(frames)
    if said and seen < _SHARE * said:
        report.fault(
            "boxes",
            f"{source}: {seen} lidar points lie in the boxes of {scans} samples, which name {said}; expected about as "
            "many (is the yaw, the order of length and width, or the frame of the boxes another one?)",
        )


def _points(frames: Sequence[Boxed]) -> Tuple[int, int, int]:
    """Return the points that boxes name, those that lie in them, and how many scans were read."""
    said = seen = scans = 0
    rich = [frame for frame in frames if frame.scan is not None and (frame.lidar_points >= _FEWEST).any()]
    for frame in rich[:: max(1, len(rich) // _FRAMES)][:_FRAMES]:
        try:
            points = read_cloud(frame.scan, frame.token).points if frame.scan is not None else None
        except (DataError, OSError):
            continue  # the check of scans says it
        if points is None:
            continue
        chosen = frame.lidar_points >= _FEWEST
        said += int(frame.lidar_points[chosen].sum())
        seen += int(np.minimum(points_inside(frame.boxes.take(chosen), points), frame.lidar_points[chosen]).sum())
        scans += 1
    return said, seen, scans
