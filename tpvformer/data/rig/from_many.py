"""List the frames to predict: one, a batch, those of a folder, or those of a rig file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

from tpvformer.data.formats import load_infos
from tpvformer.data.frames import read_frame
from tpvformer.data.record import Record
from tpvformer.data.rig.from_arrays import TOKEN, Images, Rig, given_record, rig_records
from tpvformer.data.rig.read import IMAGE_KINDS
from tpvformer.data.types import Frame
from tpvformer.errors import DataError


class Moment(NamedTuple):
    """Hold one frame that is read lazily, and its scene and index if it comes from a rig file."""

    load: Callable[[], Frame]
    scene: str = ""
    number: int = 0


class Moments(NamedTuple):
    """Hold frames; ``several`` is True for a batch or a rig file, even with one frame."""

    each: Sequence[Moment]
    several: bool


def moments(
    images: Union[Images, Sequence[Images], str, "os.PathLike[str]", None],
    rig: Optional[Rig],
    points: Any,
    root: str,
) -> Moments:
    """Return the frames for ``TPVFormer.predict``, whose docstring lists the accepted inputs. ``root`` is data.root,
    for the paths of info files. Raises DataError."""
    if rig is None and isinstance(images, (str, os.PathLike)):
        images, rig = None, images  # a rig by itself names its images
    if rig is None:
        raise DataError("rig is missing: give a rig file (docs/rig.md), its content, or lidar2img matrices")
    if images is None:
        if points is not None:
            raise DataError("points are given without images; the frames of a rig bring their own points (lidar)")
        return Moments(list(_named_by(rig, root)), True)
    if isinstance(images, (str, os.PathLike)):
        found = _in_folder(Path(images), rig)
        images = found[0] if len(found) == 1 else found
    if not _is_batch(images):
        return Moments([Moment(lambda: read_frame(given_record(images, rig, points)))], False)
    scans: Sequence[Any] = [None] * len(images) if points is None else points
    if len(scans) != len(images):
        raise DataError(f"points are of {len(scans)} frames, images of {len(images)}; expected one scan for each")
    return Moments([Moment(_given(each, rig, scan, i)) for i, (each, scan) in enumerate(zip(images, scans))], True)


def _given(images: Images, rig: Rig, points: Any, number: int) -> Callable[[], Frame]:
    def load() -> Frame:
        try:
            record = given_record(images, rig, points)
        except DataError as err:
            raise DataError(f"frame {number} of the batch: {err}") from err
        return read_frame(replace(record, token=f"{TOKEN}{number}"))

    return load


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


def _named_by(rig: Rig, root: str) -> Iterator[Moment]:
    if isinstance(rig, (str, os.PathLike)):
        if "://" not in str(rig) and not Path(rig).exists():
            raise DataError(f"{rig}: no such file or folder; expected a rig file (docs/rig.md), or its folder")
        rig = str(rig)
    elif not (isinstance(rig, Mapping) and ("format" in rig or "cameras" in rig)):
        raise DataError("images are missing: lidar2img matrices name none; give the images, or a rig file that does")
    for number, record in enumerate(load_infos(rig)):
        yield Moment(_stored(record, root), record.scene, number)


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
