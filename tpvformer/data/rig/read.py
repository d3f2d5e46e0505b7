"""Convert a rig file to records.

The grid lies in the frame of the lidar or of the vehicle (model.grid.frame). Where the cameras' places are given on the
vehicle, ``lidar2ego`` says where the lidar is; a rig without any is given the place of nuScenes' lidar, level, because
published models expect their grid there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np

from tpvformer.data.nuscenes.infos.cameras import camera_slots
from tpvformer.data.nuscenes.infos.parts import file_of
from tpvformer.data.nuscenes.infos.plausible import FARTHEST, distances, far_text
from tpvformer.data.record import Record
from tpvformer.data.rig.camera import Camera, read_camera, read_pose
from tpvformer.data.rig.json_file import EXPECTED, Node, read_json
from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.geometry import is_degenerate, lidar_to_image

FORMAT = "tpvformer-rig-1"
KEYS = ("format", "cameras", "lidar2ego", "lidar_columns", "frames")
FRAME_KEYS = ("token", "images", "lidar", "labels", "scene", "ego2global", "timestamp")
IMAGE_KINDS = (".jpg", ".jpeg", ".png")
MOST_COLUMNS = 64
# lidar2ego of nuScenes' vehicles, level: x right, y forward, z up, 1.84 m above the ground
NUSCENES_LIDAR = np.array([[0, 1, 0, 0.943713], [-1, 0, 0, 0], [0, 0, 1, 1.84023], [0, 0, 0, 1.0]])


def read_rig(path: Union[str, Path]) -> List[Record]:
    """Read the frames of a rig file, or of the rig.json in a folder; raises DataError that names the file, the place in
    it, and what was expected."""
    if "://" not in str(path) and Path(path).is_dir():
        path = Path(path) / "rig.json"
    folder = to_path(path).parent if "://" in str(path) else Path(path).absolute().parent
    return records_of(read_json(path), folder, Path(path).stem)


def records_of(root: Node, folder: Path, stem: str) -> List[Record]:
    """Return the records of a parsed rig file: image paths are relative to ``folder``; ``stem`` is the token of a frame
    without."""
    path = root.where
    _refuse_other_json(root)
    fields = root.fields(KEYS, needed=("format", "cameras"))
    if fields["format"].value != FORMAT:
        raise fields["format"].refuse(f'"{FORMAT}"')
    cameras = [read_camera(node) for node in fields["cameras"].items("cameras")]
    names = [camera.name for camera in cameras]
    _refuse_twice(names, f"{path}: two cameras have the name")
    places = camera_slots(names)
    slots, cameras = zip(*sorted(zip(places, cameras), key=lambda pair: pair[0]))
    columns = fields["lidar_columns"].count(MOST_COLUMNS) if "lidar_columns" in fields else None
    if columns is not None and columns < 3:
        raise fields["lidar_columns"].refuse("3 or more, of which the first three are x, y and z")
    frames = _frames(fields.get("frames"), folder, stem, [camera.name for camera in cameras])
    _refuse_twice([frame["token"] for frame in frames], f"{path}: two frames have the token")
    lidar2ego = _lidar2ego(path, fields.get("lidar2ego"), cameras, any(frame["scan"] for frame in frames))
    calibration = {
        "camera_names": tuple(camera.name for camera in cameras),
        "lidar2img": _lidar2img(path, cameras, lidar2ego),
        "lidar2ego": lidar2ego,
        "rig": path,
        "sizes": tuple(camera.size for camera in cameras),
        "slots": () if slots == tuple(range(len(slots))) else slots,
        "scan_columns": columns,
    }
    return [Record(**frame, **calibration) for frame in frames]


def _refuse_other_json(root: Node) -> None:
    """Raise DataError for JSON of another kind: infos, tables, files of other tools."""
    first = root.value[0] if isinstance(root.value, list) and root.value else root.value
    if not isinstance(first, dict) or (first is root.value and ("format" in first or "cameras" in first)):
        return
    infos = {"infos", "data_list", "cams", "images", "cam_infos"} & set(first)
    what = "infos as JSON, which are read as .pkl or .safetensors" if infos else "JSON of another kind"
    raise DataError(f'{root.where}: is {what}; {EXPECTED}, with "format": "{FORMAT}"')


def _refuse_twice(names: Iterable[str], text: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{text} {name}; expected one each")
        seen.add(name)


def _lidar2ego(path: str, node: Optional[Node], cameras: Sequence[Camera], lidar: bool) -> Optional[np.ndarray]:
    if node is not None:
        return read_pose(node)
    on_vehicle = [camera.name for camera in cameras if camera.place == "camera2ego"]
    if on_vehicle and (lidar or len(on_vehicle) < len(cameras)):
        reason = "the frames have lidar" if lidar else "other cameras have camera2lidar"
        raise DataError(
            f"{path}: {on_vehicle[0]} has camera2ego and {reason}, so lidar2ego is needed to bring them together; add "
            "the lidar's place on the vehicle"
        )
    return NUSCENES_LIDAR if on_vehicle else None


def _lidar2img(path: str, cameras: Sequence[Camera], lidar2ego: Optional[np.ndarray]) -> np.ndarray:
    poses = np.stack([camera.camera2lidar(lidar2ego) for camera in cameras])
    intrinsics = np.stack([camera.intrinsics for camera in cameras])
    made = lidar_to_image(poses[:, :3, :3], poses[:, :3, 3], intrinsics)
    for camera, bad in zip(cameras, is_degenerate(made)):
        if bad:
            raise DataError(f"{path}: {camera.name} has a projection that cannot be inverted; correct its numbers")
    for camera, distance in zip(cameras, distances(made)):
        if distance > FARTHEST:
            raise DataError(f"{path}: {camera.name} {far_text(distance)}")
    return made


def _frames(node: Optional[Node], folder: Path, stem: str, names: Sequence[str]) -> List[Dict[str, Any]]:
    """Return the fields of each frame's Record. Without a list of frames there is one, with its images
    named as the cameras are."""
    if node is None:
        return [{"token": stem, "scan": "", "images": _images_beside(folder, names)}]
    return [_frame(frame, folder, names) for frame in node.items("frames")]


def _images_beside(folder: Path, names: Sequence[str]) -> Tuple[str, ...]:
    """``images/<name><suffix>`` of each camera, the suffix in upper or lower case. Where there is none, a name that
    lists the suffixes: no file has it, and messages that it is missing say what was looked for."""
    found: Dict[str, List[str]] = {}
    with contextlib.suppress(OSError):
        for file in sorted((folder / "images").iterdir()):
            if file.suffix.lower() in IMAGE_KINDS:
                found.setdefault(file.name[: -len(file.suffix)], []).append(file.suffix)
    return tuple(str(folder / "images" / f"{name}{_chosen(found.get(name, ()))}") for name in names)


def _chosen(suffixes: Sequence[str]) -> str:
    if not suffixes:
        return f".{{{','.join(kind[1:] for kind in IMAGE_KINDS)}}}"
    return min(suffixes, key=lambda suffix: (IMAGE_KINDS.index(suffix.lower()), suffix != suffix.lower()))


def _frame(node: Node, folder: Path, names: Sequence[str]) -> Dict[str, Any]:
    fields = node.fields(FRAME_KEYS, needed=("token", "images"))
    token = fields["token"].text()
    if token.startswith(".") or "/" in token or "\\" in token or len(token) > 200:
        raise fields["token"].refuse("a text that can be a file's name: no slash, no dot in front, 200 letters at most")
    images = fields["images"].fields(names)
    lost = [name for name in names if name not in images]
    if lost:
        raise DataError(f"{node.where} (token {token}): images has no {lost[0]!r}; expected one image of each camera")
    if "labels" in fields and "lidar" not in fields:
        raise DataError(f"{node.where} (token {token}): has labels but no lidar; labels are those of its points")
    scan, labels = (str(folder / file_of(fields[key].text())) if key in fields else "" for key in ("lidar", "labels"))
    paths = tuple(str(folder / file_of(images[name].text())) for name in names)
    made: Dict[str, Any] = {"token": token, "images": paths, "scan": scan, "labels": labels}
    if "scene" in fields:
        made["scene"] = fields["scene"].text()
    if "ego2global" in fields:
        made["ego2global"] = read_pose(fields["ego2global"])
    if "timestamp" in fields:
        made["timestamp"] = fields["timestamp"].seconds()
    return made
