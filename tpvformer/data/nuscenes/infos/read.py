"""Read info files of several programs as the records of a data set.

The layout of a pickle is recognised by the keys of its records: ``cams`` (TPVFormer, BEVFormer, BEVDet, mmdetection3d
0.x), ``images`` (mmdetection3d 1.x) or ``cam_infos`` (BEVDepth). The records are a list, or are in a dict under
``infos`` or ``data_list``, as a list or by scene. Other keys are ignored. Our tensor files are recognised by their
suffix.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tpvformer.data.nuscenes.infos.boxes import check_boxes, pickled_boxes
from tpvformer.data.nuscenes.infos.cameras import by_name
from tpvformer.data.nuscenes.infos.columns import Infos
from tpvformer.data.nuscenes.infos.declared import check_distortions, scan_columns
from tpvformer.data.nuscenes.infos.kinds import refuse_other_kinds
from tpvformer.data.nuscenes.infos.parts import (
    each,
    file_of,
    image_of,
    intrinsics,
    numbers,
    pose,
    seconds_of,
    square,
    token_of,
)
from tpvformer.data.nuscenes.infos.plausible import distances, far_text, too_far
from tpvformer.data.nuscenes.infos.tensor_file import TensorFile
from tpvformer.data.record import Record
from tpvformer.errors import DataError
from tpvformer.files import gc_paused
from tpvformer.geometry import is_degenerate, lidar_to_image, matrices, relative
from tpvformer.untrusted.names import has_unseen, is_file_name, short, shown
from tpvformer.untrusted.pickle import load_pickle

_OLD = "the info format of TPVFormer and mmdetection3d 0.x"
_NEW = "the info format of mmdetection3d 1.x"
_DEPTH = "the info format of BEVDepth"


def read_pickle_infos(path: Union[str, Path], boxes: bool = False) -> List[Record]:
    """Return the records of an info pickle, cameras in the order of their embeddings; with its ``boxes`` if asked.

    Raises DataError where the file is of another kind or a record is incomplete.
    """
    refuse_other_kinds(path)
    with gc_paused(), np.errstate(all="ignore"):  # _checked looks for values that are not finite
        return by_name(_from_pickle(path, boxes))


def read_tensor_infos(path: Union[str, Path], boxes: bool = False) -> List[Record]:
    """Return the records of a tensor file, as ``read_pickle_infos`` does."""
    return by_name(_from_tensors(path, boxes))


def _from_pickle(path: Union[str, Path], boxes: bool) -> List[Record]:
    stored = load_pickle(path)
    listed = _listed(stored)
    if listed is None:
        kind = type(stored).__name__
        keys = f"a dict of {', '.join(map(str, list(stored)[:8]))}" if isinstance(stored, Mapping) else kind
        raise DataError(
            f"{path}: holds {keys or 'nothing'}; expected a list of samples, or a dict whose 'infos' is a list of "
            "samples, as TPVFormer's and BEVDet's info pickles hold it, or whose 'data_list' is one, as mmdetection3d "
            "1.x writes it"
        )
    if not listed:
        raise DataError(f"{path}: {_NO_FRAMES}")
    new = isinstance(stored, Mapping) and "infos" not in stored
    records = _records(path, listed, *_reader_of(path, listed[0], new))
    if not boxes:
        return records
    found = pickled_boxes(path, stored, listed, records)
    return [record if own is None else replace(record, boxes=own) for record, own in zip(records, found)]


def _listed(stored: Any) -> Optional[Sequence[Any]]:
    """Return the list of records in a pickle's content; None where there is none."""
    if isinstance(stored, (list, tuple)):
        return stored if not stored or isinstance(stored[0], Mapping) else None
    if not isinstance(stored, Mapping):
        return None
    for name in ("infos", "data_list"):
        found = stored.get(name)
        if isinstance(found, (list, tuple)):
            return found
        if isinstance(found, Mapping) and found and all(isinstance(v, (list, tuple)) for v in found.values()):
            return [record for scene in found.values() for record in scene]  # by scene, as the reference's tools do
    return None


def _reader_of(path: Union[str, Path], record: Any, new: bool) -> Tuple[Callable[[Any], Record], str]:
    """Return the reader of a record's layout, chosen by its keys, and the layout's name.

    ``new``: take the layout of mmdetection3d 1.x where the keys do not tell.
    Raises DataError for layouts of other programs that are known to lack calibrated cameras.
    """
    keys = record if isinstance(record, Mapping) else {}
    if "cam_infos" in keys or "lidar_infos" in keys:
        from tpvformer.data.nuscenes.infos.bevdepth import bevdepth_record  # here, because it makes records itself

        return bevdepth_record, _DEPTH
    if "cams" not in keys and "images" not in keys:
        if "cam_front_path" in keys:
            tool, what = "CenterPoint or OpenPCDet", "names the front image alone"
        elif "calib" in keys and ("image" in keys or "point_cloud" in keys):
            tool, what = "KITTI for OpenPCDet, SECOND or mmdetection3d 0.x", "has another layout"
        else:
            return (_new_record, _NEW) if new else (_old_record, _OLD)
        raise DataError(
            f"{path}: its records are those of {tool}, each of which {what}; make infos from nuScenes' tables with "
            "tpvformer data infos, or describe the cameras in a rig file (docs/rig.md)"
        )
    return (_old_record, _OLD) if "cams" in keys else (_new_record, _NEW)


