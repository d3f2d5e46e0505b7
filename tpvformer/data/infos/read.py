"""Info files from anywhere, as the records a data set is read by.

Three layouts of pickle are known: ``infos`` of TPVFormer, BEVFormer and mmdetection3d 0.x; the same with further keys
of BEVDet; ``data_list`` of mmdetection3d 1.x. Other keys are ignored. Our own tensor files are known by their suffix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tpvformer.data.infos.columns import Infos
from tpvformer.data.infos.declared import check_distortion, scan_columns
from tpvformer.data.infos.files import no_collection
from tpvformer.data.infos.geometry import lidar_to_image, matrices, pixels_of, relative, unusable
from tpvformer.data.infos.kinds import refuse_other_kinds
from tpvformer.data.infos.tensor_file import SUFFIX, TensorFile
from tpvformer.data.pickle_safe import load_pickle
from tpvformer.data.types import DataError
from tpvformer.guard.names import has_unseen, is_file_name, shown
from tpvformer.ranges import short

_OLD = "the info format of TPVFormer and mmdetection3d 0.x"
_NEW = "the info format of mmdetection3d 1.x"


@dataclass(frozen=True)
class Record:
    """What is kept of one info record; paths as stored."""

    token: str
    scan: str  # empty where there is no LiDAR
    camera_names: Tuple[str, ...]
    images: Tuple[str, ...]
    lidar2img: np.ndarray  # (N, 4, 4) float64
    scene: str = ""  # token of its scene, or the name of its log where the record holds none
    lidar2ego: Optional[np.ndarray] = None  # (4, 4) float64; these two where the record holds them
    ego2global: Optional[np.ndarray] = None  # (4, 4) float64, at the time of the LiDAR
    labels: str = ""  # file of its point labels, where the record names one; nuScenes' tables do so otherwise
    rig: str = ""  # the rig file it stands in, all of whose paths are absolute; empty: an info file
    sizes: Tuple[Tuple[int, int], ...] = ()  # width, height of each image; empty where the file does not say
    slots: Tuple[int, ...] = ()  # the camera embedding of each camera, where these are not the first ones in order
    scan_columns: Optional[int] = None  # float32 numbers a point, x, y, z first, as declared; None: five, if they fit


def is_rig(path: Union[str, Path]) -> bool:
    """Whether this names a rig file (.json), or a folder, which stands for the rig.json in it."""
    return Path(path).suffix.lower() == ".json" or Path(path).is_dir()


def load_infos(path: Union[str, Path]) -> List[Record]:
    """The records of an info file or of a rig file; raises DataError where it is of another kind or a record is
    incomplete."""
    if is_rig(path):
        from tpvformer.data.rig.read import read_rig  # here, because it makes records itself

        return read_rig(path)
    if Path(path).suffix == SUFFIX:
        return _from_tensors(path)
    refuse_other_kinds(path)
    with no_collection(), np.errstate(all="ignore"):  # numbers that lead nowhere are looked for at the end
        return _from_pickle(path)


def _from_pickle(path: Union[str, Path]) -> List[Record]:
    stored = load_pickle(path)
    found = [stored.get(name) for name in ("infos", "data_list")] if isinstance(stored, Mapping) else []
    if any(isinstance(value, list) and not value for value in found):
        raise DataError(f"{path}: {_NO_FRAMES}")
    if isinstance(stored, Mapping) and _is_list(stored.get("infos")):
        return _records(path, stored["infos"], _old_record, _OLD)
    if isinstance(stored, Mapping) and _is_list(stored.get("data_list")):
        return _records(path, stored["data_list"], _new_record, _NEW)
    keys = (
        f"a dict of {', '.join(map(str, list(stored)[:8]))}" if isinstance(stored, Mapping) else type(stored).__name__
    )
    raise DataError(
        f"{path}: holds {keys or 'nothing'}; expected a dict whose 'infos' is a list of samples, as TPVFormer's and "
        "BEVDet's info pickles hold it, or whose 'data_list' is one, as mmdetection3d 1.x writes it"
    )


def record_of(infos: Infos, index: int) -> Record:
    """The record of one sample of infos that are in memory already."""
    width = len(infos.cameras)
    images = tuple(infos.images.files[index * width : (index + 1) * width])
    lidar2ego, ego2global = (matrices(poses[index]) for poses in (infos.scans.sensor2ego, infos.scans.ego2global))
    return Record(
        infos.tokens[index],
        infos.scans.files[index],
        infos.cameras,
        images,
        infos.lidar2img()[index],
        infos.scenes[index],
        lidar2ego,
        ego2global,
    )


_NO_FRAMES = (
    "holds no frames; expected one at least: name other infos (data.train_infos, data.val_infos, data.test_infos), or "
    "make these from a set that has scenes of this split"
)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


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
                f"{where} has an unusable calibration or layout ({' '.join(str(err).split())[:200]}); expected "
                f"{layout}, with rotations or poses, translations and 3x3 intrinsics for each camera"
            ) from err
        if seen.setdefault(record.token, i) != i:
            raise DataError(
                f"{where} has the token {shown(record.token)[:200]} of record {seen[record.token]}; expected one each"
            )
        records.append(record)
    return _checked(path, records)


def _checked(path: Union[str, Path], records: List[Record]) -> List[Record]:
    for i, record in enumerate(records):
        _check_names(f"{path}: record {i}", record)
        bad = np.flatnonzero(unusable(record.lidar2img))
        if len(bad):
            raise DataError(
                f"{path}: record {i} has an unusable calibration (sample {record.token}, "
                f"{record.camera_names[bad[0]]}: not finite, or a projection that cannot be inverted); "
                "make the infos again, tpvformer data infos does so from the nuScenes tables"
            )
    return records


def _check_names(where: str, record: Record) -> None:
    """Raises DataError for names that are no names: they reach terminals, archives and the names of files."""
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
    cameras: Dict[str, Any] = info["cams"]
    _check_distortions(cameras)
    placed = [_placed(info, camera) for camera in cameras.values()]
    rotation, translation = np.stack([r for r, _ in placed]), np.stack([t for _, t in placed])
    intrinsics = np.stack([_numbers(c["cam_intrinsic"], 3, 3) for c in cameras.values()])
    images = tuple(str(c["data_path"]) for c in cameras.values())
    scan, lidar2img = str(info["lidar_path"]), lidar_to_image(rotation, translation, intrinsics)
    poses = [
        matrices(_pose(info, name))[0] if f"{name}_translation" in info and f"{name}_rotation" in info else None
        for name in ("lidar2ego", "ego2global")
    ]
    return Record(
        str(info["token"]),
        scan,
        tuple(map(str, cameras)),
        images,
        lidar2img,
        _scene(info, scan),
        poses[0],
        poses[1],
        scan_columns=scan_columns(info),
    )


def _check_distortions(cameras: Mapping[str, Any]) -> None:
    for name, camera in cameras.items():
        check_distortion(str(name), camera)


def _scene(info: Mapping[str, Any], scan: str) -> str:
    """The scene's token, which not every tool writes; else the log that the scan's name begins with."""
    return str(info.get("scene_token") or Path(scan).name.split("__")[0])


def _placed(info: Mapping[str, Any], camera: Mapping[str, Any]) -> Tuple[np.ndarray, np.ndarray]:
    """Camera to LiDAR, as stored or from the poses of both sensors at their own times (which BEVDet keeps as well)."""
    if "sensor2lidar_rotation" in camera or "sensor2ego_rotation" not in camera:
        return _numbers(camera["sensor2lidar_rotation"], 3, 3), _numbers(camera["sensor2lidar_translation"], 3)
    chain = (_pose(camera, "sensor2ego"), _pose(camera, "ego2global"), _pose(info, "lidar2ego"))
    rotation, translation = relative(*chain, _pose(info, "ego2global"))
    return rotation[0], translation[0]


def _pose(source: Mapping[str, Any], name: str) -> np.ndarray:
    """(1, 7): translation and quaternion."""
    parts = _numbers(source[f"{name}_translation"], 3), _numbers(source[f"{name}_rotation"], 4)
    return np.concatenate(parts)[None]


def _new_record(info: Any) -> Record:
    cameras = info["images"]
    _check_distortions(cameras)
    to_camera = np.stack([_numbers(c["lidar2cam"], 4, 4) for c in cameras.values()])
    lidar2img = pixels_of(np.stack([_numbers(c["cam2img"], 3, 3) for c in cameras.values()])) @ to_camera
    images = tuple(_below(name, str(c["img_path"])) for name, c in cameras.items())
    scan = _below("LIDAR_TOP", str(info["lidar_points"]["lidar_path"]))
    stored = (info["lidar_points"].get("lidar2ego"), info.get("ego2global"))
    poses = [None if value is None else _numbers(value, 4, 4) for value in stored]
    return Record(
        str(info["token"]),
        scan,
        tuple(map(str, cameras)),
        images,
        lidar2img,
        _scene(info, scan),
        poses[0],
        poses[1],
        scan_columns=scan_columns(info),
    )


def _below(channel: str, name: str) -> str:
    """These files are stored by their bare names; the folder is a convention of mmdetection3d's configurations."""
    return name if "/" in name else f"samples/{channel}/{name}"


def _numbers(value: Any, *shape: int) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise ValueError(f"{array.dtype} of shape {array.shape} where numbers of shape {shape} belong")
    return array.astype(np.float64)


def _from_tensors(path: Union[str, Path]) -> List[Record]:
    file = TensorFile(path)
    count, width = file.count, len(file.cameras)
    tokens, scans = file.text("tokens", count), file.text("scans.files", count)
    images = file.text("images.files", count * width)
    scenes = file.text("scenes", count)
    lidar2img, lidar2ego = file.lidar2img(), matrices(file.array("scans.sensor2ego", count, 7))
    ego2global = matrices(file.array("scans.ego2global", count, 7))
    if not count:
        raise DataError(f"{path}: {_NO_FRAMES}")
    if unusable(lidar2img).any():
        _checked(path, [Record(t, s, file.cameras, (), m) for t, s, m in zip(tokens, scans, lidar2img)])
    records = [
        Record(
            tokens[i],
            scans[i],
            file.cameras,
            tuple(images[i * width : (i + 1) * width]),
            lidar2img[i],
            scenes[i],
            lidar2ego[i],
            ego2global[i],
        )
        for i in range(count)
    ]
    for i, record in enumerate(records):
        _check_names(f"{path}: record {i}", record)
    return records
