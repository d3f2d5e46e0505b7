"""Read the annotated objects of key frames from nuScenes' tables sample_annotation, instance, category and attribute.

The tables hold each object in the global frame, with its width, length and height. Here it is in the frame of the
key frame's lidar. The velocity is the centred difference of the neighbouring annotations of the same object, as
nuScenes' detection task defines it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES, CATEGORY_LABELS, NO_ATTRIBUTE, Boxes
from tpvformer.data.nuscenes.tables import Progress, Row, pose_numbers, read_table, stream_table, table_path
from tpvformer.errors import DataError
from tpvformer.geometry import rotations
from tpvformer.labels import RAW_NAMES
from tpvformer.untrusted.names import short

BOX_TABLES = ("sample_annotation", "instance", "category", "attribute", "sample")
LONGEST_GAP = 1.5  # seconds between an annotation and its neighbour: over a longer time the velocity is unknown
LARGEST_SIDE = 1000.0  # metres of a box
OTHER = -1  # the label of a category that is not detected
_FIELDS = (
    "token", "sample_token", "instance_token", "translation", "size", "rotation", "prev", "next", "num_lidar_pts",
    "num_radar_pts", "attribute_tokens",
)  # fmt: skip


@dataclass
class Annotations:
    """M annotated objects of N key frames, each in the lidar frame of its key frame, whatever its category."""

    starts: np.ndarray  # (N + 1,) int64: the objects of key frame i are starts[i] to starts[i + 1]
    centres: np.ndarray  # (M, 3) float64, metres
    sizes: np.ndarray  # (M, 3) float64: length, width, height, metres
    yaws: np.ndarray  # (M,) float64, radians from the x axis counter-clockwise
    velocities: np.ndarray  # (M, 2) float64, m/s; NaN where unknown
    categories: np.ndarray  # (M,) int64, index of RAW_NAMES
    lidar_points: np.ndarray  # (M,) int64
    radar_points: np.ndarray  # (M,) int64
    attributes: np.ndarray  # (M,) int64, index of ATTRIBUTES or NO_ATTRIBUTE

    @property
    def labels(self) -> np.ndarray:
        """Return (M,) int64: the detection label of each object, or OTHER."""
        return np.array([CATEGORY_LABELS.get(name, OTHER) for name in RAW_NAMES], np.int64)[self.categories]

    def take(self, frames: Sequence[int]) -> Annotations:
        """Return the objects of some of the key frames, in that order."""
        counts = np.diff(self.starts)[list(frames)]
        rows = [np.arange(self.starts[i], self.starts[i + 1]) for i in frames]
        index = np.concatenate([np.zeros(0, np.int64), *rows])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        held = {name: value[index] for name, value in vars(self).items() if name != "starts"}
        return Annotations(starts, **held)

    def boxes(self, frame: int) -> Boxes:
        """Return the boxes of one key frame: the objects that are detected, and bicycle racks."""
        rows = slice(int(self.starts[frame]), int(self.starts[frame + 1]))
        labels = np.array([CATEGORY_LABELS.get(RAW_NAMES[i], OTHER) for i in self.categories[rows]], np.int64)
        found = Boxes(
            self.centres[rows].astype(np.float32),
            self.sizes[rows].astype(np.float32),
            self.yaws[rows].astype(np.float32),
            self.velocities[rows].astype(np.float32),
            labels,
            points=self.lidar_points[rows] + self.radar_points[rows],
            attributes=self.attributes[rows],
        )
        return found.take(labels != OTHER)


@dataclass
class _Rows:
    """The rows of sample_annotation in the chosen scenes, as columns."""

    samples: array = field(default_factory=lambda: array("q"))  # index of the sample in its table
    poses: array = field(default_factory=lambda: array("d"))  # seven numbers a row
    sizes: array = field(default_factory=lambda: array("d"))  # width, length, height
    links: array = field(default_factory=lambda: array("q"))  # numbers of own token, prev and next; -1: none
    counts: array = field(default_factory=lambda: array("q"))  # lidar points, radar points
    kinds: array = field(default_factory=lambda: array("q"))  # category, attribute
    numbers: Dict[str, int] = field(default_factory=dict)  # of each token, its own or a neighbour's

    def number(self, token: str) -> int:
        return self.numbers.setdefault(token, len(self.numbers)) if token else -1


def box_tables_there(folder: Path) -> bool:
    """Return whether the folder has all tables that boxes are read from."""
    return all((folder / f"{name}.json").is_file() for name in BOX_TABLES)


def read_annotations(
    folder: Path,
    lidar2global: Mapping[str, np.ndarray],
    progress: Optional[Progress] = None,
    fault: Optional[Callable[[str], None]] = None,
) -> Optional[Tuple[List[str], Annotations]]:
    """Return the samples among ``lidar2global`` that the tables in ``folder`` have, and their objects.

    ``lidar2global`` gives the lidar's pose (4, 4) at each key frame, by the sample's token. None: the tables have no
    annotation at all, as those of the test set. ``fault`` takes a sentence about each unusable row, which is then left
    out; without it the first raises DataError, as tables do that are missing or not those of one download.
    """
    samples = read_table(folder, "sample", "scene_token", "timestamp")
    scenes = {row["scene_token"] for row in samples if row["token"] in lidar2global}
    index = {row["token"]: i for i, row in enumerate(samples) if row["scene_token"] in scenes}
    rows, total = _stream(folder, index, progress, fault)
    if not total:
        return None
    tokens = [row["token"] for row in samples if row["token"] in lidar2global]
    place = np.full(len(samples), -1, np.int64)
    place[[index[token] for token in tokens]] = np.arange(len(tokens))
    own = np.frombuffer(rows.samples, np.int64) if len(rows.samples) else np.zeros(0, np.int64)
    try:
        stamps = np.array([row["timestamp"] for row in samples], np.float64)[own]
    except OverflowError:
        raise DataError(f"{table_path(folder, 'sample')}: holds a timestamp beyond 64 bits") from None
    velocity = _velocities(rows, stamps, folder, fault)
    frames = place[own]
    order = np.argsort(frames, kind="stable")
    order = order[frames[order] >= 0]
    frames = frames[order]
    starts = np.searchsorted(frames, np.arange(len(tokens) + 1)).astype(np.int64)
    poses = np.array(rows.poses).reshape(-1, 7)[order]
    placed = np.array([lidar2global[token] for token in tokens]).reshape(-1, 4, 4)[frames]
    counts, kinds = (np.array(column, np.int64).reshape(-1, 2)[order] for column in (rows.counts, rows.kinds))
    centres, yaws, velocities = to_lidar(placed, poses, velocity[order])
    sizes = np.array(rows.sizes).reshape(-1, 3)[order][:, [1, 0, 2]]
    made = Annotations(starts, centres, sizes, yaws, velocities, kinds[:, 0], counts[:, 0], counts[:, 1], kinds[:, 1])
    return tokens, made


def to_lidar(
    lidar2global: np.ndarray, poses: np.ndarray, velocities: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centres (M, 3), yaws (M,) and velocities (M, 2) in the lidar frame, float64.

    ``lidar2global`` is (M, 4, 4) or (4, 4); ``poses`` (M, 7) and ``velocities`` (M, 3) are in the global frame.
    """
    back = np.swapaxes(lidar2global[..., :3, :3], -1, -2)
    heading = rotations(poses[:, 3:])[..., :, :1]

    def turned(vectors: np.ndarray) -> np.ndarray:
        return (back @ vectors[..., None])[..., 0]

    turned_heading = turned(heading[..., 0])
    yaws = np.arctan2(turned_heading[:, 1], turned_heading[:, 0])
    return turned(poses[:, :3] - lidar2global[..., :3, 3]), yaws, turned(velocities)[:, :2]


