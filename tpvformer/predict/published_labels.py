"""Dense labels as they are published, for ``tpvformer view``: Occ3D, SurroundOcc, SemanticKITTI."""

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
    """A data set of dense labels, as people call it, and the label map of its classes."""

    title: str
    label_map: str


_SETS: Dict[str, _Set] = {
    "occ3d": _Set("Occ3D", "occ3d"),
    "surroundocc": _Set("SurroundOcc", "nuscenes-noIgnore"),
    "semantickitti": _Set("SemanticKITTI", "semantickitti"),
}
# arrays that tell archives of other data sets, whose classes have other numbers or whose grid is another
_OTHERS = {
    "flow": "labels of OpenOcc, whose classes have other numbers",
    "voxel_label": "labels of Occ3D-Waymo, whose classes are not known here",
    "final_voxel_state": "labels of Occ3D-Waymo, whose classes are not known here",
}


def kind_of(path: Path, arrays: Collection[str] = ()) -> Optional[str]:
    """The data set that a file is of, by its suffix and, of an archive, the names of its ``arrays``; None where it is
    none of dense labels. Raises DataError for archives that are known and cannot be shown."""
    if path.suffix in (".npy", ".label"):
        return "surroundocc" if path.suffix == ".npy" else "semantickitti"
    if "voxels" in arrays:
        return None
    other = next((text for name, text in _OTHERS.items() if name in arrays), None)
    if other is not None:
        raise DataError(f"{path}: holds {other}; expected an archive that tpvformer predict wrote, {KNOWN}")
    return "occ3d" if "semantics" in arrays else None


def label_files(folder: Path) -> Dict[Path, None]:
    """The label files of a folder: SurroundOcc's or SemanticKITTI's in it, Occ3D's one folder below, in order."""
    patterns = ("labels.npz", "*/labels.npz", "*.npy", "*.label")
    return dict.fromkeys(path for pattern in patterns for path in sorted(folder.glob(pattern)))


def read_label_file(path: Path, kind: str) -> FramePrediction:
    """One frame of labels, with neither points nor cameras. Raises DataError."""
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
