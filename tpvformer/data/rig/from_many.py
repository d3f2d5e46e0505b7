"""List the frames to predict: one, a batch, those of a folder, or those of a rig file."""

from __future__ import annotations

import collections.abc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

from tpvformer.data.formats import load_infos
from tpvformer.data.frames import read_frame
from tpvformer.data.record import Record
from tpvformer.data.rig.from_arrays import (
    TOKEN,
    Images,
    Rig,
    checked_pose,
    checked_time,
    given_record,
    rig_records,
)
from tpvformer.data.rig.read import IMAGE_KINDS
from tpvformer.data.types import Frame
from tpvformer.data.windows import drives
from tpvformer.errors import DataError


class Moment(NamedTuple):
    """Hold one frame that is read lazily, and its scene and index if it comes from a rig file."""

    load: Callable[[], Frame]
    scene: str = ""
    number: int = 0


class Shot(NamedTuple):
    """Hold one frame of a drive that is given while it is driven: what ``TPVFormer.predict`` takes.

    ``rig`` None: that of the call.
    """

    images: Images
    ego2global: Any = None
    timestamp: Optional[float] = None
    points: Any = None
    rig: Optional[Rig] = None


class Moments(NamedTuple):
    """Hold frames; ``several`` is True for a batch or a rig file, even with one frame."""

    each: Iterable[Moment]
    several: bool


def moments(
    images: Union[Images, Sequence[Images], Iterator[Any], str, "os.PathLike[str]", None],
    rig: Optional[Rig],
    points: Any,
    root: str,
    ego2global: Any = None,
    timestamp: Any = None,
    by_drive: bool = False,
) -> Moments:
    """Return the frames for ``TPVFormer.predict``, whose docstring lists the accepted inputs. ``root`` is data.root,
    for the paths of info files. ``by_drive``: those of a file in the order of time, drive by drive. Raises DataError.
    """
    if rig is None and isinstance(images, (str, os.PathLike)):
        images, rig = None, images  # a rig by itself names its images
    if isinstance(images, collections.abc.Iterator):
        if points is not None or ego2global is not None or timestamp is not None:
            raise DataError("frames are given one by one; expected points, poses and times in their tuples")
        return Moments(_one_by_one(images, rig), True)
    if rig is None:
        raise DataError("rig is missing: give a rig file (docs/rig.md), its content, or lidar2img matrices")
    if images is None:
        for name, given in (("points", points), ("ego2global", ego2global), ("timestamp", timestamp)):
            if given is not None:
                own = "points (lidar)" if name == "points" else name
                raise DataError(f"{name} are given without images; the frames of a rig bring their own {own}")
        return Moments(list(_named_by(rig, root, by_drive)), True)
    if isinstance(images, (str, os.PathLike)):
        found = _in_folder(Path(images), rig)
        images = found[0] if len(found) == 1 else found
    if not _is_batch(images):
        return Moments([Moment(_given(Shot(images, ego2global, timestamp, points, rig)))], False)
    columns = [
        _one_each(points, len(images), "points", "scan"),
        _one_each(ego2global, len(images), "poses (ego2global)", "pose"),
        _one_each(timestamp, len(images), "times (timestamp)", "time"),
    ]
    shots = (Shot(each, pose, time, scan, rig) for each, scan, pose, time in zip(images, *columns))
    return Moments([Moment(_given(shot, i)) for i, shot in enumerate(shots)], True)


def _one_each(values: Any, frames: int, name: str, one: str) -> Sequence[Any]:
    if values is None:
        return [None] * frames
    if not hasattr(values, "__len__") or len(values) != frames:
        many = len(values) if hasattr(values, "__len__") else 1
        raise DataError(f"{name} are of {many} frames, images of {frames}; expected one {one} for each")
    return values


def _one_by_one(shots: Iterator[Any], rig: Optional[Rig]) -> Iterator[Moment]:
    """Yield frames when they are asked for; each of ``shots`` is a tuple like ``Shot``."""
    for number, given in enumerate(shots):
        if not isinstance(given, tuple) or not 1 <= len(given) <= len(Shot._fields):
            raise DataError(
                f"frame {number} is a {type(given).__name__}; expected a tuple ({', '.join(Shot._fields)}), of which "
                "all but the images may be left out"
            )
        shot = Shot(*given)
        if shot.rig is None and rig is None:
            raise DataError("rig is missing: give a rig file (docs/rig.md), its content, or lidar2img matrices")
        yield Moment(_given(shot._replace(rig=rig if shot.rig is None else shot.rig), number))


def _is_rig(rig: Rig) -> bool:
    """Return whether this is a rig file or its content, not lidar2img matrices."""
    return isinstance(rig, (str, os.PathLike)) or (isinstance(rig, Mapping) and ("format" in rig or "cameras" in rig))


