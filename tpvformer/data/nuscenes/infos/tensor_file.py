"""Read and write our own info file: named arrays in safetensors' layout, memory-mapped when read. It contains no code.

8 bytes with the header's length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then the arrays.
A column of strings is two arrays: all UTF-8 bytes, and the end of each string among them. lidar2img is stored, so that
reading a split computes nothing. Sweeps are left out, because nothing here reads them; older files contain them.

``safetensors.numpy`` reads the same layout, but copies every tensor into memory. The parser below maps the file
instead, so that only the pages that are read cost memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES, BICYCLE_RACK, NO_ATTRIBUTE, Boxes
from tpvformer.data.nuscenes.annotations import OTHER, Annotations
from tpvformer.data.nuscenes.infos.columns import Infos, Shots
from tpvformer.errors import DataError
from tpvformer.files import atomic_file, to_path

LAYOUT = "tpvformer infos 1"
SUFFIX = ".safetensors"
_DTYPES = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 1 << 20  # bytes; ours takes about 3000
_SHOTS = ("timestamps", "sensor2ego", "ego2global", "rotation", "translation")


def write_tensors(infos: Infos, path: Path) -> None:
    """Write an info file atomically. Raises ConfigError where it cannot be written."""
    arrays = {
        "lidar2img": infos.lidar2img(),
        "intrinsics": infos.intrinsics,
        "timestamps": infos.timestamps,
        **_text("tokens", infos.tokens),
        **_text("scenes", infos.scenes),
        **_shots("scans", infos.scans),
        **_shots("images", infos.images),
        **({} if infos.boxes is None else _boxes(infos.boxes)),
    }
    meta = {"layout": LAYOUT, "version": infos.version, "cameras": json.dumps(infos.cameras)}
    header: Dict[str, Any] = {"__metadata__": meta}
    at = 0
    for name in sorted(arrays, key=lambda n: (-arrays[n].itemsize, n)):  # the largest items first, so all are aligned
        array = arrays[name] = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
        stop = at + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            if name != "__metadata__":
                file.write(arrays[name].data)


def _text(name: str, values: List[str]) -> Dict[str, np.ndarray]:
    parts = [value.encode() for value in values]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {f"{name}.bytes": np.frombuffer(b"".join(parts), np.uint8), f"{name}.ends": ends}


def _shots(name: str, shots: Shots) -> Dict[str, np.ndarray]:
    arrays = {f"{name}.{column}": getattr(shots, column) for column in _SHOTS}
    return {**arrays, **_text(f"{name}.tokens", shots.tokens), **_text(f"{name}.files", shots.files)}


def _boxes(found: Annotations) -> Dict[str, np.ndarray]:
    """Return the columns of the objects that are detected; the others are left out."""
    labels = found.labels
    kept = labels != OTHER
    before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    numbers = (found.centres, found.sizes, found.yaws[:, None], found.velocities)
    whole = (labels, found.lidar_points, found.radar_points, found.attributes)
    return {
        "boxes.starts": before[found.starts],
        "boxes.numbers": np.concatenate(numbers, axis=1)[kept].astype(np.float32),
        "boxes.whole": np.stack(whole, axis=1)[kept],
    }


class TensorFile:
    """An info file of ours, memory-mapped. Raises DataError where the file is of another kind or damaged."""

    def __init__(self, path: Union[str, Path]) -> None:
        self._path = to_path(path)
        try:
            if isinstance(self._path, Path):
                self._data = np.asarray(np.memmap(self._path, np.uint8, "r"))
            else:  # elsewhere there is nothing to map
                self._data = np.frombuffer(self._path.read_bytes(), np.uint8)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; data.train_infos and data.val_infos name the info files, which tpvformer data "
                "infos makes from nuScenes' tables"
            ) from None
        except (OSError, ValueError) as err:  # ValueError: an empty file
            raise DataError(f"{path}: cannot be read ({err}); expected an info file") from err
        length = int.from_bytes(self._data[:8].tobytes(), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, len(self._data) - 8):
            raise self._damaged("its header's length is impossible")
        try:
            self._header = json.loads(self._data[8 : 8 + length].tobytes())
            meta = self._header["__metadata__"]
            layout, self.version, cameras = meta["layout"], meta["version"], json.loads(meta["cameras"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._damaged("its header is not the one of an info file") from None
        if layout != LAYOUT:
            raise DataError(
                f"{path}: has the layout {layout!r}; expected {LAYOUT!r}, as tpvformer data infos writes it"
            )
        if not isinstance(cameras, list) or not all(isinstance(name, str) for name in cameras) or not cameras:
            raise self._damaged("it names no cameras")
        if len(set(cameras)) < len(cameras):
            raise self._damaged("it names a camera twice")
        self.cameras: Tuple[str, ...] = tuple(cameras)
        self._start = 8 + length
        self.count = len(self.array("timestamps", None))

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self._path}: {what}; make the file again with tpvformer data infos, or copy it again")

    def array(self, name: str, *shape: Any) -> np.ndarray:
        """Return an array as a view of the file; ``shape`` is the expected one, None: any length. Raises DataError."""
        dtype = _DTYPES["U8" if name.endswith(".bytes") else _OTHER_NUMBERS.get(name, "F64")]
        entry = self._header.get(name)
        try:
            found = tuple(entry["shape"])
            first, last = entry["data_offsets"]
            fits = all(type(n) is int and n >= 0 for n in (*found, first, last)) and len(found) == len(shape)
            fits = fits and all(n == e or e is None for n, e in zip(found, shape)) and entry["dtype"] == _NAMES[dtype]
            size = dtype.itemsize * int(np.prod(found, dtype=object)) if fits else 0
        except (TypeError, KeyError, ValueError):
            raise self._damaged(f"its array {name!r} is absent or described in another way") from None
        if not fits or last - first != size:
            raise self._damaged(f"its array {name!r} is {entry}, expected {_NAMES[dtype]} {list(shape)}")
        data = self._data[self._start + first : self._start + last]
        if len(data) != size or (self._start + first) % dtype.itemsize:
            raise self._damaged(f"it ends before its array {name!r} does")
        return data.view(dtype).reshape(found)

    def text(self, name: str, count: int) -> List[str]:
        """Return a column of strings. Raises DataError."""
        raw = self.array(f"{name}.bytes", None).tobytes()
        ends = self.array(f"{name}.ends", count)
        if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if count else 0) != len(raw):
            raise self._damaged(f"the texts {name!r} do not fill their bytes")
        stops = ends.tolist()
        try:
            return [raw[a:b].decode() for a, b in zip([0, *stops], stops)]
        except UnicodeDecodeError:
            raise self._damaged(f"the texts {name!r} are not UTF-8") from None

    def boxes(self) -> Optional[List[Boxes]]:
        """Return the boxes of each key frame; None where the file has none. Raises DataError."""
        if "boxes.starts" not in self._header:
            return None
        starts = self.array("boxes.starts", self.count + 1)
        count = int(starts[-1])
        if starts[0] != 0 or (np.diff(starts) < 0).any() or count >= 1 << 40:
            raise self._damaged("its boxes are not those of its key frames")
        numbers, whole = self.array("boxes.numbers", count, 9), self.array("boxes.whole", count, 4)
        labels, attributes = whole[:, 0], whole[:, 3]
        bad = (labels < 0) | (labels > BICYCLE_RACK) | (attributes < NO_ATTRIBUTE) | (attributes >= len(ATTRIBUTES))
        if (bad | ((whole[:, 1:3] < 0) | (whole[:, 1:3] >= 1 << 32)).any(1)).any():
            raise self._damaged("a box has a class, a number of points or an attribute that does not exist")
        columns = [numbers[:, :3], numbers[:, 3:6], numbers[:, 6], numbers[:, 7:], labels]
        columns = [np.array(column) for column in columns]  # copies: views would read the file again and again
        points, attributes = whole[:, 1] + whole[:, 2], np.array(attributes)
        spans = [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist())]
        return [Boxes(*(c[span] for c in columns), None, points[span], attributes[span]) for span in spans]

    def lidar2img(self) -> np.ndarray:
        """Return the projections (N, C, 4, 4), float64, as ``Infos.lidar2img`` does."""
        return self.array("lidar2img", self.count, len(self.cameras), 4, 4)


_TEXTS = (
    "tokens",
    "scenes",
    *(f"{shots}.{column}" for shots in ("scans", "images") for column in ("tokens", "files")),
)
_WHOLE_NUMBERS = (
    "timestamps",
    *(f"{shots}.timestamps" for shots in ("scans", "images")),
    *(f"{name}.ends" for name in _TEXTS),
    "boxes.starts",
    "boxes.whole",
)
_OTHER_NUMBERS = {**dict.fromkeys(_WHOLE_NUMBERS, "I64"), "boxes.numbers": "F32"}
