"""Make infos from six of nuScenes' tables: scene, sample, sensor, calibrated_sensor, sample_data and ego_pose."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from tpvformer.data.nuscenes.infos.cameras import CAMERA_ORDER
from tpvformer.data.nuscenes.infos.columns import Infos, Shots
from tpvformer.data.nuscenes.infos.declared import check_distortion
from tpvformer.data.nuscenes.infos.plausible import distances, far_text, intrinsics_problem, too_far
from tpvformer.data.nuscenes.splits import scenes_of
from tpvformer.data.nuscenes.tables import Progress, Row, pose_numbers, read_table, stream_table, table_path
from tpvformer.errors import DataError
from tpvformer.files import gc_paused
from tpvformer.geometry import is_degenerate, relative
from tpvformer.untrusted.names import short

LIDAR = "LIDAR_TOP"
SWEEPS = 10  # sweeps listed before each key frame, as in the public info files


class SampleData(NamedTuple):
    """The fields of a sample_data row that are used."""

    token: str
    ego_pose: str
    calibration: str
    timestamp: float  # microseconds
    file: str
    previous: str  # token; empty at the start of a scene


_ABSENT = SampleData("", "", "", 0, "", "")  # for a camera of which a sample has no image
_NO_POSE = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


@dataclass
class Tables:
    """The rows of the tables that the chosen scenes need."""

    folder: Path
    cameras: Tuple[str, ...]
    samples: List[Row]  # in the order of their table
    key_frames: List[Dict[str, SampleData]]  # by channel, a sample each
    lidar: Dict[str, SampleData] = field(default_factory=dict)  # every lidar file of the chosen scenes, by token
    calibrations: Dict[str, Row] = field(default_factory=dict)
    poses: Dict[str, Tuple[float, ...]] = field(default_factory=dict)  # of ego_pose: seven numbers


def build(
    root: Path,
    version: str,
    splits: Sequence[str],
    prefix: str = "",
    sweeps: int = SWEEPS,
    progress: Optional[Progress] = None,
) -> Dict[str, Infos]:
    """Make the infos of each split, reading the tables under ``root/version`` once.

    ``prefix`` is put before every file name. Raises DataError where tables, sensors or calibrations are missing or
    unusable, or a split has no scene among them.
    """
    folder = Path(root, version)
    rows = read_table(folder, "scene", "name")
    token_of = {row["name"]: row["token"] for row in rows}
    chosen: Dict[str, Set[str]] = {}
    for split in splits:
        names = scenes_of(folder, split)
        chosen[split] = {token_of[name] for name in names if name in token_of}
        if not chosen[split]:
            raise DataError(
                f"{folder}: none of the {len(names)} scenes of split {split} is in its scene table (which has "
                f"{len(rows)}); choose --splits that belong to these tables"
            )
    with gc_paused():
        return _build(folder, chosen, prefix, sweeps, progress)


def build_scene(root: Path, version: str, sample: str, progress: Optional[Progress] = None) -> Tuple[Infos, int]:
    """Make the infos of the scene of a sample, without sweeps, and return them with the sample's index.

    Raises DataError as ``build`` does, and where the tables do not have the sample.
    """
    folder = Path(root, version)
    scene = {r["token"]: r["scene_token"] for r in read_table(folder, "sample", "scene_token")}.get(sample)
    if scene is None:
        raise DataError(f"sample {sample}: not in {table_path(folder, 'sample')}; expected the token of a sample there")
    infos = _build(folder, {"scene": {scene}}, "", 0, progress)["scene"]
    return infos, infos.tokens.index(sample)


def _build(
    folder: Path, chosen: Dict[str, Set[str]], prefix: str, sweeps: int, progress: Optional[Progress]
) -> Dict[str, Infos]:
    """Make infos for each name in ``chosen``, which maps names to tokens of scenes."""
    tables = _read(folder, set().union(*chosen.values()), progress)
    chains = [_sweeps_before(tables, shots[LIDAR], sweeps) for shots in tables.key_frames]
    _read_poses(tables, chains, progress)
    result = {}
    for name, scenes in chosen.items():
        rows = [i for i, sample in enumerate(tables.samples) if sample["scene_token"] in scenes]
        if not rows:
            raise DataError(f"{folder}: the scenes of split {name} have no sample in the sample table")
        result[name] = _columns(tables, rows, [chains[i] for i in rows], prefix)
    return result


def _read(folder: Path, scenes: Set[str], progress: Optional[Progress]) -> Tables:
    samples = [r for r in read_table(folder, "sample", "scene_token", "timestamp") if r["scene_token"] in scenes]
    channels = {r["token"]: r for r in read_table(folder, "sensor", "channel", "modality")}
    calibrations = {
        r["token"]: r
        for r in read_table(folder, "calibrated_sensor", "sensor_token", "translation", "rotation", "camera_intrinsic")
    }
    kinds = {}
    for token, row in calibrations.items():
        sensor = channels.get(row["sensor_token"])
        if sensor is None:
            raise DataError(
                f"{table_path(folder, 'calibrated_sensor')}: row {token} belongs to the sensor {row['sensor_token']}, "
                "which the sensor table does not have; expected tables of one download"
            )
        kinds[token] = sensor["channel"]
        try:
            check_distortion(sensor["channel"], row if sensor["modality"] == "camera" else {})
        except ValueError as err:
            raise DataError(f"{table_path(folder, 'calibrated_sensor')}: row {token}: {err}") from err
    mounted = {r["channel"] for r in channels.values() if r["modality"] == "camera"} & set(kinds.values())
    cameras = tuple(c for c in CAMERA_ORDER if c in mounted) + tuple(sorted(mounted - set(CAMERA_ORDER)))
    tables = Tables(folder, cameras, samples, [{} for _ in samples], calibrations=calibrations)
    _read_shots(tables, kinds, progress)
    tables.cameras = _cameras_there(tables)
    return tables


def _cameras_there(tables: Tables) -> Tuple[str, ...]:
    """Return the cameras of which at least one sample has an image, and log a warning about samples without one.

    Raises DataError for a sample without lidar row or without any camera.
    """
    path, lost = table_path(tables.folder, "sample_data"), dict.fromkeys(tables.cameras, 0)
    for sample, shots in zip(tables.samples, tables.key_frames):
        for camera in tables.cameras:
            lost[camera] += camera not in shots
        if LIDAR not in shots or len(shots) == 1:
            what = (
                LIDAR if LIDAR not in shots else f"any camera ({', '.join(tables.cameras) or 'none has a calibration'})"
            )
            raise DataError(
                f"sample {sample['token']}: {path} has no key frame of {what} for it; expected one of the lidar and of "
                "one camera at least"
            )
    some = {camera: count for camera, count in lost.items() if count}
    if some:
        listed = ", ".join(f"{camera} ({count})" for camera, count in some.items())
        logging.getLogger(__name__).warning(
            f"{path}: no key frame of {listed} in so many of {len(tables.samples)} samples; these cameras are left out "
            "there"
        )
    return tuple(camera for camera in tables.cameras if lost[camera] < len(tables.samples))


def _read_shots(tables: Tables, channel_of: Dict[str, str], progress: Optional[Progress]) -> None:
    place = {sample["token"]: i for i, sample in enumerate(tables.samples)}
    wanted = {LIDAR, *tables.cameras}
    path = table_path(tables.folder, "sample_data")
    fields = (
        "token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "timestamp", "is_key_frame", "filename",
        "prev",
    )  # fmt: skip
    for rows in stream_table(tables.folder, "sample_data", *fields, progress=progress):
        for row in rows:
            index = place.get(row["sample_token"])
            if index is None:
                continue
            calibration = row["calibrated_sensor_token"]
            channel = channel_of.get(calibration)
            if channel is None:
                raise DataError(
                    f"{path}: row {row['token']} ({row['filename']}) names the calibration {calibration}, which "
                    "calibrated_sensor.json does not have; expected tables of one download"
                )
            if channel not in wanted or not (row["is_key_frame"] or channel == LIDAR):
                continue
            shot = SampleData(
                row["token"], row["ego_pose_token"], calibration, row["timestamp"], str(row["filename"]), row["prev"]
            )
            if channel == LIDAR and tables.lidar.setdefault(shot.token, shot) is not shot:
                raise DataError(f"{path}: two rows have the token {shot.token}; unpack the metadata archive again")
            if row["is_key_frame"] and tables.key_frames[index].setdefault(channel, shot) is not shot:
                raise DataError(
                    f"sample {row['sample_token']}: {path} has two key frames of {channel} for it "
                    f"({tables.key_frames[index][channel].token} and {shot.token}); expected one"
                )


def _sweeps_before(tables: Tables, shot: SampleData, most: int) -> List[SampleData]:
    """Return up to ``most`` lidar files before this one, the latest first; fewer at the start of a scene."""
    found: List[SampleData] = []
    while shot.previous and len(found) < most:
        before = tables.lidar.get(shot.previous)
        if before is None:
            raise DataError(
                f"{table_path(tables.folder, 'sample_data')}: row {shot.token} follows {shot.previous}, which is no "
                "lidar row of the same scenes; expected tables of one download"
            )
        found.append(before)
        shot = before
    return found


def _read_poses(tables: Tables, chains: List[List[SampleData]], progress: Optional[Progress]) -> None:
    needed = {shot.ego_pose: shot for shots in tables.key_frames for shot in shots.values()}
    needed.update({shot.ego_pose: shot for chain in chains for shot in chain})
    path = table_path(tables.folder, "ego_pose")
    for rows in stream_table(tables.folder, "ego_pose", "token", "translation", "rotation", progress=progress):
        for row in rows:
            if row["token"] in needed:
                if row["token"] in tables.poses:
                    raise DataError(f"{path}: two rows have the token {row['token']}; unpack the metadata again")
                tables.poses[row["token"]] = pose_numbers(row, path)
    for token, shot in needed.items():
        if token not in tables.poses:
            raise DataError(
                f"{path}: no row {token}, which the sample_data row {shot.token} "
                f"({shot.file}) needs; expected tables of one download"
            )


def _columns(tables: Tables, rows: List[int], chains: List[List[SampleData]], prefix: str) -> Infos:
    samples = [tables.samples[i] for i in rows]
    mounted: Dict[str, Tuple[float, ...]] = {}
    scans = [tables.key_frames[i][LIDAR] for i in rows]
    images = [tables.key_frames[i].get(camera, _ABSENT) for i in rows for camera in tables.cameras]
    sweeps = [shot for chain in chains for shot in chain]
    counts = np.array([len(chain) for chain in chains], np.int64)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def poses(shots: Sequence[SampleData], pose_of: Callable[[SampleData], Tuple[float, ...]]) -> np.ndarray:
        return np.array([pose_of(shot) for shot in shots], np.float64).reshape(-1, 7)

    def columns(shots: List[SampleData], times: Any) -> Shots:
        """Make the columns of ``shots``; ``times``: how many of them in a row belong to each key frame."""
        lidar = [np.repeat(poses(scans, mount), times, axis=0), np.repeat(poses(scans, drive), times, axis=0)]
        own = [poses(shots, mount), poses(shots, drive)]
        rotation, translation = relative(*own, *lidar)
        stamps = _stamps([shot.timestamp for shot in shots], f"{tables.folder / 'sample_data.json'}")
        files = ["" if shot is _ABSENT else prefix + shot.file for shot in shots]
        return Shots([shot.token for shot in shots], files, stamps, *own, rotation, translation)

    def mount(shot: SampleData) -> Tuple[float, ...]:
        token = shot.calibration
        if shot is _ABSENT:
            return _NO_POSE
        if token not in mounted:
            mounted[token] = pose_numbers(tables.calibrations[token], tables.folder / "calibrated_sensor.json")
        return mounted[token]

    def drive(shot: SampleData) -> Tuple[float, ...]:
        return _NO_POSE if shot is _ABSENT else tables.poses[shot.ego_pose]

    infos = Infos(
        version=tables.folder.name,
        cameras=tables.cameras,
        tokens=[sample["token"] for sample in samples],
        scenes=[sample["scene_token"] for sample in samples],
        timestamps=_stamps([sample["timestamp"] for sample in samples], f"{tables.folder / 'sample.json'}"),
        scans=columns(scans, 1),
        images=columns(images, len(tables.cameras)),
        intrinsics=_intrinsics(tables, images).reshape(len(rows), len(tables.cameras), 3, 3),
        sweeps=columns(sweeps, counts),
        sweep_start=start,
    )
    _check_projections(tables, infos, images)
    return infos


def _stamps(values: Sequence[float], where: str) -> np.ndarray:
    try:
        return np.array([round(value) for value in values], np.int64)  # Lyft's tables have fractions of microseconds
    except (OverflowError, ValueError):
        raise DataError(f"{where}: holds a timestamp beyond 64 bits; expected microseconds since 1970") from None


def _intrinsics(tables: Tables, images: List[SampleData]) -> np.ndarray:
    found: Dict[str, np.ndarray] = {_ABSENT.calibration: np.eye(3)}
    for token in sorted({shot.calibration for shot in images if shot is not _ABSENT}):
        stored = tables.calibrations[token]["camera_intrinsic"]
        try:
            found[token] = np.array(stored, np.float64).reshape(3, 3)
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"{tables.folder / 'calibrated_sensor.json'}: row {token} has the camera_intrinsic {short(stored)}; "
                "expected 3x3 numbers, as it belongs to a camera"
            ) from None
        problem = intrinsics_problem(found[token])
        if problem and np.isfinite(found[token]).all():
            raise DataError(
                f"{tables.folder / 'calibrated_sensor.json'}: row {token} has the camera_intrinsic {short(stored)}, "
                f"which {problem}"
            )
    return np.array([found[shot.calibration] for shot in images])


def _check_projections(tables: Tables, infos: Infos, images: List[SampleData]) -> None:
    bad = np.flatnonzero(is_degenerate(infos.lidar2img()).reshape(-1))
    if len(bad):
        token = images[bad[0]].calibration
        raise DataError(
            f"sample {infos.tokens[bad[0] // len(infos.cameras)]}: the calibration {token} of "
            f"{infos.cameras[bad[0] % len(infos.cameras)]} in {tables.folder / 'calibrated_sensor.json'} gives no "
            f"projection (camera_intrinsic {short(tables.calibrations[token]['camera_intrinsic'])}); expected focal "
            "lengths above 0 and finite numbers"
        )
    there = np.array([shot is not _ABSENT for shot in images])
    far = np.flatnonzero(too_far(infos.lidar2img()).reshape(-1) & there)
    if len(far):
        distance = float(distances(infos.lidar2img()).reshape(-1)[far[0]])
        raise DataError(
            f"sample {infos.tokens[far[0] // len(infos.cameras)]}: by calibrated_sensor.json and ego_pose.json "
            f"{infos.cameras[far[0] % len(infos.cameras)]} {far_text(distance)}"
        )
