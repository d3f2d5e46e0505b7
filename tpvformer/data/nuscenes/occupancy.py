"""Find and read the published dense labels of a key frame.

occ3d (arXiv:2304.14365): ``<scene name>/<sample token>/labels.npz`` with ``semantics``, ``mask_lidar`` and
``mask_camera``, each (200,200,16); ego frame. Classes are those of labels.py: 0 "others", 1..16, 17 free. Voxels that
the lidar never observed are stored as free; the masks distinguish them.

surroundocc (arXiv:2303.09551): ``samples/<lidar file>.npy``, rows (x, y, z, class) of the occupied voxels of a
(200,200,16) grid; lidar frame. Class 0 is noise, which its code ignores; voxels that are not listed are free, 17 here.

semantickitti: see semantickitti.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np

from tpvformer.config import OCCUPANCY_GRIDS, DataConfig
from tpvformer.data.semantickitti import NO_LABEL, read_voxels
from tpvformer.data.types import CAMERA_BIT, LIDAR_BIT, DenseLabels
from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.labels import EMPTY, KITTI_RAW
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.numpy_files import DAMAGED, damage

HAS_MASKS = ("occ3d",)
_PARTS = ("semantics", "mask_lidar", "mask_camera")  # arrays of an occ3d file
HAS_RAYS = ("occ3d", "surroundocc")  # RayIoU is a metric of nuScenes occupancy


class OccupancyLabels:
    """Find and read the dense labels of one data set."""

    def __init__(self, cfg: DataConfig) -> None:
        """Find the label files. Raises DataError where ``cfg.occupancy_root`` is no folder."""
        self._kind, self._root = cfg.occupancy, to_path(cfg.occupancy_root)
        if not self._root.is_dir():
            raise DataError(
                f"data.occupancy_root is {self._root}, which is no folder; unpack the {self._kind} labels there"
            )
        self._files = _occ3d_files(str(self._root)) if self._kind == "occ3d" else {}
        self._classes = _class_table(cfg)

    def find(self, token: str, scan_name: str) -> Path:
        """Return the label file of a sample. Raises DataError where there is none."""
        if self._kind == "occ3d":
            expected = self._root / "<scene name>" / token / "labels.npz"
            path = self._files.get(token, expected)
        elif self._kind == "semantickitti":
            sequence, frame = token.split("/")
            expected = path = self._root / "sequences" / sequence / "voxels" / f"{frame}.label"
        else:
            expected = path = self._root / "samples" / f"{scan_name}.npy"
        if not path.is_file():
            raise DataError(
                f"sample {token}: no {self._kind} labels; expected {expected}, so complete the download or set "
                "data.occupancy_root"
            )
        return path

    def read(self, path: Path, token: str) -> DenseLabels:
        """Read the labels of one sample, in the classes of the label map.

        Raises DataError for a damaged file or one of another grid.
        """
        if self._kind == "semantickitti" and self._classes is not None:
            return read_voxels(path, token, self._classes)
        dense = read_labels(self._kind, path, token)
        return dense if self._classes is None else replace(dense, classes=self._classes[dense.classes])


def _class_table(cfg: DataConfig) -> Optional[np.ndarray]:
    """Return the class, uint8, of each label in the files under the label map; None where the labels are the classes.

    It has 65,536 entries for SemanticKITTI's raw labels, else 256.
    """
    if cfg.classes is not None:
        kitti = cfg.occupancy == "semantickitti"
        return class_table(cfg.classes.raw if kitti else cfg.classes.voxels, kitti)
    if cfg.label_map == "surroundocc":  # noise has no class, and free space is class 0
        return class_table((255, *range(1, EMPTY), 0), False)
    return None


def class_table(classes: Sequence[int], raw_voxels: bool) -> np.ndarray:
    """Return the class, uint8, of each label from 0 on, for 65,536 ``raw_voxels`` labels or 256 others.

    Labels beyond ``classes`` are 255, without a class; of raw voxels, those that SemanticKITTI does not define are
    ``NO_LABEL``.
    """
    table = np.full(1 << 16 if raw_voxels else 256, NO_LABEL if raw_voxels else 255, np.uint8)
    if raw_voxels:
        table[list(KITTI_RAW)] = 255
        defined = [raw for raw in KITTI_RAW if raw < len(classes)]
        table[defined] = np.array(classes, np.uint8)[defined]
    else:
        table[: len(classes)] = classes
    return table


def read_labels(kind: str, path: Path, token: str) -> DenseLabels:
    """Read one label file of a data set: "occ3d", "surroundocc" or "semantickitti". ``token`` names it in messages.

    Raises DataError for a damaged file or one of another grid.
    """
    if kind == "semantickitti":
        return read_voxels(path, token)
    where = f"sample {token}: {path}"
    try:
        with path.open("rb") as file, memory_budget(path.stat().st_size):
            stored: Any = np.load(file, allow_pickle=False)
            if kind == "occ3d":  # the rest of an archive is not unpacked
                arrays = {name: stored[name] for name in _PARTS if name in getattr(stored, "files", ())}
            else:
                arrays = {"rows": np.asarray(stored)}
    except DAMAGED as err:
        raise DataError(f"{where} is not a {kind} label file ({damage(err)}); copy it again") from err
    return _occ3d(arrays, where) if kind == "occ3d" else _surroundocc(arrays["rows"], where)


@lru_cache(maxsize=2)  # training and validation sets of one run share their labels
def _occ3d_files(root: str) -> Dict[str, Path]:
    """Return the label files by sample token, which is the name of a file's folder."""
    return {
        path.parent.name: path for pattern in ("*/labels.npz", "*/*/labels.npz") for path in to_path(root).glob(pattern)
    }


def _occ3d(arrays: Dict[str, np.ndarray], where: str) -> DenseLabels:
    shape = OCCUPANCY_GRIDS["occ3d"].shape
    for name in _PARTS:
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype.kind not in "biu":
            what = "is missing" if found is None else f"has shape {found.shape} of {found.dtype}"
            raise DataError(f"{where}: {name} {what}; expected {shape}, as Occ3D-nuScenes publishes it")
    classes, lidar, camera = (arrays[name] for name in _PARTS)
    _check_classes(classes, EMPTY, where)
    mask = (lidar > 0) * np.uint8(LIDAR_BIT) | (camera > 0) * np.uint8(CAMERA_BIT)
    return DenseLabels(classes.astype(np.uint8), mask.astype(np.uint8))


def _surroundocc(rows: np.ndarray, where: str) -> DenseLabels:
    shape: Tuple[int, int, int] = OCCUPANCY_GRIDS["surroundocc"].shape
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf":
        raise DataError(f"{where} has shape {rows.shape}; expected (N, 4) numbers: x, y, z, class")
    if not np.isfinite(rows).all():
        raise DataError(f"{where} holds numbers that are not finite; copy it again")
    whole = rows.astype(np.int64)
    if (whole != rows).any() or (whole[:, :3] < 0).any() or (whole[:, :3] >= shape).any():
        raise DataError(f"{where} holds voxels outside the grid {shape}; expected its whole indices")
    _check_classes(whole[:, 3], EMPTY - 1, where)
    classes = np.full(shape, EMPTY, np.uint8)
    classes[whole[:, 0], whole[:, 1], whole[:, 2]] = whole[:, 3]
    return DenseLabels(classes, None)


def _check_classes(classes: np.ndarray, highest: int, where: str) -> None:
    if classes.size and not (classes.min() >= 0 and classes.max() <= highest):
        raise DataError(f"{where} holds classes {classes.min()} to {classes.max()}; expected 0 to {highest}")
