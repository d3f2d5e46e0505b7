"""Check a rig file or infos: calibration, every file of every frame, and where the cameras look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from tpvformer.config import DataConfig
from tpvformer.data.check.boxes import check_info_boxes
from tpvformer.data.check.directions import Mount, remarks
from tpvformer.data.check.files import RAW_CLASSES, image_fault
from tpvformer.data.check.report import Report
from tpvformer.data.formats import is_own, load_infos
from tpvformer.data.images.decode import Size, read_image
from tpvformer.data.nuscenes.infos.cameras import other_letters
from tpvformer.data.nuscenes.infos.plausible import FAR, far_text
from tpvformer.data.nuscenes.reader import read_labels, resolve
from tpvformer.data.record import Record
from tpvformer.data.scans.read import read_cloud
from tpvformer.data.windows import predecessors
from tpvformer.errors import ConfigError, DataError

_OFF_CENTRE = 0.15  # shares of both sides; cropped images are off by one side alone


class View(NamedTuple):
    """Hold the position and direction of one camera, seen from the lidar frame (x right, y forward, z up)."""

    name: str
    size: Tuple[int, int]  # width, height
    slot: int  # its embedding
    azimuth: float  # degrees to the right of forward
    elevation: float  # degrees above the horizontal
    centre: np.ndarray  # (3,) metres, lidar frame
    principal: Tuple[float, float]  # pixels
    height: Optional[float]  # metres above the ego frame's ground; None without lidar2ego

    def line(self, seen: float) -> str:
        """Return one line for the user; ``seen`` is the camera's share of the grid."""
        place = f"z {self.centre[2]:+.2f} m" if self.height is None else f"{self.height:.2f} m above ground"
        size = f"{self.size[0]}x{self.size[1]}"
        return (
            f"  {self.name:<18} {size:<10} embedding {self.slot}, {place}, looks {abs(self.azimuth):.0f} degrees "
            f"{'right' if self.azimuth >= 0 else 'left'} of forward and {abs(self.elevation):.0f} "
            f"{'up' if self.elevation >= 0 else 'down'}, sees {100 * seen:.1f} % of the grid"
        )


def examine_rig(
    path: Path, whole: bool = False, root: Path = Path(), data: Optional[DataConfig] = None
) -> Tuple[Report, List[Record]]:
    """Looks at all files that a rig file names, or an info file, whose files lie below ``root``; ``whole`` decodes
    every image. ``data`` gives the raw labels of a label map of one's own, and the format of a data set of one's own,
    of which ``path`` is the source and whose root is data.root. The records are empty where the file itself is at
    fault. Raises ConfigError where there is none."""
    data = DataConfig() if data is None else data
    own = is_own(data.format)
    if not own and not path.exists():
        raise ConfigError(f"rig is {path}, which is no file; expected a rig file, as docs/rig.md shows, or infos")
    report = Report(str(path))
    try:
        records = load_infos(path, False, data.format, data.root) if own else load_infos(path)
    except DataError as err:
        report.fault("rig", str(err))
        return report, []
    if not records[0].rig:
        records = [_found_below(root, record, report) for record in records]
        records[0] = replace(records[0], sizes=_sizes(records[0]))
    elif own and not records[0].sizes:
        records[0] = replace(records[0], sizes=_sizes(records[0]))
    raw_labels = RAW_CLASSES if data.classes is None else len(data.raw_to_class)
    for view in views(records[0]):
        _remark(report, view)
    vehicle = None if records[0].lidar2ego is None else records[0].lidar2ego[:3, :3]
    report.notes += remarks(mounts(records[0]), vehicle)
    report.notes += _mistaken(records)
    scans = labels = 0
    for record in records:
        for stored, size in zip(record.images, record.sizes or [(0, 0)] * len(record.images)):
            if not stored:
                continue  # said already
            fault = image_fault(Path(stored), record.token, size, whole, "its camera")
            if fault is not None:
                report.fault("images", fault)
        if record.scan:
            scans += 1
            labels += bool(record.labels)
            _check_scan(report, record, raw_labels)
    if not records[0].rig:
        check_info_boxes(report, path, records)
    images = sum(bool(stored) for record in records for stored in record.images)
    report.checked = f"{len(records)} frames: {images} images, {scans} scans and {labels} label files looked at"
    return report, records


def _mistaken(records: List[Record]) -> List[str]:
    """Notes on cameras that are mirrored, have the image of another one, or nuScenes' name in other letters, and on
    the vehicle's poses."""
    notes = [
        f"{name} is a mirror: its rotation or its intrinsics turn an axis around (determinant below 0)"
        for name, matrix in zip(records[0].camera_names, records[0].lidar2img)
        if np.linalg.det(matrix[:3, :3]) < 0
    ]
    for record in records:
        images = [image for image in record.images if image]
        twice = next((image for image in images if images.count(image) > 1), "")
        if twice:
            whose = [name for name, image in zip(record.camera_names, record.images) if image == twice]
            notes.append(f"sample {record.token}: {' and '.join(whose)} have one image, {twice}; is that meant?")
            break
    return notes + _jumps(records) + ([note] if (note := other_letters(records)) else [])


