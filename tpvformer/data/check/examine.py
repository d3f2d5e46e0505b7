"""Check a download: tables, tree, calibrations and poses, then the files of every key frame asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from tpvformer.data.check.boxes import check_tables_boxes
from tpvformer.data.check.directions import Mount, remarks
from tpvformer.data.check.files import image_fault, label_fault, scan_fault
from tpvformer.data.check.report import Report
from tpvformer.data.check.tree import Tree, check_folder, check_tables, name_archive
from tpvformer.data.nuscenes.infos.build import LIDAR
from tpvformer.data.nuscenes.infos.declared import check_distortion
from tpvformer.data.nuscenes.infos.plausible import FAR, far_text, intrinsics_problem
from tpvformer.data.nuscenes.lidarseg import label_table
from tpvformer.data.nuscenes.splits import scenes_of
from tpvformer.data.nuscenes.tables import Progress, Row, pose_numbers, read_table, stream_table, table_path
from tpvformer.errors import ConfigError, DataError
from tpvformer.files import gc_paused
from tpvformer.geometry import is_degenerate, lidar_to_image, matrices, rotations

_TO_LIDAR_AXES = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x forward, y left becomes x right, y forward


class _Shot(NamedTuple):
    """Hold a key frame's file."""

    token: str
    ego_pose: str
    calibration: str
    file: str
    size: Tuple[int, int]  # width, height; 0, 0 where the table gives none
    there: bool


class _Chosen(NamedTuple):
    """The samples to look at, and what the small tables say of them."""

    samples: Dict[str, str]  # name of the scene, by sample token
    channel_of: Dict[str, str]  # by calibration
    channels: Set[str]  # the lidar and every mounted camera
    shots: Dict[str, Dict[str, _Shot]]  # by sample and channel
    mounts: Dict[str, np.ndarray]  # pose (7,) of each usable calibration


def examine(
    root: Path, version: str, splits: Sequence[str] = (), whole: bool = False, progress: Optional[Progress] = None
) -> Report:
    """Check the samples of ``splits`` (none: all of the tables); ``whole`` reads every file to its end.

    Raises ConfigError and DataError if root or splits are missing; faults of the data are in the report.
    """
    if not root.is_dir():
        raise ConfigError(f"root is {root}, which is no folder; expected the one that holds samples/ and {version}/")
    report, folder = Report(str(root)), root / version
    if not folder.is_dir():
        others = sorted(p.name for p in root.glob("v*") if p.is_dir())
        raise ConfigError(
            f"version is {version}, but {root} has no such folder of tables (it has {', '.join(others) or 'none'}); "
            "set --version, or unpack the metadata archive"
        )
    scenes = {name for split in splits for name in scenes_of(folder, split)}
    if not check_tables(report, folder):
        return report
    try:
        with gc_paused():
            chosen = _choose(report, folder, scenes if splits else None)
            _walk(report, root, folder, chosen, progress)
            places = _check_poses(report, folder, chosen, progress)
        labels = _check_labels(report, root, folder)
        if (folder / "map.json").is_file():
            maps = [row["filename"].rsplit("/", 1)[-1] for row in read_table(folder, "map", "filename")]
            check_folder(report, root, "maps", maps, needed=False)
    except DataError as err:
        report.fault("tables", str(err))
        return report
    _check_boxes(report, root, folder, chosen, places, progress)
    _check_files(report, root, chosen, labels, whole, progress)
    return report


def _check_boxes(
    report: Report,
    root: Path,
    folder: Path,
    chosen: _Chosen,
    places: Dict[str, np.ndarray],
    progress: Optional[Progress],
) -> None:
    """Check the annotated boxes of the samples whose lidar has a usable pose."""
    poses, scans = {}, {}
    for token, shots in chosen.shots.items():
        shot = shots.get(LIDAR)
        if shot is not None and shot.calibration in chosen.mounts and shot.ego_pose in places:
            poses[token] = matrices(places[shot.ego_pose]) @ matrices(chosen.mounts[shot.calibration])
            if shot.there:
                scans[token] = root / shot.file
    check_tables_boxes(report, folder, poses, scans, progress)