def record_of(infos: Infos, index: int) -> Record:
    """Return the record of one sample of infos in memory."""
    width = len(infos.cameras)
    files = infos.images.files[index * width : (index + 1) * width]
    lidar2ego, ego2global = (matrices(poses[index]) for poses in (infos.scans.sensor2ego, infos.scans.ego2global))
    cameras = _present(infos.cameras, files, infos.lidar2img()[index])
    made = Record(infos.tokens[index], infos.scans.files[index], *cameras, infos.scenes[index], lidar2ego, ego2global)
    return replace(made, timestamp=float(infos.timestamps[index]) / 1e6)


def _present(
    names: Tuple[str, ...], files: Sequence[str], lidar2img: np.ndarray
) -> Tuple[Tuple[str, ...], Tuple[str, ...], np.ndarray]:
    """Return names, files and projections (N, 4, 4) of the cameras of which a sample has an image."""
    if all(files):
        return names, tuple(files), lidar2img
    there = [i for i, file in enumerate(files) if file]
    return tuple(names[i] for i in there), tuple(files[i] for i in there), lidar2img[there]


_NO_FRAMES = (
    "holds no frames; expected one at least: name other infos (data.train_infos, data.val_infos, data.test_infos), or "
    "make these from a set that has scenes of this split"
)


def _records(path: Union[str, Path], stored: Sequence[Any], read: Callable[[Any], Record], layout: str) -> List[Record]:
    records: List[Record] = []
    seen: Dict[str, int] = {}
    for i, info in enumerate(stored):
        where = f"{path}: record {i}"
        try:
            record = read(info)
        except KeyError as err:
            raise DataError(f"{where} has no {err}; expected {layout}") from err
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError, np.linalg.LinAlgError) as err:
            raise DataError(
                f"{where} has an unusable calibration or layout ({' '.join(str(err).split())[:300]}); expected "
                f"{layout}, with rotations or poses, translations and 3x3 (3x4, 4x4) intrinsics for each camera"
            ) from err
        try:
            check_distortions(info)
            columns = scan_columns(info)
        except ValueError as err:
            raise DataError(f"{where} (sample {shown(record.token)[:200]}): {err}") from err
        if columns is not None:
            record = replace(record, scan_columns=columns)
        if seen.setdefault(record.token, i) != i:
            raise DataError(
                f"{where} has the token {shown(record.token)[:200]} of record {seen[record.token]}; expected one each"
            )
        records.append(record)
    return _checked(path, records)


def _checked(path: Union[str, Path], records: List[Record]) -> List[Record]:
    for i, record in enumerate(records):
        _check_names(f"{path}: record {i}", record)
        bad = np.flatnonzero(is_degenerate(record.lidar2img))
        if len(bad):
            raise DataError(
                f"{path}: record {i} has an unusable calibration (sample {record.token}, "
                f"{record.camera_names[bad[0]]}: not finite, or a projection that cannot be inverted); "
                "make the infos again, tpvformer data infos does so from the nuScenes tables"
            )
        far = np.flatnonzero(too_far(record.lidar2img))
        if len(far):
            raise DataError(
                f"{path}: record {i} (sample {record.token}): {record.camera_names[far[0]]} "
                f"{far_text(float(distances(record.lidar2img)[far[0]]))}"
            )
    return records


def _check_names(where: str, record: Record) -> None:
    """Raise DataError for a token or a name that cannot be printed or, for a token, be a file's name."""
    if not is_file_name(record.token):
        raise DataError(
            f"{where} has the token {short(record.token)}; expected one that can be a file's name: no slash, no dot in "
            "front, nothing that cannot be printed, 200 letters at most"
        )
    for kind, names in (
        ("scene", (record.scene,)),
        ("camera", record.camera_names),
        ("file", (record.scan, *record.images)),
    ):
        for name in names:
            if len(name) > 4096 or has_unseen(name):
                raise DataError(f"{where} has the {kind} {short(name)}; expected a name that can be printed")


def _old_record(info: Any) -> Record:
    cameras: Mapping[str, Any] = info["cams"]
    placed = each(cameras, lambda camera: _placed(info, camera))
    rotation, translation = np.stack([r for r, _ in placed]), np.stack([t for _, t in placed])
    pixels = np.stack(each(cameras, lambda camera: intrinsics(camera[_intrinsics_key(camera)])))
    scan = file_of(info.get("lidar_path"))
    poses = [
        matrices(pose(info, f"{name}_"))[0] if info.get(f"{name}_rotation") is not None else None
        for name in ("lidar2ego", "ego2global")
    ]
    return Record(
        token_of(info),
        scan,
        tuple(map(str, cameras)),
        tuple(each(cameras, lambda camera: image_of(camera["data_path"]))),
        lidar_to_image(rotation, translation, pixels),
        _scene(info, scan),
        poses[0],
        poses[1],
        timestamp=seconds_of(info.get("timestamp")),
    )


