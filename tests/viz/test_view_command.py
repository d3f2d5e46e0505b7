"""tpvformer view: archives are read with care, what is written shows them. test_view_page.py looks at the page."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from pathlib import Path
from typing import Any, List

import cv2
import numpy as np
import pytest
import torch
from dense_tools import dense_config
from engine_tools import ROOT, tiny_config, tiny_model, write_config
from rig_tools import THREE, write_rig
from tiny_nuscenes import write_tiny
from view_tools import archive, read_ply, save

from tpvformer.cli import main
from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.street.write import write_dataset
from tpvformer.errors import DataError
from tpvformer.labels import COLORS, NUSCENES
from tpvformer.model import TPVFormer
from tpvformer.predict import checked_arrays as view_files
from tpvformer.predict.frames import FramePredictions
from tpvformer.predict.read_results import read_result, read_results
from tpvformer.viz import video
from tpvformer.viz.frame_prediction import believed, shown
from tpvformer.viz.render import look_at, render_voxels

pytestmark = pytest.mark.usefixtures("quick")


def test_predict_then_view(tmp_path: Path, capsys) -> None:
    """The user's way: predict with the labels of the set, then a page, pictures, a video and PLY files."""
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    file = write_config(tmp_path / "tiny.py", tiny_config(write_tiny(tmp_path / "set")))
    words = ["--py-config", str(file), "--ckpt-path", str(tmp_path / "w.pth"), "--device", "cpu"]
    assert main(["predict", *words, "--truth", "--out", str(tmp_path / "out")]) == 0
    results = read_results([tmp_path / "out"])
    assert [(r.token, r.number) for r in results] == [("sample0", 0), ("sample1", 1), ("sample2", 2)]
    first = results[0]
    assert [camera.size for camera in first.cameras] == [(77, 45)] * 6
    assert first.true_point_labels is not None and len(first.true_point_labels) == len(first.points) == 50
    assert first.true_voxels is not None and first.scanned is not None
    assert not first.true_voxels[~first.scanned].any() and 0 < first.scanned.sum() < 50
    out = tmp_path / "shown"
    more = ["--png", str(out), "--ply", str(out), "--video", str(out / "v.avi")]
    assert main(["view", str(tmp_path / "out"), "--html", str(out / "page.html"), *more]) == 0
    assert "3 frames" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    tokens = [result.token for result in results]
    assert names == {
        "page.html",
        "v.avi",
        *(f"{token}.{end}" for token in tokens for end in ("png", "points.ply", "voxels.ply")),
    }
    video = cv2.VideoCapture(str(out / "v.avi"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.read()[1].shape[1] == 1464
    assert cv2.imread(str(out / "sample0.png")).shape == (1756, 2930, 3)


def test_the_commands_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^tpvformer view ([^#\n]*)", (ROOT / "docs" / "viewer.md").read_text(), re.MULTILINE)
    (tmp_path / "out" / "demo").mkdir(parents=True)
    for folder in ("out/demo", "out"):  # the last one is where the command without a name looks
        save(tmp_path / folder / "a.npz", archive())
    monkeypatch.chdir(tmp_path)
    assert len(commands) == 6
    for words in commands:
        absent = "--rrd" in words and importlib.util.find_spec("rerun") is None
        assert main(["view", *words.split()]) == (2 if absent else 0), words


def test_dense_labels_are_kept_whole(tmp_path: Path) -> None:
    """Of an occupancy set in the ego frame; the way from lidar to grid is kept too."""
    write_dataset(tmp_path / "street", 2, (64, 32), 6, 1, workers=1, occupancy=True)
    config = dense_config(tmp_path / "street", "occ3d")
    torch.save(TPVFormer(config.model).state_dict(), tmp_path / "w.pth")
    (_,) = FramePredictions(config, tmp_path / "w.pth", tmp_path / "out", index=0, device="cpu", truth=True)
    (result,) = read_results([tmp_path / "out"])
    frame = FrameDataset(config.data, config.model.grid, "val", 0).load_frame(0)
    assert frame.dense is not None and (result.true_voxels == frame.dense.classes).all()
    assert (result.true_point_labels == frame.labels).all() and len(frame.labels)
    assert result.frame == "ego" and (result.lidar2grid == frame.lidar2ego).all()
    kinds = shown(result.class_names, result.frame)
    assert kinds.free == 17 and kinds.forward == "x" and kinds.drawn[0] == 0
    assert result.scanned is not None and result.true_voxels is not None
    assert np.isin(result.true_voxels[result.scanned], kinds.drawn).mean() > 0.85  # points lie where something is


def test_truth_needs_labels(tmp_path: Path, capsys) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    file = write_config(tmp_path / "tiny.py", tiny_config(DataConfig(workers=0)))
    rig = write_rig(tmp_path, THREE, (40,), labelled=False)
    words = ["--py-config", str(file), "--ckpt-path", str(tmp_path / "w.pth"), "--device", "cpu", "--rig", str(rig)]
    assert main(["predict", *words, "--truth", "--out", str(tmp_path / "out")]) == 2
    assert "has lidar but no labels" in capsys.readouterr().err


def test_a_picture_has_a_legend_and_names_every_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven cameras: none is left out, and each is named on its photograph and on its voxels."""
    said: List[str] = []
    monkeypatch.setattr(video, "caption", lambda image, text, size=0.55: said.append(text))
    result = read_result(save(tmp_path / "a.npz", archive(cameras=7)))
    picture = video.video_frame(result)
    names = ["front", "back", *(f"more{i}" for i in range(5))]
    assert sorted(said[:-2]) == sorted([*names, *(f"{name}, voxels" for name in names)])
    assert said[-2:] == ["from above", "frame: predicted voxels"]
    assert picture.shape == (3 * 280 + 1080 + 2 * 46 + 24, 2930, 3)
    legend = picture[3 * 280 + 1080 :]
    there = set(np.unique(result.voxels[believed(result, shown(result.class_names, "lidar"))]).tolist())
    assert 4 not in there and len(there) == 15  # the row of cars is predicted as barrier
    full = [number for number in range(1, 17) if (legend == COLORS[number][::-1]).all(2).sum() > 500]
    assert set(full) == there, "a class that is absent is dimmed"


def test_a_gif_holds_every_frame(tmp_path: Path, capsys) -> None:
    for i in range(2):
        save(tmp_path / f"{i}.npz", archive(token=f"t{i}", number=i))
    out = tmp_path / "v.gif"
    status = main(["view", str(tmp_path), "--video", str(out)])
    if status == 2:
        assert "a GIF needs Pillow" in capsys.readouterr().err and not out.exists()
        pytest.skip("neither Pillow nor an OpenCV with GIF is installed")
    assert out.read_bytes()[:4] == b"GIF8"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_rerun_file(tmp_path: Path, capsys) -> None:
    path = save(tmp_path / "a.npz", archive())
    status = main(["view", str(path), "--rrd", str(tmp_path / "a.rrd")])
    if importlib.util.find_spec("rerun") is None:
        said = capsys.readouterr().err
        assert status == 2 and "pip install rerun-sdk" in said and said.count("\n") == 1
        assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    else:
        assert status == 0 and (tmp_path / "a.rrd").read_bytes()[:3] == b"RRF"


PICTURE = cv2.imencode(".jpg", np.zeros((45, 77, 3), np.uint8))[1].tobytes()
MANY_SCANS = PICTURE[:-2] + PICTURE[PICTURE.rindex(b"\xff\xda") : -2] * 101 + PICTURE[-2:]
BAD: List[Any] = [
    (lambda a: a.pop("voxels"), "has no array 'voxels'"),
    (lambda a: a.update(voxels=np.zeros((3, 3), np.uint8)), "voxels is uint8 of shape (3, 3)"),
    (lambda a: a.update(voxels=np.full((20, 20, 4), 99, np.uint8)), "voxels hold class 99, but there are 17"),
    (lambda a: a.update(voxels=np.full((20, 20, 4), -1)), "voxels holds -1 to -1; expected classes, 0 to 255"),
    (lambda a: a.update(voxels=np.zeros((0, 20, 4), np.uint8)), "voxels have shape (0, 20, 4)"),
    (lambda a: a.update(pc_range=np.array([0, 0, 0, -1, 1, 1.0])), "then higher x, y, z"),
    (lambda a: a.update(pc_range=np.array([0, 0, 0, np.nan, 1, 1])), "not finite"),
    (lambda a: a.update(frame=np.array("world")), "expected 'lidar' or 'ego'"),
    (lambda a: a.pop("point_labels"), "has no array 'point_labels'"),
    (lambda a: a.update(point_labels=np.zeros(1, np.uint8)), "point_labels is uint8 of shape (1,)"),
    (lambda a: a.update(confidence=np.zeros((1, 1, 1))), "confidence is float64 of shape (1, 1, 1)"),
    (lambda a: a.update(image_0=np.frombuffer(b"\xff\xd8 no picture", np.uint8)), "image_0 is no JPEG"),
    (lambda a: a.update(image_0=np.frombuffer(MANY_SCANS, np.uint8)), "image_0 is no JPEG"),
    (lambda a: a.pop("image_1"), "has no array 'image_1'"),
    (lambda a: a.update(image_sizes=np.zeros((2, 2), int)), "image_0 is no JPEG"),
    (lambda a: a.update(lidar2grid=np.zeros((4, 4))), "lidar2grid has no inverse"),
    (lambda a: a.update(scanned=np.array([[50, 0, 0]], np.uint16)), "scanned names voxels outside"),
    (lambda a: a.update(token=np.array("../../etc/passwd")), "its token cannot be the name of a file"),
    (lambda a: a.update(class_names=np.array(["x"] * 300)), "has 300 class_names"),
    (lambda a: a.update(class_names=np.array([1, 2])), "class_names is int64"),
    (lambda a: a.update(class_names=np.array([{}], dtype=object)), "or holds Python objects, which are never read"),
]


@pytest.mark.parametrize(("change", "text"), BAD, ids=[text for _, text in BAD])
def test_a_strangers_file_is_refused_in_one_sentence(tmp_path: Path, capsys, change, text: str) -> None:
    arrays = archive()
    change(arrays)
    path = save(tmp_path / "r.npz", arrays)
    assert main(["view", str(path), "--html", str(tmp_path / "x.html")]) == 2
    said = capsys.readouterr().err
    assert text in said and str(path) in said and said.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_no_archive_and_nothing_to_do(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_files, "MAX_BYTES", 1 << 20)
    (tmp_path / "r.npz").write_bytes(b"not a zip file")
    whole = save(tmp_path / "whole.npz", archive()).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as file:
        file.writestr("voxels", b"no array")
    head = b"\x93NUMPY\x01\x00" + b"v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 9)}"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        file.writestr("voxels.npy", head.ljust(10 + 118, b" "))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("voxels.npy", bytes((1 << 20) + 1))
    good, html = str(tmp_path / "whole.npz"), ["--html", str(tmp_path / "x.html")]
    for words, text in (
        ([str(tmp_path / "r.npz"), *html], "cannot be read"),
        ([str(tmp_path / "cut.npz"), *html], "cannot be read"),
        ([str(tmp_path / "none.npz"), *html], "No such file"),
        ([str(tmp_path / "raw.npz"), *html], "has no array 'voxels'"),
        ([str(tmp_path / "huge.npz"), *html], "cannot be read"),
        ([str(tmp_path / "bomb.npz"), *html], "unpacks to more than 1 MB"),
        ([str(tmp_path / "empty"), *html], "holds no .npz files"),
        ([good, "--video", "x.mkv"], "expected a name that ends in"),
        ([good, "--video", "x.gif", "--fps", "0"], "--fps is 0.0"),
    ):
        assert main(["view", *words]) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1


def test_what_predict_wrote_is_found_and_becomes_a_page(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["view"]) == 2
    said = capsys.readouterr().err
    assert "RESULT is not given, and out, where tpvformer predict writes, holds no .npz" in said
    assert said.count("\n") == 1
    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "a.npz", archive())
    assert main(["view"]) == 0
    assert (tmp_path / "out/view.html").is_file() and "out/view.html: 1 frames" in capsys.readouterr().out
    assert main(["view", "--ply", "p"]) == 0  # something else is asked for
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) and len(list(tmp_path.rglob("*.html"))) == 1
    save(tmp_path / "b.npz", archive())
    assert main(["view", "b.npz"]) == 0
    assert (tmp_path / "view.html").is_file()


def test_view_looks_where_predict_writes() -> None:
    from tpvformer.cli import _parser
    from tpvformer.commands.view import FOLDER

    assert _parser(["predict"]).parse_args(["predict", "--ckpt-path", "x"]).out == FOLDER


def test_results_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", archive())
    save(tmp_path / "b.npz", archive(class_names=np.array([f"c{i}" for i in range(17)])))
    with pytest.raises(DataError, match="show results of one model"):
        read_results([tmp_path])


def test_what_counts_as_there(tmp_path: Path) -> None:
    result = read_result(save(tmp_path / "a.npz", archive()))
    kinds = shown(result.class_names, result.frame)
    assert kinds.free == -1 and kinds.forward == "y"
    assert result.scanned is not None
    assert (believed(result, kinds) == result.scanned & (result.voxels > 0)).all()
    unscanned = archive()
    del unscanned["scanned"]
    result = read_result(save(tmp_path / "b.npz", unscanned))
    assert 0.09 < believed(result, kinds).mean() < 0.2  # the surest tenth; equal ones count too
    names = np.array([*archive()["class_names"], "empty"])
    free = read_result(save(tmp_path / "c.npz", archive(class_names=names, voxels=np.full((20, 20, 4), 17, np.uint8))))
    kinds = shown(free.class_names, free.frame)
    assert kinds.free == 17 and not believed(free, kinds).any()


def test_a_rendered_voxel_has_its_colour_where_it_is_seen() -> None:
    voxels = np.zeros((3, 3, 3), np.uint8)
    voxels[1, 1, 1], voxels[1, 1, 0] = 4, 7  # a blue voxel hides a red one below
    grid, size, middle = (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5), (450, 450), np.zeros(3)

    def picture(eye: Any, up: Any) -> np.ndarray:
        return render_voxels(voxels, voxels > 0, grid, look_at(np.array(eye), middle, size, 20, up), size, NUSCENES)

    image = picture((0, 0, 20.0), (0, 1, 0))
    blue = (image == COLORS[4][::-1]).all(2)
    width = 450 * 0.5 / 19.5 / np.tan(np.radians(10))
    assert blue[225, 225] and blue.sum() == pytest.approx(width**2, rel=0.05)
    assert not (image == COLORS[7][::-1]).all(2).any()
    image = picture((0, -20.0, 0), (0, 0, 1))
    assert image[225, 225].argmax() == 0 and image[285, 225].argmax() == 2  # blue above red; up is up


def test_ply_files_hold_every_point_and_cubes_that_face_outwards(tmp_path: Path) -> None:
    arrays = archive()
    save(tmp_path / "a.npz", arrays)
    assert main(["view", str(tmp_path / "a.npz"), "--ply", str(tmp_path / "ply")]) == 0
    vertices, _ = read_ply(tmp_path / "ply" / "frame.points.ply")
    assert (vertices["place"] == arrays["points"]).all() and (vertices["label"] == arrays["point_labels"]).all()
    assert (vertices["color"] == np.array(COLORS)[arrays["point_labels"]]).all()
    vertices, faces = read_ply(tmp_path / "ply" / "frame.voxels.ply")
    assert len(faces) == 6 * len(vertices) / 8 > 0
    corners = vertices["place"][faces["corner"]].astype(float)
    middles = vertices["place"].reshape(-1, 8, 3).mean(1).repeat(6, axis=0)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((corners.mean(1) - middles) * normals).sum(1).min() > 0