def _choose(report: Report, folder: Path, scenes: Optional[Set[str]]) -> _Chosen:
    names = {row["token"]: row["name"] for row in read_table(folder, "scene", "name")}
    samples = {}
    for row in read_table(folder, "sample", "scene_token"):
        name = names.get(row["scene_token"])
        if name is None:
            report.fault("tables", f"sample {row['token']}: its scene {row['scene_token']} is not in scene.json")
        elif scenes is None or name in scenes:
            samples[row["token"]] = name
    if not samples:
        report.fault("tables", f"{folder}: no sample of the scenes asked for is in the sample table")
    sensors = {row["token"]: row for row in read_table(folder, "sensor", "channel", "modality")}
    channel_of, channels, poses, mounts = {}, {LIDAR}, {}, {}
    fields = ("sensor_token", "translation", "rotation", "camera_intrinsic")
    for row in read_table(folder, "calibrated_sensor", *fields):
        sensor = sensors.get(row["sensor_token"])
        if sensor is None:
            report.fault(
                "calibration", f"calibrated_sensor {row['token']}: no sensor {row['sensor_token']} in its table"
            )
            continue
        channel_of[row["token"]] = sensor["channel"]
        if sensor["modality"] == "camera":
            channels.add(sensor["channel"])
            _check_intrinsics(report, row, sensor["channel"])
        pose = _check_pose(report, "calibration", row, folder / "calibrated_sensor.json")
        if pose is not None:
            mounts[row["token"]] = pose
        if pose is not None and sensor["modality"] == "camera":
            poses.setdefault(sensor["channel"], pose)
            distance = float(np.linalg.norm(pose[:3]))
            if distance > FAR:
                report.notes.append(f"calibrated_sensor {row['token']}: {sensor['channel']} {far_text(distance)}")
    report.notes += remarks([_mount(channel, pose) for channel, pose in sorted(poses.items())], _TO_LIDAR_AXES.T)
    return _Chosen(samples, channel_of, channels, {token: {} for token in samples}, mounts)


def _check_pose(report: Report, kind: str, row: Row, path: Path) -> Optional[np.ndarray]:
    """(7,) float64: translation and quaternion; None where they are at fault, which is said."""
    try:
        return np.array(pose_numbers(row, path), np.float64)
    except DataError as err:
        report.fault(kind, str(err))
        return None


def _mount(channel: str, pose: np.ndarray) -> Mount:
    """Return the mount of a camera from its pose (7,) on the vehicle, whose frame begins on the ground."""
    return Mount(channel, _TO_LIDAR_AXES @ rotations(pose[3:]), float(pose[2]))


def _check_intrinsics(report: Report, row: Row, channel: str) -> None:
    try:
        check_distortion(channel, row)
    except ValueError as err:
        report.fault("calibration", f"calibrated_sensor {row['token']}: {err}")
    stored = row["camera_intrinsic"]
    try:
        matrix = np.array(stored, np.float64).reshape(3, 3)
        bad = bool(is_degenerate(lidar_to_image(np.eye(3), np.zeros(3), matrix))) or bool(intrinsics_problem(matrix))
    except (TypeError, ValueError, OverflowError):
        bad = True
    if bad:
        report.fault(
            "calibration",
            f"calibrated_sensor {row['token']}: {channel} has the camera_intrinsic {str(stored)[:80]}; expected 3x3 "
            "finite numbers, [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels with focal lengths above 0",
        )


