"""tpvformer view opens dense labels as they are published, and says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from view_tools import archive, save

from tpvformer.cli import main
from tpvformer.errors import DataError
from tpvformer.labels import COLORS
from tpvformer.predict.read_results import read_result, read_results
from tpvformer.viz.frame_prediction import believed, shown

CAR, FREE = 4, 17
GRID = (200, 200, 16)


def occ3d(path: Path, **changes: Any) -> Path:
    """A car of 2 x 1 x 1 voxels 10 m ahead of the vehicle and 2 m to its left; everything else is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    semantics = np.full(GRID, FREE, np.uint8)
    semantics[125:127, 105, 4] = CAR
    arrays = {"semantics": semantics, "mask_lidar": np.ones(GRID, np.uint8), "mask_camera": np.ones(GRID, np.uint8)}
    arrays.update(changes)
    return save(path, {name: array for name, array in arrays.items() if array is not None})


def surroundocc(path: Path, rows: Any = ((104, 125, 4, CAR), (104, 126, 4, CAR))) -> Path:
    """The same in the lidar frame, where y points ahead."""
    np.save(path, np.array(rows, np.int16))
    return path


def test_occ3d(tmp_path: Path) -> None:
    result = read_result(occ3d(tmp_path / "scene-0061" / ("0" * 31 + "f") / "labels.npz"))
    assert (result.token, result.scene) == ("0" * 31 + "f", "scene-0061")
    assert result.frame == "ego" and result.pc_range == (-40, -40, -1, 40, 40, 5.4)
    kinds = shown(result.class_names, result.frame)
    assert kinds.free == FREE and kinds.forward == "x" and 0 in kinds.drawn, "class 0, others, is a thing there"
    assert np.argwhere(believed(result, kinds)).tolist() == [[125, 105, 4], [126, 105, 4]]
    assert result.class_names[CAR] == "car" and result.labels_of == "Occ3D"


def test_surroundocc(tmp_path: Path) -> None:
    result = read_result(surroundocc(tmp_path / "n015__LIDAR_TOP__1.pcd.bin.npy"))
    assert result.token == "n015__LIDAR_TOP__1.pcd.bin"
    assert result.frame == "lidar" and result.pc_range == (-50, -50, -5, 50, 50, 3)
    kinds = shown(result.class_names, result.frame)
    assert kinds.free == FREE and kinds.forward == "y"
    assert np.argwhere(believed(result, kinds)).tolist() == [[104, 125, 4], [104, 126, 4]]


def test_semantickitti(tmp_path: Path) -> None:
    """Raw labels of a sequence's voxels; those never observed are not drawn."""
    folder = tmp_path / "sequences" / "08" / "voxels"
    folder.mkdir(parents=True)
    raw = np.zeros((256, 256, 32), "<u2")
    raw[10, 20, 3], raw[11, 20, 3] = 10, 10  # two cars
    unseen = np.zeros(raw.size, bool)
    unseen[np.ravel_multi_index((11, 20, 3), raw.shape)] = True
    raw.tofile(folder / "000005.label")
    np.packbits(unseen).tofile(folder / "000005.invalid")
    (result,) = read_results([folder])
    assert (result.token, result.scene, result.labels_of) == ("000005", "08", "SemanticKITTI")
    assert np.argwhere(believed(result, shown(result.class_names, result.frame))).tolist() == [[10, 20, 3]]


def test_a_folder_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As it is downloaded: a scene of Occ3D has a folder a frame."""
    tokens = ["a" * 32, "b" * 32]
    for token in tokens:
        occ3d(tmp_path / "gts" / "scene-0001" / token / "labels.npz")
    assert [result.token for result in read_results([tmp_path / "gts" / "scene-0001"])] == tokens
    with pytest.raises(DataError, match=r"holds no .npz files, but .*scene-0001 does: name that"):
        read_results([tmp_path / "gts"])
    words = ["--html", str(tmp_path / "page.html"), "--png", str(tmp_path / "png"), "--ply", str(tmp_path / "ply")]
    assert main(["view", str(tmp_path / "gts" / "scene-0001"), *words]) == 0
    assert "page.html: 2 frames" in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / "png" / f"{tokens[0]}.png"))
    blue = (picture[:1080] == COLORS[CAR][::-1]).all(2)
    assert blue.any() and (tmp_path / "ply" / f"{tokens[1]}.voxels.ply").stat().st_size > 200


BAD: List[Tuple[str, Dict[str, Any], str]] = [
    ("no masks", {"mask_lidar": None}, "mask_lidar is missing; expected (200, 200, 16), as Occ3D-nuScenes publishes"),
    ("small", {"semantics": np.zeros((9, 9, 9), np.uint8)}, "semantics has shape (9, 9, 9)"),
    ("class", {"semantics": np.full(GRID, 18, np.uint8)}, "holds classes 18 to 18; expected 0 to 17"),
    ("openocc", {"flow": np.zeros((2, 2)), "mask_lidar": None}, "labels of OpenOcc, whose classes have other numbers"),
    ("waymo", {"semantics": None, "voxel_label": np.zeros((2, 2, 2))}, "labels of Occ3D-Waymo"),
    ("nothing", {"semantics": None}, "SurroundOcc's .npy or SemanticKITTI's .label"),
]


@pytest.mark.parametrize(("changes", "text"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_archives_of_others_are_refused_in_one_sentence(tmp_path: Path, capsys, changes, text: str) -> None:
    path = occ3d(tmp_path / "labels.npz", **changes)
    assert main(["view", str(path), "--html", str(tmp_path / "x.html")]) == 2
    said = capsys.readouterr().err
    assert text in said and str(path) in said and said.count("\n") == 1 and not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.zeros(GRID), "has shape (200, 200, 16); expected (N, 4) numbers: x, y, z, class"),
        (((39, 300, 300, CAR),), "holds voxels outside the grid (200, 200, 16)"),  # OpenOccupancy's: z, y, x, class
        (((0, 0, 0, FREE),), "holds classes 17 to 17; expected 0 to 16"),
        (((0, 0, 0.5, CAR),), None),
    ],
)
def test_other_arrays_are_refused_in_one_sentence(tmp_path: Path, rows: Any, text: Any) -> None:
    np.save(tmp_path / "a.npy", np.array(rows))
    with pytest.raises(DataError) as caught:
        read_result(tmp_path / "a.npy")
    assert (text or "expected its whole indices") in str(caught.value)


def test_labels_and_predictions_of_other_classes_are_not_mixed(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.npz", archive()), occ3d(tmp_path / "b" / "labels.npz")]
    with pytest.raises(DataError, match="has other classes or another frame"):
        read_results(files)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
def test_the_page_calls_them_labels(tmp_path: Path) -> None:
    path = occ3d(tmp_path / "f" / "labels.npz")
    assert main(["view", str(path), "--html", str(tmp_path / "page.html")]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html")
        seen = browser.run("document.body.innerText")
        assert browser.problems == []
    assert "Labels of Occ3D; no model predicted them." in seen and "voxels: labels" in seen
    assert "Prediction" not in seen and "predicted," not in seen and "model's" not in seen