def _stream(
    folder: Path, index: Dict[str, int], progress: Optional[Progress], fault: Optional[Callable[[str], None]]
) -> Tuple[_Rows, int]:
    """Return the rows of the samples in ``index``, and how many rows the table has."""
    path, rows, total = table_path(folder, "sample_annotation"), _Rows(), 0
    category_of, attribute_of = _categories(folder), _attributes(folder)
    for chunk in stream_table(folder, "sample_annotation", *_FIELDS, progress=progress):
        total += len(chunk)
        for row in chunk:
            sample = index.get(row["sample_token"])
            if sample is None:
                continue
            try:
                _add(rows, row, sample, path, category_of, attribute_of)
            except DataError as err:
                if fault is None:
                    raise
                fault(str(err))
    return rows, total


def _add(
    rows: _Rows, row: Row, sample: int, path: Path, category_of: Dict[str, int], attribute_of: Dict[str, int]
) -> None:
    """Add a row. Raises DataError where a value is not usable."""
    where = f"{path}: row {row['token']} (sample {row['sample_token']})"
    pose, size = pose_numbers(row, path), row["size"]
    numeric = len(size) == 3 and all(type(side) in (int, float) for side in size)
    if not numeric or not all(0 < side < LARGEST_SIDE for side in size):
        raise DataError(
            f"{where} has the size {short(size)}; expected width, length and height above 0 in metres; "
            "unpack the nuScenes metadata archive again"
        )
    counts = (row["num_lidar_pts"], row["num_radar_pts"])
    if not all(0 <= count < 1 << 32 for count in counts):
        raise DataError(f"{where} has {counts[0]} lidar and {counts[1]} radar points; expected numbers from 0 on")
    category = category_of.get(row["instance_token"])
    if category is None:
        raise DataError(
            f"{where} belongs to the instance {short(row['instance_token'])}, whose category instance.json and "
            "category.json do not give; expected tables of one download"
        )
    attribute = NO_ATTRIBUTE
    for token in row["attribute_tokens"]:
        found = attribute_of.get(token) if isinstance(token, str) else None
        if found is None:
            raise DataError(
                f"{where} has the attribute {short(token)}, which attribute.json does not have; expected tables of "
                "one download"
            )
        attribute = found
    number = rows.number(row["token"])
    rows.samples.append(sample)
    rows.poses.extend(pose)
    rows.sizes.extend(size)
    rows.links.extend((number, rows.number(row["prev"]), rows.number(row["next"])))
    rows.counts.extend(counts)
    rows.kinds.extend((category, attribute))