def _walk(report: Report, root: Path, folder: Path, chosen: _Chosen, progress: Optional[Progress]) -> None:
    """Counts every file that sample_data names, and keeps the key frames of the samples to look at."""
    tree, lost, whole = Tree(root), {}, {}  # files of each scene, missing and expected
    gaps: Set[str] = set()
    fields = ("token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "is_key_frame", "filename")
    for rows in stream_table(folder, "sample_data", *fields, progress=progress):
        for row in rows:
            there = tree.add(row["filename"])
            channel = chosen.channel_of.get(row["calibrated_sensor_token"])
            scene = chosen.samples.get(row["sample_token"])
            if scene is None:
                continue
            if channel is None:
                report.fault(
                    "calibration",
                    f"sample {row['sample_token']}: its file {row['filename']} (sample_data {row['token']}) has no "
                    f"calibration, {row['calibrated_sensor_token']} is not in calibrated_sensor.json",
                )
                continue
            if channel not in chosen.channels or not row["is_key_frame"]:
                continue
            shot = _Shot(
                row["token"], row["ego_pose_token"], row["calibrated_sensor_token"], row["filename"], _size(row), there
            )
            if chosen.shots[row["sample_token"]].setdefault(channel, shot) is not shot:
                report.fault("tables", f"sample {row['sample_token']}: two key frames of {channel} in sample_data.json")
            tree.need(row["filename"])
            whole[scene] = whole.get(scene, 0) + 1
            if not there:
                lost[scene] = lost.get(scene, 0) + 1
                gaps.add(channel)
                report.fault("files", f"sample {row['sample_token']}: {root / row['filename']} is missing")
    tree.finish(report, chosen.channels)
    name_archive(report, folder.name, lost, whole, gaps)
    unused = chosen.channels.difference({LIDAR}, *chosen.shots.values())
    if unused and chosen.shots:
        report.notes.append(
            f"no sample has a key frame of {', '.join(sorted(unused))}, so these cameras are left out, as those of a "
            "rig that does not have them"
        )
    for token, shots in chosen.shots.items():
        for channel in sorted(chosen.channels.difference(shots, unused)):
            report.fault("tables", f"sample {token}: no key frame of {channel} in sample_data.json")


def _size(row: Row) -> Tuple[int, int]:
    width, height = row.get("width"), row.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def _check_poses(report: Report, folder: Path, chosen: _Chosen, progress: Optional[Progress]) -> Dict[str, np.ndarray]:
    """Return the usable poses (7,) of the lidar's key frames, by the token of the ego_pose."""
    lidar = {shots[LIDAR].ego_pose for shots in chosen.shots.values() if LIDAR in shots}
    places: Dict[str, np.ndarray] = {}
    wanted = {shot.ego_pose: token for token, shots in chosen.shots.items() for shot in shots.values()}
    path = table_path(folder, "ego_pose")
    seen: Set[str] = set()
    for rows in stream_table(folder, "ego_pose", "token", "translation", "rotation", progress=progress):
        for row in rows:
            if row["token"] in wanted:
                if row["token"] in seen:
                    report.fault("poses", f"{path}: two rows have the token {row['token']}")
                seen.add(row["token"])
                pose = _check_pose(report, "poses", row, path)
                if pose is not None and row["token"] in lidar:
                    places[row["token"]] = pose
    for token, sample in wanted.items():
        if token not in seen:
            report.fault("poses", f"sample {sample}: ego_pose {token} is not in {path}")
    return places


def _check_labels(report: Report, root: Path, folder: Path) -> Dict[str, str]:
    """Return the label file by lidar token; report a set without labels and return none."""
    table = label_table(root, folder.name)
    if table is None:
        if folder.name.endswith("test"):
            report.notes.append("no lidarseg.json: labels of the test set are not published")
        elif not folder.name.startswith("v1.0-"):
            report.notes.append("no lidarseg.json: this set has no labels of points")
        else:
            archive = "nuScenes-lidarseg-mini-v1.0" if folder.name.endswith("mini") else "nuScenes-lidarseg-all-v1.0"
            report.fault("labels", f"{folder}/lidarseg.json is missing; it is part of the archive {archive}")
        return {}
    if table.stem != "lidarseg":
        report.notes.append("no lidarseg.json: labels are the categories of nuScenes-panoptic")
    rows = read_table(folder, table.stem, "sample_data_token", "filename")
    place = f"{table.stem}/{folder.name}"
    check_folder(report, root, place, [row["filename"].rsplit("/", 1)[-1] for row in rows], needed=True)
    return {row["sample_data_token"]: row["filename"] for row in rows}


def _check_files(
    report: Report, root: Path, chosen: _Chosen, labels: Dict[str, str], whole: bool, progress: Optional[Progress]
) -> None:
    images = scans = compared = 0
    for done, (token, shots) in enumerate(chosen.shots.items(), start=1):
        faults: List[Tuple[str, Any]] = []
        for channel, shot in shots.items():
            if not shot.there:
                continue
            path = root / shot.file
            if channel != LIDAR:
                faults.append(("images", image_fault(path, token, shot.size, whole)))
                images += 1
                continue
            fault = scan_fault(path, token, whole)
            faults.append(("scans", fault))
            scans += 1
            if labels and shot.token not in labels:
                faults.append(("labels", f"sample {token}: no labels of its lidar file {shot.token} in their table"))
            elif labels and fault is None:
                faults.append(("labels", label_fault(root / labels[shot.token], path, token, whole)))
                compared += 1
        for kind, text in faults:
            if text is not None:
                report.fault(kind, text)
        if progress is not None:
            progress("key frames looked at", done, len(chosen.shots))
    how = "read to the end" if whole else "by size, head and end; --whole reads all of them"
    report.checked = (
        f"{len(chosen.shots)} samples: {images} images, {scans} scans and {compared} label files looked at ({how})"
    )
