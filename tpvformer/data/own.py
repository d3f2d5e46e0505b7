"""Read a data set of one's own: an object with a length and ``record(i)``, which returns the record of a frame."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Union

import numpy as np

from tpvformer.data.record import Record
from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.geometry import is_degenerate
from tpvformer.untrusted.names import has_unseen, is_file_name, short


class OwnDataSet(Protocol):
    """The frames of one split, in their order: what ``register`` expects a class to make of a source and a root."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...


def own_records(data_set: OwnDataSet, name: str, root: Union[str, Path]) -> List[Record]:
    """Return the records of a data set registered as ``name``, with absolute paths. Raises DataError.

    A path that is not absolute lies below ``root``.
    """
    where = f"data.format {name}"
    count = len(data_set)
    if not count:
        raise DataError(f"{where}: has no frames; check the setting data.*_infos that it was given")
    records = [_checked(data_set.record(i), i, where) for i in range(count)]
    first: Dict[str, int] = {}
    for i, record in enumerate(records):
        if first.setdefault(record.token, i) != i:
            raise DataError(
                f"{where}: records {first[record.token]} and {i} have the token {record.token}; expected one for "
                "each frame"
            )
    return [
        dataclasses.replace(
            record,
            images=tuple(_placed(image, root) for image in record.images),
            scan=_placed(record.scan, root),
            labels=_placed(record.labels, root),
            rig=f"the data set {name}",
        )
        for record in records
    ]


def _placed(stored: str, root: Union[str, Path]) -> str:
    return stored if not stored or os.path.isabs(stored) or "://" in stored else str(to_path(root, stored))


def _checked(record: Any, index: int, where: str) -> Record:
    """Return a record whose fields have the types and shapes that the readers rely on. Raises DataError."""
    here = f"{where}: record {index}"
    if not isinstance(record, Record):
        raise DataError(f"{here} is a {type(record).__name__}; expected a tpvformer.data.record.Record")
    if not isinstance(record.token, str) or not is_file_name(record.token):
        raise DataError(f"{here} has the token {short(record.token)}; expected what can be the name of a file")
    here = f"{here} ({record.token})"
    cameras = len(record.camera_names)
    if not cameras or cameras != len(record.images) or len(set(record.camera_names)) != cameras:
        raise DataError(
            f"{here} has the cameras {short(tuple(record.camera_names))} and {len(record.images)} images; expected an "
            "image for each camera, and each name once"
        )
    texts = (record.scene, record.scan, record.labels, *record.camera_names, *record.images)
    for text in texts:
        if not isinstance(text, str) or has_unseen(text):
            raise DataError(f"{here} holds the name {short(text)}; expected a text that can be printed")
    if not all(record.images):
        raise DataError(f"{here} has an image without a path; leave its camera out")
    if record.labels and not record.scan:
        raise DataError(f"{here} has labels of points, but no scan; name the file of the points")
    if record.held is not None:
        raise DataError(f"{here} holds images in memory; name their files")
    lidar2img = _matrices(record.lidar2img, (cameras, 4, 4), f"{here}: lidar2img")
    if lidar2img is None or is_degenerate(lidar2img).any():
        raise DataError(f"{here}: lidar2img has no inverse; expected lidar metres to (u * depth, v * depth, depth, 1)")
    if record.sizes and len(record.sizes) != cameras:
        raise DataError(f"{here} has {len(record.sizes)} sizes of images; expected {cameras}, (width, height) each")
    if record.slots and (len(record.slots) != cameras or min(record.slots) < 0):
        raise DataError(f"{here} has the slots {short(record.slots)}; expected an embedding, 0 or more, a camera")
    if record.timestamp is not None and not np.isfinite(record.timestamp):
        raise DataError(f"{here} has the timestamp {record.timestamp}; expected seconds, or None")
    return dataclasses.replace(
        record,
        camera_names=tuple(record.camera_names),
        lidar2img=lidar2img,
        lidar2ego=_matrices(record.lidar2ego, (4, 4), f"{here}: lidar2ego"),
        ego2global=_matrices(record.ego2global, (4, 4), f"{here}: ego2global"),
    )


def _matrices(value: Any, shape: Any, where: str) -> Optional[np.ndarray]:
    """Return an array float64 of a shape; None for None. Raises DataError."""
    if value is None:
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"{where} is {short(np.shape(value))}; expected {shape} finite numbers")
    return array