def _given(shot: Shot, number: Optional[int] = None) -> Callable[[], Frame]:
    """Return what reads a frame in memory; ``number`` is its place in a batch."""

    def load() -> Frame:
        assert shot.rig is not None
        pose = None if shot.ego2global is None else checked_pose(shot.ego2global)
        record = given_record(shot.images, shot.rig, shot.points)
        if number is not None:
            record = replace(record, token=f"{TOKEN}{number}")
        if pose is not None and record.lidar2ego is not None:
            pose = pose @ record.lidar2ego
        elif pose is not None and _is_rig(shot.rig):  # matrices alone know of no vehicle: their pose is the lidar's
            raise DataError(
                "ego2global is given, but the rig does not say where its lidar is on the vehicle: lidar2ego"
            )
        time = None if shot.timestamp is None else checked_time(shot.timestamp)
        return replace(read_frame(record), lidar2global=pose, timestamp=time)

    def load_of_batch() -> Frame:
        try:
            return load()
        except DataError as err:
            raise DataError(f"frame {number} of the batch: {err}") from err

    return load if number is None else load_of_batch


def _is_batch(images: Any) -> bool:
    """Return whether the entries are frames, not the images of one frame."""
    if not hasattr(images, "__len__") or getattr(images, "ndim", 1) == 0:
        raise DataError(
            f"images are a {type(images).__name__}; expected images by the cameras' names, a list or a folder"
        )
    if isinstance(images, Mapping) or not len(images):
        return False
    if hasattr(images, "ndim"):
        return images.ndim == 5  # frames, cameras, and the three of an image
    return isinstance(images[0], (Mapping, list, tuple)) or getattr(images[0], "ndim", 0) == 4


def _named_by(rig: Rig, root: str, by_drive: bool) -> Iterator[Moment]:
    if isinstance(rig, (str, os.PathLike)):
        if "://" not in str(rig) and not Path(rig).exists():
            raise DataError(f"{rig}: no such file or folder; expected a rig file (docs/rig.md), or its folder")
        rig = str(rig)
    elif not (isinstance(rig, Mapping) and ("format" in rig or "cameras" in rig)):
        raise DataError("images are missing: lidar2img matrices name none; give the images, or a rig file that does")
    records = load_infos(rig)
    order = [i for drive in drives(records) for i in drive] if by_drive else range(len(records))
    for number in order:
        yield Moment(_stored(records[number], root), records[number].scene, number)


def _stored(record: Record, root: str) -> Callable[[], Frame]:
    return lambda: read_frame(record, root, require_scan=False)


def _in_folder(folder: Path, rig: Rig) -> List[Dict[str, Path]]:
    """The frames of a folder: one, with a file named after each camera or alone in a folder named so, else one for each
    name of a file that the cameras' own folders share, in order. Raises DataError."""
    if not folder.is_dir():
        raise DataError(
            f"images are the path {folder}, which is no folder; expected a folder, or images by the cameras' names"
        )
    names = _camera_names(rig)
    if all((folder / name).is_dir() for name in names):
        files = {name: _images_in(folder / name) for name in names}
        if all(len(by_stem) == 1 for by_stem in files.values()):
            return [{name: next(iter(by_stem.values())) for name, by_stem in files.items()}]
        shared = set.intersection(*(set(by_stem) for by_stem in files.values()))
        for by_stem in files.values():
            lone = sorted(set(by_stem) - shared)
            if lone:
                raise DataError(
                    f"{by_stem[lone[0]]}: not every camera has an image {lone[0]}; expected the same names of files in "
                    f"the folders {', '.join(names)}, so that images of one moment meet"
                )
        if not shared:
            raise DataError(f"{folder}: its folders hold no image ({', '.join(IMAGE_KINDS)})")
        return [{name: by_stem[stem] for name, by_stem in files.items()} for stem in sorted(shared)]
    files_here = _images_in(folder)
    lost = [name for name in names if name not in files_here]
    if lost:
        raise DataError(
            f"{folder}: holds no image of camera {lost[0]}; expected {names[0]}.jpg and so on, or a folder named after "
            "each camera with its images"
        )
    return [{name: files_here[name] for name in names}]


def _images_in(folder: Path) -> Dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_KINDS}


def _camera_names(rig: Rig) -> Sequence[str]:
    if isinstance(rig, Mapping) and not ("format" in rig or "cameras" in rig):
        return [str(name) for name in rig]
    if isinstance(rig, (str, os.PathLike, Mapping)):
        return rig_records(rig)[0].camera_names
    raise DataError("images are a folder, but lidar2img has no names; give it by the cameras' names")
