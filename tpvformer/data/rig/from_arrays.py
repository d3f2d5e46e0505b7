"""Build a frame from images in memory and a rig file, its content, or projections."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from tpvformer.data.images.decode import Size, read_image, three_channels
from tpvformer.data.nuscenes.infos.cameras import camera_slots
from tpvformer.data.record import Held, Record
from tpvformer.data.rig.json_file import MOST_SECONDS, Node, read_json
from tpvformer.data.rig.read import records_of
from tpvformer.data.rig.tensors import as_array, as_image
from tpvformer.data.scans.read import on_its_side
from tpvformer.errors import DataError
from tpvformer.geometry import is_degenerate

# a path; an array or tensor, RGB or grey, (H, W, 3) or (3, H, W), perhaps with one alpha everywhere; an image of PIL
Image = Any
Images = Union[Sequence[Image], Mapping[str, Image]]
Rig = Union[str, "os.PathLike[str]", Mapping[str, Any], Sequence[Any], np.ndarray]
TOKEN = "given"  # the frame's name in messages


class _Cameras(NamedTuple):
    names: Tuple[str, ...]  # in the order of their embeddings
    given: Tuple[str, ...]  # in the order in which images without names are expected
    slots: Tuple[int, ...]
    lidar2img: np.ndarray  # (N, 4, 4) float64, as ``names``
    sizes: Optional[Tuple[Size, ...]]  # width, height where the rig says so
    lidar2ego: Optional[np.ndarray] = None


def given_record(images: Images, rig: Rig, points: Optional[np.ndarray] = None) -> Record:
    """Return the record of images and a rig, which holds them; ``points`` (P, 3 or more) metres, lidar frame.

    images: by camera name, or in the order of the rig's cameras. rig: a rig file (docs/rig.md) or its content, whose
    cameras are used and whose frames are ignored; or lidar2img (4, 4), lidar metres to pixels of exactly these images:
    N of them by camera name, or in the images' order. Raises DataError that says what does not fit.
    """
    cameras = _cameras(rig, images)
    pictures = [_picture(image, name) for name, image in zip(cameras.names, _in_order(images, cameras))]
    sizes = tuple((picture.shape[1], picture.shape[0]) for picture in pictures)
    for name, size, expected in zip(cameras.names, sizes, cameras.sizes or sizes):
        if size != expected:
            raise DataError(
                f"image {name} is {size[0]}x{size[1]} pixels, but its camera is said to "
                f"have {expected[0]}x{expected[1]}, to which the intrinsics belong; give the image as the camera took "
                "it, or correct the rig"
            )
    return Record(
        TOKEN,
        "",
        cameras.names,
        (),
        cameras.lidar2img,
        lidar2ego=cameras.lidar2ego,
        rig=TOKEN,
        sizes=sizes,
        slots=() if cameras.slots == tuple(range(len(cameras.slots))) else cameras.slots,
        held=Held(tuple(pictures), np.empty((0, 3), np.float32) if points is None else checked_points(points)),
    )


def checked_points(points: Any) -> np.ndarray:
    """Return (P, 3) float32 of an array whose first three columns are x, y, z. Raises DataError."""
    array = np.asarray(as_array(points))
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "iuf":
        raise DataError(
            f"points are {array.dtype} of shape {array.shape}; expected numbers (points, 3): x, y, z metres"
        )
    if on_its_side(array):
        raise DataError(f"points have the shape {array.shape}, but rows are points: give their transpose, points.T")
    bad = int((~np.isfinite(array[:, :3]).all(1)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(array)} points have coordinates that are not finite numbers, as lidars write where no "
            "light came back; leave them out: points[np.isfinite(points[:, :3]).all(1)]"
        )
    return np.ascontiguousarray(array[:, :3], np.float32)


def checked_pose(pose: Any) -> np.ndarray:
    """Return (4, 4) float64 of a pose. Raises DataError where it is no rigid motion of finite numbers."""
    try:
        matrix = np.asarray(as_array(pose), np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape == (4, 4) and np.isfinite(matrix).all():
        turn = matrix[:3, :3]
        rigid = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0
        if rigid and matrix[3].tolist() == [0, 0, 0, 1]:
            return matrix
    raise DataError("ego2global is no 4x4 pose of finite numbers: a rotation, a translation in metres, and 0 0 0 1")


def checked_time(seconds: Any) -> float:
    """Return a time as a number. Raises DataError where it is no finite number of seconds."""
    try:
        value = float(seconds)
    except (TypeError, ValueError):
        value = float("nan")
    if not abs(value) < MOST_SECONDS:
        raise DataError(
            f"timestamp is {seconds!r}; expected a finite number of seconds (divide milli-, micro- or nanoseconds)"
        )
    return value


def _cameras(rig: Rig, images: Images) -> _Cameras:
    if isinstance(rig, (str, os.PathLike)) or (isinstance(rig, Mapping) and ("format" in rig or "cameras" in rig)):
        return _of_record(*_opened_rig(rig))
    if isinstance(rig, Mapping):
        names = tuple(str(name) for name in rig)
        return _of_matrices(names, list(rig.values()), camera_slots(names))
    names = tuple(str(name) for name in images) if isinstance(images, Mapping) else ()
    if names:
        raise DataError(
            f"images have names ({', '.join(names)}), but lidar2img has none; give it by the same names, so that each "
            "image meets its own projection"
        )
    matrices = list(rig)
    return _of_matrices(tuple(f"camera{i}" for i in range(len(matrices))), matrices, list(range(len(matrices))))


def rig_records(rig: Union[str, "os.PathLike[str]", Mapping[str, Any]]) -> List[Record]:
    """The frames of a rig file, of the rig.json in a folder, or of the content of one, whose paths are then relative
    to the working directory. Raises DataError."""
    return _opened_rig(rig)[1]


def _opened_rig(rig: Union[str, "os.PathLike[str]", Mapping[str, Any]]) -> Tuple[Node, List[Record]]:
    if isinstance(rig, Mapping):
        root = Node(_plain(rig), "rig")
        return root, records_of(root, Path.cwd(), TOKEN)
    path = Path(rig) / "rig.json" if Path(rig).is_dir() else Path(rig)
    root = read_json(path)
    return root, records_of(root, path.absolute().parent, path.stem)


def _of_record(root: Node, records: Sequence[Record]) -> _Cameras:
    record = records[0]
    slots = record.slots or tuple(range(len(record.camera_names)))
    given = tuple(camera["name"] for camera in root.value["cameras"])
    return _Cameras(record.camera_names, given, slots, record.lidar2img, record.sizes, record.lidar2ego)


def _plain(rig: Mapping[str, Any]) -> Any:
    """Convert arrays and tuples in the content of a rig file to lists, as in JSON."""

    def lists(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise DataError(f"rig holds a {type(value).__name__}; expected what a rig file holds, as docs/rig.md shows")

    return json.loads(json.dumps(rig, default=lists))


def _of_matrices(names: Tuple[str, ...], matrices: Sequence[Any], slots: Sequence[int]) -> _Cameras:
    made: List[np.ndarray] = []
    for name, given in zip(names, matrices):
        try:
            matrix = np.asarray(as_array(given), np.float64)
        except (TypeError, ValueError):
            matrix = np.empty(0)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or is_degenerate(matrix[None])[0]:
            raise DataError(
                f"lidar2img of {name} is no 4x4 matrix of finite numbers that can be inverted; expected lidar metres "
                "to (u * depth, v * depth, depth, 1), pixels"
            )
        made.append(matrix)
    if not made:
        raise DataError("lidar2img is empty; expected a 4x4 matrix for each camera")
    order = sorted(range(len(names)), key=lambda i: slots[i])
    return _Cameras(
        tuple(names[i] for i in order), names, tuple(slots[i] for i in order), np.stack([made[i] for i in order]), None
    )


def _in_order(images: Images, cameras: _Cameras) -> List[Image]:
    if isinstance(images, Mapping):
        by_name: Dict[str, Image] = {str(name): image for name, image in images.items()}
        odd = sorted(set(by_name) ^ set(cameras.names))
        if odd:
            what = "the rig has no such camera" if odd[0] in by_name else "there is no such image"
            raise DataError(f"images and cameras do not match: {odd[0]!r}, {what}; expected {', '.join(cameras.given)}")
    else:
        if isinstance(images, (str, os.PathLike)) or len(images) != len(cameras.given):
            found = "a path" if isinstance(images, (str, os.PathLike)) else f"{len(images)}"
            raise DataError(f"images are {found}; expected a list of {len(cameras.given)}: {', '.join(cameras.given)}")
        by_name = dict(zip(cameras.given, images))
    return [by_name[name] for name in cameras.names]


def _picture(image: Image, name: str) -> np.ndarray:
    """Convert an image to (H, W, 3) uint8, BGR."""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.is_file():
            raise DataError(f"image {name}: {path} is missing; name the camera's file")
        return read_image(path, f"{TOKEN} ({name})")
    image = as_image(image, name)
    array = np.asarray(_opened(image) if hasattr(image, "convert") else image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise DataError(f"image {name} is {array.dtype} of shape {array.shape}; expected (height, width, 3) uint8, RGB")
    try:
        return np.ascontiguousarray(three_channels(array)[:, :, ::-1])
    except ValueError as err:
        raise DataError(f"image {name} {err}, (height, width, 3) uint8, RGB") from err


def _opened(image: Any) -> Any:
    """An image of PIL in a mode that NumPy takes as it is; others, such as a palette's, are converted."""
    return image if getattr(image, "mode", "") in ("L", "RGB", "RGBA") else image.convert("RGB")
