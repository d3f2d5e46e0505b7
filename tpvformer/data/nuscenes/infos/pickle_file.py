"""Write infos as the pickle that TPVFormer, BEVFormer and mmdetection3d 0.x read: {infos: [records], metadata}.

Boxes have mmdetection3d's convention from before 1.0: width, length, height and -yaw - pi/2 in the lidar frame; names
are those of detection classes, and nuScenes' categories for all others. ``gt_attributes`` is a key of ours.
CAN bus is left out.
"""

from __future__ import annotations

import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Generator, List

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES, CATEGORY_LABELS, DETECTION_CLASSES
from tpvformer.data.nuscenes.annotations import Annotations
from tpvformer.data.nuscenes.infos.boxes import turned
from tpvformer.data.nuscenes.infos.columns import Infos, Shots
from tpvformer.files import atomic_file, gc_paused
from tpvformer.labels import RAW_NAMES

PROTOCOL = 4  # the newest that Python 3.7 reads and that stores arrays as in the public files
_ARRAYS = "numpy.core.multiarray"  # the module of numpy's array constructor, in the name that all versions import


@contextmanager
def public_names() -> Generator[None, None, None]:
    """Let pickles written in the block name numpy.core instead of numpy._core.

    numpy 2 would write numpy._core, which numpy before 1.26, as TPVFormer's published code uses it, cannot import.
    """
    makers: List[Any] = [value.__reduce__()[0] for value in (np.zeros(1), np.float64(0))]
    before = [maker.__module__ for maker in makers]
    try:
        for maker in makers:
            maker.__module__ = _ARRAYS
        yield
    finally:
        for maker, module in zip(makers, before):
            maker.__module__ = module


def to_records(infos: Infos) -> List[Dict[str, Any]]:
    """Return one record for each sample, with keys in the order of the public files.

    Rotations and translations of ``sensor2lidar_`` and the intrinsics are arrays; all else is plain numbers, strings
    and lists.
    """
    scans, images = _shot_records(infos.scans), _shot_records(infos.images)
    sweeps = [{**record, "type": "lidar"} for record in _shot_records(infos.sweeps)]
    start, cameras = infos.sweep_start.tolist(), len(infos.cameras)
    records = []
    for i, token in enumerate(infos.tokens):
        own = images[i * cameras : (i + 1) * cameras]
        for k, (channel, record) in enumerate(zip(infos.cameras, own)):
            record["type"], record["cam_intrinsic"] = channel, infos.intrinsics[i, k].copy()
        records.append(
            {
                "lidar_path": infos.scans.files[i],
                "token": token,
                "sweeps": sweeps[start[i] : start[i + 1]],
                "cams": {name: record for name, record in zip(infos.cameras, own) if record["data_path"]},
                "lidar2ego_translation": scans[i]["sensor2ego_translation"],
                "lidar2ego_rotation": scans[i]["sensor2ego_rotation"],
                "ego2global_translation": scans[i]["ego2global_translation"],
                "ego2global_rotation": scans[i]["ego2global_rotation"],
                "timestamp": int(infos.timestamps[i]),
                "scene_token": infos.scenes[i],
                **({} if infos.boxes is None else _box_columns(infos.boxes, i)),
            }
        )
    return records


def box_name(category: int) -> str:
    """Return the name in ``gt_names`` of a category, an index of RAW_NAMES."""
    name = RAW_NAMES[category]
    label = CATEGORY_LABELS.get(name, len(DETECTION_CLASSES))
    return DETECTION_CLASSES[label] if label < len(DETECTION_CLASSES) else name


def _box_columns(found: Annotations, frame: int) -> Dict[str, np.ndarray]:
    """Return the boxes of one key frame as mmdetection3d before 1.0 stores them."""
    own = slice(int(found.starts[frame]), int(found.starts[frame + 1]))
    boxes = np.concatenate([found.centres[own], found.sizes[own], found.yaws[own, None]], axis=1)
    names = [box_name(category) for category in found.categories[own]]
    attributes = [ATTRIBUTES[i] if i >= 0 else "" for i in found.attributes[own]]
    return {
        "gt_boxes": turned(boxes),
        "gt_names": np.array(names, np.str_),
        "gt_velocity": found.velocities[own].copy(),
        "num_lidar_pts": found.lidar_points[own].copy(),
        "num_radar_pts": found.radar_points[own].copy(),
        "valid_flag": found.lidar_points[own] + found.radar_points[own] > 0,
        "gt_attributes": np.array(attributes, np.str_),
    }


def _shot_records(shots: Shots) -> List[Dict[str, Any]]:
    mounted, drive, stamps = shots.sensor2ego.tolist(), shots.ego2global.tolist(), shots.timestamps.tolist()
    return [
        {
            "data_path": shots.files[i],
            "type": "",
            "sample_data_token": shots.tokens[i],
            "sensor2ego_translation": mounted[i][:3],
            "sensor2ego_rotation": mounted[i][3:],
            "ego2global_translation": drive[i][:3],
            "ego2global_rotation": drive[i][3:],
            "timestamp": stamps[i],
            "sensor2lidar_rotation": shots.rotation[i].copy(),
            "sensor2lidar_translation": shots.translation[i].copy(),
        }
        for i in range(len(shots))
    ]


def write_pickle(infos: Infos, path: Path) -> None:
    """Write the pickle atomically. Raises ConfigError where it cannot be written."""
    with gc_paused(), public_names(), atomic_file(path) as file:
        content = {"infos": to_records(infos), "metadata": {"version": infos.version}}
        pickle.dump(content, file, protocol=PROTOCOL)
