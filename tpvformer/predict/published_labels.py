"""Read published dense labels for ``tpvformer view``: Occ3D, SurroundOcc, SemanticKITTI."""

from __future__ import annotations

from pathlib import Path
from typing import Collection, Dict, NamedTuple, Optional

import numpy as np

from tpvformer.config import OCCUPANCY_GRIDS
from tpvformer.data.nuscenes.occupancy import read_labels
from tpvformer.errors import DataError
from tpvformer.labels import class_names
from tpvformer.untrusted.names import is_file_name
from tpvformer.viz.frame_prediction import FramePrediction

KNOWN = "Occ3D's labels.npz, SurroundOcc's .npy or SemanticKITTI's .label"


class _Set(NamedTuple):
    """Describe a data set of dense labels: its title and the label map of its classes."""

    title: str
    label_map: str


_SETS: Dict[str, _Set] = {
    "occ3d": _Set("Occ3D", "occ3d"),
    "surroundocc": _Set("SurroundOcc", "nuscenes-noIgnore"),
    "semantickitti": _Set("SemanticKITTI", "semantickitti"),
}
# array names of other data sets' archives, whose classes or grids differ
_OTHERS = {
    "flow": "labels of OpenOcc, whose classes have other numbers",
    "voxel_label": "labels of Occ3D-Waymo, whose classes are not known here",
    "final_voxel_state": "labels of Occ3D-Waymo, whose classes are not known here",
}


def kind_of(path: Path, arrays: Collection[str] = ()) -> Optional[str]:
    """Return the data set of a label file; None if it holds no dense labels.

    The suffix decides, and for archives the names of their ``arrays``. Raises DataError for known archives that cannot
    be shown.
    """
    if path.suffix in (".npy", ".label"):
        return "surroundocc" if path.suffix == ".npy" else "semantickitti"
    if "voxels" in arrays:
        return None
    other = next((text for name, text in _OTHERS.items() if name in arrays), None)
    if other is not None:
        raise DataError(f"{path}: holds {other}; expected an archive that tpvformer predict wrote, {KNOWN}")
    return "occ3d" if "semantics" in arrays else None


def label_files(folder: Path) -> Dict[Path, None]:
    """Return the label files of a folder, in order: SurroundOcc and SemanticKITTI in it, Occ3D one folder below."""
    patterns = ("labels.npz", "*/labels.npz", "*.npy", "*.label")
    return dict.fromkeys(path for pattern in patterns for path in sorted(folder.glob(pattern)))


def read_label_file(path: Path, kind: str) -> FramePrediction:
    """Return a frame of labels, without points and cameras. Raises DataError."""
    folder = path.absolute().parent
    token = folder.name if kind == "occ3d" and is_file_name(folder.name) else path.stem
    scene = folder.parent.name if kind == "semantickitti" or folder.parent.name.startswith("scene-") else ""
    dense, grid = read_labels(kind, path, token), OCCUPANCY_GRIDS[kind]
    return FramePrediction(
        token=token,
        scene=scene,
        number=0,
        voxels=dense.classes,
        confidence=None,
        pc_range=grid.pc_range,
        frame=grid.frame,
        class_names=class_names(_SETS[kind].label_map),
        points=np.empty((0, 3), np.float32),
        point_labels=np.empty(0, np.uint8),
        lidar2grid=np.eye(4),
        labels_of=_SETS[kind].title,
    )
