"""Read the archives of ``tpvformer predict``, and published labels.

The files may come from anywhere, so invalid content raises DataError with one sentence.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from tpvformer.data.types import DataError  # and PyTorch, before OpenCV: see "static TLS" in docs/ascend.md

# isort: split
import cv2
import numpy as np

from tpvformer.data.images.header import declared_size, too_large
from tpvformer.data.images.jpeg_scans import too_many_scans
from tpvformer.predict.published_labels import KNOWN, kind_of, label_files, read_label_file
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.numpy_files import DAMAGED, damage
from tpvformer.viz.frame_prediction import CameraView, FramePrediction

MAX_VOXELS = 1 << 24
MAX_POINTS = 1 << 22
MAX_CAMERAS = 32
MAX_BYTES = 1 << 29  # total size of all arrays: a small file may unpack to large ones
_EXPECTED = f"expected an archive that tpvformer predict wrote, {KNOWN}"
_KINDS = {"text": "U", "whole numbers": "iu", "numbers": "iuf"}


def read_results(places: Sequence[Path]) -> List[FramePrediction]:
    """Return the frames of files, in the given order, and of folders, by scene and number. Raises DataError."""
    results: List[FramePrediction] = []
    for place in places:
        if place.is_dir():
            archives = [path for path in sorted(place.glob("*.npz")) if path.name != "labels.npz"]
            found = [read_result(path) for path in archives or label_files(place)]
            if not found:
                lost = f"holds no .npz files{_below(place)}"
                raise DataError(f"{place}: {lost}; expected what tpvformer predict wrote, {KNOWN}")
            results += sorted(found, key=lambda result: (result.scene, result.number))
        else:
            results.append(read_result(place))
    first = results[0]
    for result in results:
        if (result.class_names, result.frame) != (first.class_names, first.frame):
            raise DataError(
                f"{result.token}: has other classes or another frame than {first.token}; show results of one model"
            )
    return results


def _below(place: Path) -> str:
    """Return a hint that names a sub-folder with results or labels; empty if there is none."""
    patterns = ("*/*.npz", "*/*/labels.npz", "*/*.npy", "*/*.label", "*/*/*.label")
    found = next((path for pattern in patterns for path in place.glob(pattern)), None)
    if found is None:
        return ""
    return f", but {found.parent.parent if found.name == 'labels.npz' else found.parent} does: name that"


def read_result(path: Path) -> FramePrediction:
    """Return the frame of one file. Raises DataError."""
    loaded = {} if path.suffix in (".npy", ".label") else _load(path)
    kind = kind_of(path, loaded)
    return _of_archive(_Arrays(path, loaded)) if kind is None else read_label_file(path, kind)


def result_of(arrays: Mapping[str, np.ndarray]) -> FramePrediction:
    """Return a frame from the arrays of an archive. Raises DataError."""
    return _of_archive(_Arrays(Path(str(arrays.get("token", ""))), arrays))


def _of_archive(arrays: _Arrays) -> FramePrediction:
    path = arrays.path
    voxels = arrays.take("voxels", "whole numbers", (None, None, None), required=True).astype(np.uint8)
    if not 0 < voxels.size <= MAX_VOXELS:
        raise DataError(f"{path}: voxels have shape {voxels.shape}; expected 1 to {MAX_VOXELS} of them")
    names = arrays.take("class_names", "text", (None,), required=True)
    if len(names) > 256:
        raise DataError(f"{path}: has {len(names)} class_names; expected 256 at most")
    pc_range = arrays.take("pc_range", "numbers", (6,), required=True).astype(np.float64)
    if not (pc_range[:3] < pc_range[3:]).all():
        raise DataError(f"{path}: pc_range is {pc_range.tolist()}; expected low x, y, z, then higher x, y, z")
    frame = arrays.text("frame", "lidar")
    if frame not in ("lidar", "ego"):
        raise DataError(f"{path}: frame is {frame[:40]!r}; expected 'lidar' or 'ego'")
    points = arrays.take("points", "numbers", (None, 3), np.empty((0, 3))).astype(np.float32)
    if len(points) > MAX_POINTS:
        raise DataError(f"{path}: holds {len(points)} points; expected {MAX_POINTS} at most")
    labels = arrays.take("point_labels", "whole numbers", (len(points),), np.empty(0), required=bool(len(points)))
    for kind, values in (("voxels", voxels), ("point_labels", labels)):
        if values.size and values.max() >= len(names):
            raise DataError(f"{path}: {kind} hold class {int(values.max())}, but there are {len(names)} class_names")
    shape = voxels.shape
    confidence = arrays.maybe("confidence", "numbers", shape)
    true_voxels = arrays.maybe("true_voxels", "whole numbers", shape)
    true_labels = arrays.maybe("true_point_labels", "whole numbers", (len(points),))
    lidar2grid = arrays.take("lidar2grid", "numbers", (4, 4), np.eye(4)).astype(np.float64)
    if abs(np.linalg.det(lidar2grid)) < 1e-6:
        raise DataError(f"{path}: lidar2grid has no inverse; expected a rigid transform")
    token = arrays.text("token", path.stem)
    if not token or token.startswith(".") or set(token) & set("/\\\0"):
        raise DataError(f"{path}: its token cannot be the name of a file; expected letters, digits and the like")
    return FramePrediction(
        token=token,
        scene=arrays.text("scene", ""),
        number=int(arrays.take("number", "whole numbers", (), np.array(0))),
        voxels=voxels,
        confidence=confidence,
        pc_range=tuple(pc_range.tolist()),
        frame=frame,
        class_names=tuple(str(name)[:80] for name in names),
        points=points,
        point_labels=labels.astype(np.uint8),
        lidar2grid=lidar2grid,
        cameras=_cameras(arrays),
        scanned=_scanned(arrays, shape),
        true_voxels=None if true_voxels is None else true_voxels.astype(np.uint8),
        true_point_labels=None if true_labels is None else true_labels.astype(np.uint8),
    )


def _load(path: Path) -> Dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(one.file_size for one in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MB; {_EXPECTED}")
        with memory_budget(path.stat().st_size), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except DAMAGED as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({damage(err)}); {_EXPECTED}") from err
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}  # the rest are bytes


class _Arrays:
    """Return the arrays of one file by name, with a check of their kind and shape."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.path, self._arrays = path, arrays

    def maybe(self, name: str, kind: str, shape: Sequence[Optional[int]]) -> Optional[np.ndarray]:
        """Return an array; None if the file does not have it."""
        return self.take(name, kind, shape) if name in self._arrays else None

    def take(
        self,
        name: str,
        kind: str,
        shape: Sequence[Optional[int]],
        default: Optional[np.ndarray] = None,
        required: bool = False,
    ) -> np.ndarray:
        """Return an array; None in ``shape`` allows any length. Raises DataError."""
        if name not in self._arrays:
            if required or default is None:
                raise DataError(f"{self.path}: has no array {name!r}; {_EXPECTED}")
            return default
        array = self._arrays[name]
        fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape))
        if not fits or array.dtype.kind not in _KINDS[kind]:
            wanted = tuple("any" if n is None else n for n in shape)
            raise DataError(
                f"{self.path}: {name} is {array.dtype} of shape {array.shape}; expected {kind} of shape {wanted}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{self.path}: {name} holds numbers that are not finite; make the file again")
        if array.dtype.kind in "iu" and kind == "whole numbers" and name != "number" and array.size:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > 65535 or (high > 255 and name != "scanned" and name != "image_sizes"):
                raise DataError(f"{self.path}: {name} holds {low} to {high}; expected classes, 0 to 255")
        return array

    def text(self, name: str, default: str) -> str:
        return str(self.take(name, "text", (), np.array(default)))[:200]


