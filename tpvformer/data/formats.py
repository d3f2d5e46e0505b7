"""Choose the reader of a data set's records: every format that this package reads has one entry here.

A record names the files of a key frame, whatever the format; ``data/frames.py`` reads the frame.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple, Union

from tpvformer.config import DataConfig
from tpvformer.config.formats import add_format
from tpvformer.data.nuscenes.boxes import with_table_boxes
from tpvformer.data.nuscenes.infos.read import read_pickle_infos, read_tensor_infos
from tpvformer.data.nuscenes.infos.tensor_file import SUFFIX
from tpvformer.data.nuscenes.lidarseg import label_table
from tpvformer.data.own import OwnDataSet, own_records
from tpvformer.data.record import Record
from tpvformer.data.rig.from_arrays import rig_records
from tpvformer.data.rig.read import read_rig
from tpvformer.data.semantickitti import load_sequences

Source = Union[str, Path, Mapping[str, Any]]


class Format(NamedTuple):
    """One format: which sources have it, and how their records are read. Readers raise DataError."""

    name: str
    matches: Callable[[Any], bool]
    read: Callable[[Any, str, bool], List[Record]]  # of the source and data.root; True: with boxes, if it has any
    labels: str  # what names the labels of points: the "records", or nuScenes' "tables"; "voxels": labels of voxels
    camera_names: bool = True  # whether a camera's name chooses its embedding
    lidar_forward: str = "y"  # the axis of the lidar frame that points ahead


# a source has the first format that matches it
_BY_SOURCE: Tuple[Format, ...] = (
    Format(
        "rig content", lambda source: isinstance(source, Mapping), lambda source, *_: rig_records(source), "records"
    ),
    Format("rig file", lambda source: _is_rig(source), lambda source, *_: read_rig(source), "records"),
    Format(
        "tensor infos",
        lambda source: Path(source).suffix == SUFFIX,
        lambda source, _, boxes: read_tensor_infos(source, boxes),
        "tables",
    ),
    Format("pickle infos", lambda source: True, lambda source, _, boxes: read_pickle_infos(source, boxes), "tables"),
)
# data.format says that the source is a list of sequences
_SEQUENCES = Format(
    "semantickitti",
    lambda source: isinstance(source, str),
    lambda source, root, _: load_sequences(root, source),
    "voxels",
    camera_names=False,
    lidar_forward="x",
)
_OWN: Dict[str, Format] = {}  # data sets of one's own, by the name that data.format has


def register(name: str, data_set: Callable[[str, str], OwnDataSet], lidar_forward: str = "y") -> None:
    """Register a data set of one's own: ``data.format`` then accepts ``name``, in this process.

    ``data_set(source, root)``, a class or function, returns the frames of a split: an object with ``__len__`` and
    ``record(i)``. ``source`` is data.train_infos, data.val_infos or data.test_infos, ``root`` is data.root.
    ``lidar_forward``: the axis of its lidar frame that points ahead, "x" or "y". A name that is registered again is
    replaced. Raises ConfigError for a built-in name.
    """
    add_format(name)

    def read(source: Any, root: str, boxes: bool) -> List[Record]:
        records = own_records(data_set(str(source), str(root)), name, root)
        return records if boxes else [replace(record, boxes=None) for record in records]

    _OWN[name] = Format(name, lambda source: True, read, "records", False, lidar_forward)


def is_own(declared: str) -> bool:
    """Tell whether ``data.format`` names a data set that was registered."""
    return declared in _OWN


def _is_rig(source: Union[str, Path]) -> bool:
    """Return whether this names a rig file (.json), or a folder, which stands for the rig.json in it."""
    return Path(source).suffix.lower() == ".json" or Path(source).is_dir()


def format_of(source: Source, declared: str = "nuscenes") -> Format:
    """Return the format of a rig file, info file or rig's content; ``declared`` is data.format."""
    if declared == _SEQUENCES.name:
        return _SEQUENCES
    if declared in _OWN:
        return _OWN[declared]
    return next(known for known in _BY_SOURCE if known.matches(source))


def load_infos(source: Source, boxes: bool = False, declared: str = "nuscenes", root: str = "") -> List[Record]:
    """Return the records of an info file, a rig file or a rig's content; with the boxes of an info file if asked.

    ``declared`` and ``root`` are data.format and data.root, for a data set of one's own.
    Raises DataError where it is of another kind or a record is incomplete.
    """
    return format_of(source, declared).read(source, root, boxes)


def open_records(cfg: DataConfig, split: str, boxes: bool = False) -> List[Record]:
    """Return the records of a split. Raises ConfigError and DataError.

    ``boxes``: read annotated objects from the info file, or, where a record lacks these or their attributes, from
    nuScenes' tables; Record.boxes stays None where neither has them, in a rig file and in SemanticKITTI. Training does
    not use attributes, so for them alone the tables are not read for the split "train".
    """
    source = cfg.infos(split)
    chosen = format_of(source, cfg.format)
    records = chosen.read(source, cfg.root, boxes)
    if not boxes or chosen.labels != "tables":
        return records
    return with_table_boxes(records, cfg.root, cfg.version, attributes=split != "train")


def has_labels(cfg: DataConfig, split: str) -> bool:
    """Return whether the frames of a split have labels. Raises ConfigError and DataError."""
    source = cfg.infos(split)
    labels = format_of(source, cfg.format).labels
    if labels == "records":
        scans = [record for record in load_infos(source, False, cfg.format, cfg.root) if record.scan]
        return bool(scans) and all(record.labels for record in scans)
    return labels == "voxels" or label_table(cfg.root, cfg.version) is not None
