"""nuScenes from the disk: info pickles, images, LiDAR scans and their lidarseg labels.

The info pickle is the one TPVFormer, BEVFormer and mmdetection3d 0.x write: a dict whose ``infos`` is a list of records
with ``token``, ``lidar_path`` and ``cams`` (in camera order). Other keys are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tpvformer.data.images import read_images
from tpvformer.data.pickle_safe import load_pickle
from tpvformer.data.poses import pose
from tpvformer.data.types import DataError, Frame

SCAN_COLUMNS = 5  # x, y, z (metres, LiDAR frame), intensity, ring


@dataclass(frozen=True)
class Record:
    """What is kept of one info record; paths as stored."""

    token: str
    scan: str
    camera_names: Tuple[str, ...]
    images: Tuple[str, ...]
    lidar2img: np.ndarray  # (N, 4, 4) float64
    scene: str = ""  # token of its scene, or the name of its log where the record holds none
    lidar2ego: Optional[np.ndarray] = None  # (4, 4) float64; these two where the record holds them
    ego2global: Optional[np.ndarray] = None  # (4, 4) float64, at the time of the LiDAR


def lidar_to_image(rotation: np.ndarray, translation: np.ndarray, intrinsic: np.ndarray) -> np.ndarray:
    """(4, 4) float64 from LiDAR metres to (u * depth, v * depth, depth, 1) in pixels.

    rotation (3, 3) and translation (3,) take camera to LiDAR coordinates (p_lidar = R p_cam + t); they contain the
    vehicle's motion between the two sensors' times. intrinsic (3, 3) pixels.
    """
    inverse = np.linalg.inv(np.asarray(rotation, np.float64))
    to_camera, to_pixels = np.eye(4), np.eye(4)
    to_camera[:3, :3] = inverse
    to_camera[:3, 3] = -inverse @ np.asarray(translation, np.float64)
    to_pixels[:3, :3] = intrinsic
    return to_pixels @ to_camera


def load_infos(path: Union[str, Path]) -> List[Record]:
    """The records of an info pickle; raises DataError where it is of another kind or a record is incomplete."""
    stored = load_pickle(path)
    if isinstance(stored, Mapping) and "data_list" in stored:
        raise DataError(
            f"{path}: this is an info file of mmdetection3d 1.x ('data_list'); expected the older kind with 'infos', "
            "as TPVFormer, BEVFormer and mmdetection3d 0.x write it"
        )
    if not isinstance(stored, Mapping) or not isinstance(stored.get("infos"), list) or not stored["infos"]:
        raise DataError(
            f"{path}: expected a dict whose 'infos' is a list of samples, as TPVFormer's info pickles hold it"
        )
    return [_record(info, f"{path}: record {i}") for i, info in enumerate(stored["infos"])]


def _record(info: Any, where: str) -> Record:
    try:
        cameras: Dict[str, Any] = info["cams"]
        matrices = [
            lidar_to_image(c["sensor2lidar_rotation"], c["sensor2lidar_translation"], c["cam_intrinsic"])
            for c in cameras.values()
        ]
        lidar2img = np.stack(matrices)
        images = tuple(str(c["data_path"]) for c in cameras.values())
        scan = str(info["lidar_path"])
        scene = str(info.get("scene_token") or Path(scan).name.split("__")[0])
        poses = (_pose(info, name) for name in ("lidar2ego", "ego2global"))
        return Record(str(info["token"]), scan, tuple(cameras), images, lidar2img, scene, *poses)
    except KeyError as err:
        raise DataError(f"{where} has no {err}; expected the info format of TPVFormer and mmdetection3d 0.x") from err
    except (TypeError, ValueError, AttributeError, np.linalg.LinAlgError) as err:
        raise DataError(
            f"{where} has an unusable calibration or layout ({err}); expected 'cams' with a 3x3 rotation, a "
            "translation of 3 and 3x3 intrinsics for each camera"
        ) from err


def _pose(info: Mapping[str, Any], name: str) -> Optional[np.ndarray]:
    """A pose that not every tool writes into its records."""
    keys = (f"{name}_translation", f"{name}_rotation")
    return pose(info[keys[0]], info[keys[1]]) if all(key in info for key in keys) else None


def resolve(stored: str, root: Union[str, Path], token: str) -> Path:
    """The file an info record names: as stored (absolute, or from the working directory), else below ``root``.

    Below ``root`` the part from ``samples/`` or ``sweeps/`` on is tried, then the bare file name. Raises DataError.
    """
    parts = Path(stored).parts
    tried = [Path(stored)]
    starts = [i for i, part in enumerate(parts) if part in ("samples", "sweeps")]
    if starts:
        tried.append(Path(root, *parts[starts[-1] :]))
    tried.append(Path(root, parts[-1] if parts else ""))
    for path in tried:
        if path.is_file():
            return path
    raise DataError(
        f"sample {token}: {stored} is missing; looked for {', '.join(map(str, tried))}. "
        f"Set data.root ({root}) to the folder that holds samples/, or complete the download"
    )


def read_frame(record: Record, root: Union[str, Path], label_file: Optional[str], to_class: Sequence[int]) -> Frame:
    """Everything of one sample. ``label_file`` is relative to ``root``; None leaves all labels 0.

    ``to_class`` gives the class of each raw label. Raises DataError for a missing, short or unreadable file.
    """
    scan = resolve(record.scan, root, record.token)
    points = _read_scan(scan, record.token)
    labels = np.zeros(len(points), np.uint8)
    if label_file is not None:
        raw = _read_labels(Path(root, label_file), scan, record.token, len(points), len(to_class))
        labels = np.asarray(to_class, np.uint8)[raw]
    images = read_images([resolve(path, root, record.token) for path in record.images], record.token)
    return Frame(record.token, images, list(record.camera_names), record.lidar2img, points, labels, record.lidar2ego)


def _read_scan(path: Path, token: str) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % (4 * SCAN_COLUMNS):
        raise DataError(
            f"sample {token}: {path} has {size} bytes; expected a multiple of {4 * SCAN_COLUMNS} (float32 x, y, z, "
            "intensity, ring), so the file is cut short: copy it again"
        )
    points = np.fromfile(path, "<f4").reshape(-1, SCAN_COLUMNS)[:, :3]
    if not np.isfinite(points).all():
        raise DataError(f"sample {token}: {path} holds coordinates that are not finite numbers; copy the file again")
    return np.ascontiguousarray(points, np.float32)


def _read_labels(path: Path, scan: Path, token: str, points: int, classes: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"sample {token}: label file {path} is missing; unpack nuScenes-lidarseg into data.root")
    raw = np.fromfile(path, np.uint8)
    if len(raw) != points:
        raise DataError(
            f"sample {token}: {path} holds {len(raw)} labels for the {points} points of {scan}; expected one byte a "
            "point, so one of the two files is cut short or belongs to another scan: copy both again"
        )
    if raw.max() >= classes:
        raise DataError(
            f"sample {token}: {path} holds label {raw.max()}; expected 0 to {classes - 1}, the raw classes of "
            "nuScenes-lidarseg under the configured data.label_map"
        )
    return raw