def _jumps(records: List[Record]) -> List[str]:
    """A note on the first pose that no vehicle can have there."""
    try:
        predecessors(records, "ego", "poses")
    except DataError as err:
        return [str(err)]
    return []


def _found_below(root: Path, record: Record, report: Report) -> Record:
    """The record with the places of its files; empty where a file is missing, which is said."""

    def found(stored: str, kind: str) -> str:
        try:
            return str(resolve(stored, root, record.token)) if stored else ""
        except DataError as err:
            report.fault(kind, str(err))
            return ""

    images = tuple(found(stored, "images") for stored in record.images)
    return replace(record, images=images, scan=found(record.scan, "scans"))


def _sizes(record: Record) -> Tuple[Size, ...]:
    """Width and height of the images themselves, because infos do not say; empty where one cannot be read."""
    try:
        shapes = [read_image(Path(stored), record.token).shape for stored in record.images if stored]
    except (DataError, OSError):
        return ()
    return tuple((shape[1], shape[0]) for shape in shapes) if len(shapes) == len(record.images) else ()


def views(record: Record) -> List[View]:
    """Return positions and directions of the cameras of a record."""
    found = []
    for i, (name, size, matrix) in enumerate(zip(record.camera_names, record.sizes, record.lidar2img)):
        x, y, z = axis = matrix[2, :3] / np.linalg.norm(matrix[2, :3])
        centre = -np.linalg.inv(matrix[:3, :3]) @ matrix[:3, 3]
        to_ego = record.lidar2ego
        height = None if to_ego is None else float(to_ego[2, :3] @ centre + to_ego[2, 3])
        principal = float(matrix[0, :3] @ axis), float(matrix[1, :3] @ axis)
        azimuth, elevation = np.degrees(np.arctan2(x, y)), np.degrees(np.arcsin(np.clip(z, -1, 1)))
        slot = record.slots[i] if record.slots else i
        found.append(View(name, size, slot, float(azimuth), float(elevation), centre, principal, height))
    return found


def _remark(report: Report, view: View) -> None:
    (u, v), (width, height) = view.principal, view.size
    distance = float(np.linalg.norm(view.centre))
    if distance > FAR:
        report.notes.append(f"{view.name} {far_text(distance)}")
    if not (0 < u < width and 0 < v < height):
        report.notes.append(
            f"{view.name}: its principal point ({u:.0f}, {v:.0f}) lies outside of {width}x{height} pixels; are the "
            "intrinsics those of another image size?"
        )
    elif min(abs(u / width - 0.5), abs(v / height - 0.5)) > _OFF_CENTRE:
        report.notes.append(
            f"{view.name}: its principal point ({u:.0f}, {v:.0f}) lies far from the middle of {width}x{height} pixels; "
            "are the intrinsics those of another image size?"
        )


def mounts(record: Record) -> List[Mount]:
    """How the cameras of a record are mounted, in its lidar frame (x right, y forward, z up)."""
    found = []
    # an ego frame whose lidar lies on the ground does not begin there, so it says nothing of heights
    ground = record.lidar2ego if record.lidar2ego is not None and record.lidar2ego[2, 3] > 0.05 else None
    for name, matrix in zip(record.camera_names, record.lidar2img):
        forward = matrix[2, :3] / np.linalg.norm(matrix[2, :3])
        down = matrix[1, :3] - (matrix[1, :3] @ forward) * forward
        down = down / np.linalg.norm(down)
        centre = -np.linalg.inv(matrix[:3, :3]) @ matrix[:3, 3]
        height = None if ground is None else float(ground[2, :3] @ centre + ground[2, 3])
        found.append(Mount(name, np.stack([np.cross(down, forward), down, forward], axis=1), height))
    return found


def _check_scan(report: Report, record: Record, raw_labels: int) -> None:
    kind, scan = "scans", Path(record.scan)
    try:
        cloud = read_cloud(scan, record.token, record.scan_columns)
        points = len(cloud.points) + cloud.lost
        if cloud.lost:
            report.notes.append(
                f"sample {record.token}: {cloud.lost} of {points} points of {scan} have no finite coordinates, as "
                "lidars write where no light came back; they are left out"
            )
        kind = "labels"
        if record.labels:
            read_labels(Path(record.labels), scan, record.token, points, raw_labels)
    except OSError as err:
        report.fault(kind, f"sample {record.token}: {err.filename} cannot be read ({err.strerror}); copy it again")
    except DataError as err:
        report.fault(kind, str(err))