def _categories(folder: Path) -> Dict[str, int]:
    """Return the category, an index of RAW_NAMES, of each instance. Raises DataError for a category of another set."""
    number = {}
    for row in read_table(folder, "category", "name"):
        if row["name"] not in RAW_NAMES:
            raise DataError(
                f"{table_path(folder, 'category')}: the category {short(row['name'])} is none of nuScenes' "
                f"{len(RAW_NAMES)}, such as {RAW_NAMES[17]}; boxes are read from nuScenes' categories alone"
            )
        number[row["token"]] = RAW_NAMES.index(row["name"])
    rows = read_table(folder, "instance", "category_token")
    return {row["token"]: number[row["category_token"]] for row in rows if row["category_token"] in number}


def _attributes(folder: Path) -> Dict[str, int]:
    """Return the attribute, an index of ATTRIBUTES, of each token; NO_ATTRIBUTE for names that nuScenes lacks."""
    number = {name: i for i, name in enumerate(ATTRIBUTES)}
    return {row["token"]: number.get(row["name"], NO_ATTRIBUTE) for row in read_table(folder, "attribute", "name")}


def _velocities(rows: _Rows, stamps: np.ndarray, folder: Path, fault: Optional[Callable[[str], None]]) -> np.ndarray:
    """Return (M, 3) float64, m/s in the global frame: centred differences, one-sided at an end; NaN where unknown.

    ``stamps`` (M,) are microseconds, whose differences are exact.
    """
    count = len(stamps)
    own, before, after = np.array(rows.links, np.int64).reshape(-1, 3).T
    row_of = np.full(len(rows.numbers) + 1, -1, np.int64)  # the last is that of no neighbour
    row_of[own] = np.arange(count)
    names: List[str] = list(rows.numbers) if len(np.unique(own)) < count else []
    if names:
        twice = names[int(np.flatnonzero(np.bincount(own) > 1)[0])]
        raise DataError(
            f"{table_path(folder, 'sample_annotation')}: two rows have the token {twice}; unpack the metadata again"
        )
    linked = np.concatenate([before, after])
    lost = np.flatnonzero((linked >= 0) & (row_of[linked] < 0))
    if len(lost) and fault is None:
        names = list(rows.numbers)
        raise DataError(
            f"{table_path(folder, 'sample_annotation')}: row {names[own[lost[0] % count]]} names the neighbour "
            f"{names[linked[lost[0]]]}, which is no row of its scene; expected tables of one download"
        )
    here = np.arange(count)
    first, last = np.where(row_of[before] >= 0, row_of[before], here), np.where(row_of[after] >= 0, row_of[after], here)
    places = np.array(rows.poses).reshape(-1, 7)[:, :3]
    times = (stamps[last] - stamps[first]) / 1e6
    allowed = LONGEST_GAP * ((first != here).astype(int) + (last != here))
    known = (times > 0) & (times <= allowed)
    safe = np.where(known, times, 1.0)[:, None]
    return np.where(known[:, None], (places[last] - places[first]) / safe, np.nan)