def _scanned(arrays: _Arrays, shape: Tuple[int, ...]) -> Optional[np.ndarray]:
    rows = arrays.maybe("scanned", "whole numbers", (None, 3))
    if rows is None:
        return None
    if len(rows) and (rows.max(axis=0) >= shape).any():
        raise DataError(f"{arrays.path}: scanned names voxels outside of {shape}; make the file again")
    scanned = np.zeros(shape, bool)
    scanned[tuple(rows.T.astype(np.int64))] = True
    return scanned


def _cameras(arrays: _Arrays) -> Tuple[CameraView, ...]:
    names = arrays.maybe("camera_names", "text", (None,))
    if names is None:
        return ()
    if len(names) > MAX_CAMERAS:
        raise DataError(f"{arrays.path}: has {len(names)} cameras; expected {MAX_CAMERAS} at most")
    matrices = arrays.take("lidar2img", "numbers", (len(names), 4, 4)).astype(np.float64)
    sizes = arrays.take("image_sizes", "whole numbers", (len(names), 2)).astype(int)
    views = []
    for i, name in enumerate(names):
        jpeg = arrays.take(f"image_{i}", "whole numbers", (None,)).astype(np.uint8)
        stored = _jpeg_width(jpeg)
        if stored == 0 or sizes[i].min() < 1:
            raise DataError(f"{arrays.path}: image_{i} is no JPEG; make the file again")
        views.append(
            CameraView(str(name)[:80], jpeg.tobytes(), (int(sizes[i][0]), int(sizes[i][1])), matrices[i], stored)
        )
    return tuple(views)


def _jpeg_width(data: np.ndarray) -> int:
    """Return the width in pixels; 0 if the bytes are no JPEG that can be decoded."""
    content = data.tobytes()
    size = declared_size(content) if content[:2] == b"\xff\xd8" else None
    if size is None or too_large(size, len(content)) or too_many_scans(content):
        return 0
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than OpenCV accepts
        return 0
    return 0 if picture is None else picture.shape[1]