def _intrinsics_key(camera: Mapping[str, Any]) -> str:
    """Return the key of the intrinsics, which OpenPCDet and BEVFusion call ``camera_intrinsics``."""
    return "camera_intrinsics" if "camera_intrinsics" in camera and "cam_intrinsic" not in camera else "cam_intrinsic"


def _scene(info: Mapping[str, Any], scan: str) -> str:
    """Return the scene's token, or, where it is absent, the name of the log, with which the scan's name begins."""
    return str(info.get("scene_token") or Path(scan).name.split("__")[0])


def _placed(info: Mapping[str, Any], camera: Mapping[str, Any]) -> Tuple[np.ndarray, np.ndarray]:
    """Return rotation (3, 3) and translation (3,) from camera to lidar, stored or from both sensors' poses (BEVDet)."""
    if "sensor2lidar_rotation" in camera or "sensor2ego_rotation" not in camera:
        return numbers(camera["sensor2lidar_rotation"], 3, 3), numbers(camera["sensor2lidar_translation"], 3)
    chain = (pose(camera, "sensor2ego_"), pose(camera, "ego2global_"), pose(info, "lidar2ego_"))
    rotation, translation = relative(*chain, pose(info, "ego2global_"))
    return rotation[0], translation[0]


def _new_record(info: Any) -> Record:
    """Convert a record of mmdetection3d 1.x. KITTI's R0_rect and its cameras without an image are left out.

    Raises KeyError or ValueError where the record is incomplete.
    """
    listed = info["images"]
    if not isinstance(listed, Mapping):
        raise ValueError(f"its images are {type(listed).__name__}, not a dict of them by camera")
    cameras = {name: c for name, c in listed.items() if isinstance(c, Mapping) and file_of(c.get("img_path"))}
    if listed and not cameras:
        raise ValueError(f"none of its cameras ({', '.join(map(str, listed))}) has an img_path")
    points = info.get("lidar_points") or {}
    scan = _below("LIDAR_TOP", file_of(points.get("lidar_path")))
    stored = (points.get("lidar2ego"), info.get("ego2global"))
    poses = [None if value is None else square(value) for value in stored]
    return Record(
        token_of(info),
        scan,
        tuple(map(str, cameras)),
        tuple(_below(name, file_of(c["img_path"])) for name, c in cameras.items()),
        np.stack(each(cameras, _new_projection)),
        _scene(info, scan),
        poses[0],
        poses[1],
        timestamp=seconds_of(info.get("timestamp")),
    )


def _new_projection(camera: Mapping[str, Any]) -> np.ndarray:
    if "lidar2cam" not in camera and "lidar2img" in camera:
        return square(camera["lidar2img"])
    to_camera = square(camera["lidar2cam"])
    return intrinsics(camera["cam2img"]) @ to_camera


def _below(channel: str, name: str) -> str:
    """Add the folder of a channel to a bare file name, as mmdetection3d's configurations do."""
    return name if "/" in name or not name else f"samples/{channel}/{name}"


def _from_tensors(path: Union[str, Path], boxes: bool) -> List[Record]:
    file = TensorFile(path)
    count, width = file.count, len(file.cameras)
    tokens, scans = file.text("tokens", count), [file_of(name) for name in file.text("scans.files", count)]
    images = [file_of(name) for name in file.text("images.files", count * width)]
    scenes = file.text("scenes", count)
    lidar2img, lidar2ego = file.lidar2img(), matrices(file.array("scans.sensor2ego", count, 7))
    ego2global = matrices(file.array("scans.ego2global", count, 7))
    seconds = (file.array("timestamps", count) / 1e6).tolist()
    if not count:
        raise DataError(f"{path}: {_NO_FRAMES}")
    if is_degenerate(lidar2img).any():
        _checked(path, [Record(t, s, file.cameras, (), m) for t, s, m in zip(tokens, scans, lidar2img)])
    there = np.array([bool(image) for image in images]).reshape(count, width)
    records = [
        Record(
            tokens[i],
            scans[i],
            *_present(file.cameras, images[i * width : (i + 1) * width], lidar2img[i]),
            scenes[i],
            lidar2ego[i],
            ego2global[i],
            timestamp=seconds[i],
        )
        for i in range(count)
    ]
    found = file.boxes() if boxes else None
    if found is not None:
        for i, own in enumerate(found):
            check_boxes(f"{path}: record {i} (sample {tokens[i]})", own)
        records = [replace(record, boxes=own) for record, own in zip(records, found)]
    if (too_far(lidar2img) & there).any():
        return _checked(path, records)
    for i, record in enumerate(records):
        _check_names(f"{path}: record {i}", record)
    return records
