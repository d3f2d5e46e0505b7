"""The examination of a rig file: calibration, then every file of every frame, and where its cameras look."""

from __future__ import annotations

from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from tpvformer.config import ConfigError
from tpvformer.data.doctor.files import RAW_CLASSES, image_fault
from tpvformer.data.doctor.report import Report
from tpvformer.data.infos.cameras import CAMERA_ORDER
from tpvformer.data.infos.read import Record, load_infos
from tpvformer.data.nuscenes import read_labels, read_scan
from tpvformer.data.types import DataError

# where nuScenes' cameras look, degrees to the right of forward, in CAMERA_ORDER
NUSCENES_AZIMUTHS = (0, 55, -55, 180, -110, 110)
_OFF = 60.0  # degrees from there that are worth a note


class View(NamedTuple):
    """Where one camera sits and looks, seen from the LiDAR frame (x right, y forward, z up)."""

    name: str
    size: Tuple[int, int]  # width, height
    slot: int  # its embedding
    azimuth: float  # degrees to the right of forward
    elevation: float  # degrees above the horizontal
    centre: np.ndarray  # (3,) metres, LiDAR frame
    principal: Tuple[float, float]  # pixels
    height: Optional[float]  # metres above the ego frame's ground; None without lidar2ego

    def line(self, seen: float) -> str:
        """One line for the user; ``seen`` is the camera's share of the grid."""
        place = f"z {self.centre[2]:+.2f} m" if self.height is None else f"{self.height:.2f} m above ground"
        size = f"{self.size[0]}x{self.size[1]}"
        return (
            f"  {self.name:<18} {size:<10} embedding {self.slot}, {place}, looks {abs(self.azimuth):.0f} degrees "
            f"{'right' if self.azimuth >= 0 else 'left'} of forward and {abs(self.elevation):.0f} "
            f"{'up' if self.elevation >= 0 else 'down'}, sees {100 * seen:.1f} % of the grid"
        )


def examine_rig(path: Path, whole: bool = False) -> Tuple[Report, List[Record]]:
    """Looks at all files that a rig file names; ``whole`` decodes every image. The records are empty where the file
    itself is at fault. Raises ConfigError where there is none."""
    if not path.exists():
        raise ConfigError(f"rig is {path}, which is no file; expected a rig file, as docs/rig.md shows")
    report = Report(str(path))
    try:
        records = load_infos(path)
    except DataError as err:
        report.fault("rig", str(err))
        return report, []
    if not records[0].rig:
        raise ConfigError(f"rig is {path}, which is no .json file; tpvformer data check looks at nuScenes with --root")
    for view in views(records[0]):
        _remark(report, view)
    scans = labels = 0
    for record in records:
        for stored, size in zip(record.images, record.sizes):
            fault = image_fault(Path(stored), record.token, size, whole, "its camera")
            if fault is not None:
                report.fault("images", fault)
        if record.scan:
            scans += 1
            labels += bool(record.labels)
            _check_scan(report, record)
    images = len(records) * len(records[0].images)
    report.checked = f"{len(records)} frames: {images} images, {scans} scans and {labels} label files looked at"
    return report, records


def views(record: Record) -> List[View]:
    """Where the cameras of a record sit and look."""
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
    if not (0 < u < width and 0 < v < height):
        report.notes.append(
            f"{view.name}: its principal point ({u:.0f}, {v:.0f}) lies outside of {width}x{height} pixels; are the "
            "intrinsics those of another image size?"
        )
    if view.name in CAMERA_ORDER:
        usual = NUSCENES_AZIMUTHS[CAMERA_ORDER.index(view.name)]
        off = (view.azimuth - usual + 180) % 360 - 180
        if abs(off) > _OFF:
            report.notes.append(
                f"{view.name} looks {abs(off):.0f} degrees away from where nuScenes' looks; is x right, y forward and "
                "z up in the LiDAR frame, and x forward, y left and z up in the ego frame?"
            )


def _check_scan(report: Report, record: Record) -> None:
    kind, scan = "scans", Path(record.scan)
    try:
        points = len(read_scan(scan, record.token, record.scan_columns))
        kind = "labels"
        if record.labels:
            read_labels(Path(record.labels), scan, record.token, points, RAW_CLASSES)
    except OSError as err:
        report.fault(kind, f"sample {record.token}: {err.filename} cannot be read ({err.strerror}); copy it again")
    except DataError as err:
        report.fault(kind, str(err))
