"""Read the results that are shown: archives of ``tpvformer predict``, or published labels."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

from tpvformer.errors import DataError
from tpvformer.predict.archive import frame_prediction
from tpvformer.predict.checked_arrays import load_arrays
from tpvformer.predict.published_labels import KNOWN, kind_of, label_files, read_label_file
from tpvformer.viz.frame_prediction import FramePrediction


def read_results(places: Sequence[Path]) -> List[FramePrediction]:
    """The frames of files, in their order, and of folders, by scene and number. Raises DataError."""
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
        if (result.class_names, result.frame, result.classes) != (first.class_names, first.frame, first.classes):
            raise DataError(
                f"{result.token}: has other classes or another frame than {first.token}; show results of one model"
            )
    return results


def _below(place: Path) -> str:
    """Where a folder's own folders hold results or labels, in words."""
    patterns = ("*/*.npz", "*/*/labels.npz", "*/*.npy", "*/*.label", "*/*/*.label")
    found = next((path for pattern in patterns for path in place.glob(pattern)), None)
    if found is None:
        return ""
    return f", but {found.parent.parent if found.name == 'labels.npz' else found.parent} does: name that"


def read_result(path: Path) -> FramePrediction:
    """One frame. Raises DataError."""
    loaded = {} if path.suffix in (".npy", ".label") else load_arrays(path)
    kind = kind_of(path, loaded)
    return frame_prediction(loaded, path) if kind is None else read_label_file(path, kind)
