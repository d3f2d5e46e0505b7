"""The commands that a rig of one's own is given to: predict, data check, check-geometry."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import List

import cv2
import numpy as np
import pytest
import torch
from engine_tools import tiny_config, tiny_model, write_config
from rig_tools import THREE, camera, write_rig
from tiny_nuscenes import write_tiny

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.config import DataConfig
from tpvformer.predict.frames import PARTS, FramePredictions, time_split

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture()
def words(tmp_path: Path) -> List[str]:
    """Configuration and weights of a tiny model."""
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    file = write_config(tmp_path / "tiny.py", tiny_config(DataConfig(workers=0)))
    return ["--py-config", str(file), "--ckpt-path", str(tmp_path / "w.pth"), "--device", "cpu"]


def test_predict_writes_every_frame_of_a_rig(tmp_path: Path, words: List[str], capsys) -> None:
    rig, out = write_rig(tmp_path, THREE, (0, 40), labelled=False), tmp_path / "out"
    assert main(["predict", *words, "--rig", str(rig), "--out", str(out)]) == 0
    precision, *said, split = capsys.readouterr().out.splitlines()
    assert precision == "precision fp32 (train.precision=fp32)"
    number = r"\d+\.\d\d"
    parts = ", ".join(f"{part} {number}" for part in ("decode", "preprocess", "model", "postprocess"))
    assert re.fullmatch(f"2 frames, {number} s a frame: {parts}; first frame {number} s", split)
    assert [line.split(", mean")[0] for line in said] == [
        f"{out}/frame0.npz: 6x5x4 voxels, 0 points",
        f"{out}/frame1.npz: 6x5x4 voxels, 40 points",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["frame0.npz", "frame1.npz"]
    common = ["camera_names", "class_names", "confidence", "frame", "image_0", "image_1", "image_2", "image_sizes"]
    common += ["lidar2grid", "lidar2img", "number", "pc_range", "scene", "token", "voxels"]
    with np.load(out / "frame0.npz", allow_pickle=False) as file:
        assert sorted(file.files) == common
        assert file["voxels"].dtype == np.uint8 and file["voxels"].shape == (6, 5, 4)
        assert file["confidence"].dtype == np.float16 and file["confidence"].shape == (6, 5, 4)
        assert (file["confidence"] >= 1 / 17 - 1e-3).all() and (file["confidence"] <= 1).all()
        assert file["pc_range"].tolist() == [-51.2, -51.2, -5, 51.2, 51.2, 3]
        assert str(file["frame"]) == "lidar" and file["class_names"][4] == "car"
    with np.load(out / "frame1.npz", allow_pickle=False) as file:
        assert sorted(file.files) == sorted([*common, "points", "point_labels", "scanned"])
        assert file["points"].shape == (40, 3) and file["point_labels"].shape == (40,)
        assert file["point_labels"].dtype == np.uint8


def test_a_folder_stands_for_its_rig_file(tmp_path: Path, words: List[str], capsys) -> None:
    write_rig(tmp_path, THREE, (40,))
    assert main(["predict", *words, "--rig", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "frame0.npz").exists()
    assert main(["data", "check", "--rig", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["check-geometry", "--rig", str(tmp_path), "--out", str(tmp_path / "g.png")]) == 0
    assert "coloured by class" in capsys.readouterr().out
    (tmp_path / "rig.json").unlink()
    assert main(["predict", *words, "--rig", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/rig.json: cannot be read (No such file" in capsys.readouterr().err


def test_predict_chooses_frames_and_sets(tmp_path: Path, words: List[str], capsys) -> None:
    cfg, out = write_tiny(tmp_path / "set"), tmp_path / "out"
    more = ["--set", f"data.root={cfg.root}", "--set", f"data.val_infos={cfg.val_infos}", "--out", str(out)]
    assert main(["predict", *words, *more, "--index", "2"]) == 0
    assert [path.name for path in out.iterdir()] == ["sample2.npz"]
    capsys.readouterr()
    assert main(["predict", *words, *more, "--index", "3"]) == 2
    assert "index is 3; " in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["predict", *words, *more, "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    for more in (["--root", "set"], ["--index", "one"]):
        with pytest.raises(SystemExit):
            main(["predict", *words, "--rig", "rig.json", *more])


def test_the_time_of_each_frame_is_split(tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    config, rig = tiny_config(DataConfig(workers=0)), str(write_rig(tmp_path, THREE, (0, 40), labelled=False))
    frames = FramePredictions(config, tmp_path / "w.pth", tmp_path / "out", rig, device="cpu")
    began = time.perf_counter()
    assert len(frames) == len(list(frames)) == 2
    whole = time.perf_counter() - began
    assert [tuple(seconds) for seconds in frames.seconds] == [PARTS, PARTS]
    assert all(value > 0 for seconds in frames.seconds for value in seconds.values())
    assert sum(sum(seconds.values()) for seconds in frames.seconds) <= whole


def test_a_result_knows_its_time(tmp_path: Path) -> None:
    rig, model = write_rig(tmp_path, THREE), TPVFormer(tiny_config(DataConfig()), device="cpu")
    began = time.perf_counter()
    result = model.predict({one["name"]: tmp_path / "images" / f"{one['name']}.jpg" for one in THREE}, rig)
    assert tuple(result.seconds) == PARTS and min(result.seconds.values()) > 0
    assert sum(result.seconds.values()) <= time.perf_counter() - began
    assert result.label([[0, 10, 0]]).shape == (1,) and tuple(result.seconds) == PARTS


def test_the_first_frame_is_told_apart() -> None:
    first, later = dict(zip(PARTS, (1.0, 2.0, 3.0, 4.0))), dict(zip(PARTS, (0.1, 0.2, 1.0, 0.4)))
    other = {**later, "model": 3.0}
    split = "decode 0.10, preprocess 0.20, model 2.00, postprocess 0.40"
    assert time_split([first, later, other]) == f"3 frames, 2.70 s a frame: {split}; first frame 10.00 s"
    split = "decode 1.00, preprocess 2.00, model 3.00, postprocess 4.00"
    assert time_split([first]) == f"1 frame, 10.00 s including one-time work: {split}"


def test_on_a_terminal_there_is_a_bar_below_the_lines(tmp_path: Path, words: List[str], capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    rig = write_rig(tmp_path, THREE, (0, 40), labelled=False)
    assert main(["predict", *words, "--rig", str(rig), "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr()
    assert said.err.count("\r\x1b[2K") >= 2 and "predict" in said.err and "/2" in said.err
    assert said.out.count("\n") == 4 and "\x1b" not in said.out


def test_predict_refuses_what_it_cannot_do_in_one_line(tmp_path: Path, words: List[str], capsys) -> None:
    many = write_rig(tmp_path, [camera(f"c{i}", 45 * i) for i in range(8)])
    for rig, text in ((many, "model.num_cams is 6, but the cameras of"), (tmp_path / "none.json", "cannot be read")):
        assert main(["predict", *words, "--rig", str(rig), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert text in said and said.startswith("tpvformer predict: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_check_prints_each_camera_and_finds_no_fault(tmp_path: Path, capsys) -> None:
    rig = write_rig(tmp_path, THREE, (0, 40))
    assert main(["data", "check", "--rig", str(rig)]) == 0
    said = capsys.readouterr().out
    assert "  left               96x64      embedding 1, z -0.30 m, looks 90 degrees left of forward and 0 up" in said
    assert said.count("% of the grid") == 4
    assert "2 frames: 6 images, 1 scans and 1 label files looked at\nno faults\n" in said


def test_check_measures_the_share_of_the_grid(tmp_path: Path, capsys) -> None:
    """A camera of 90 degrees in the middle of a square grid sees a quarter of the ground plane; four see it all."""
    ring = [camera(f"c{i}", 90 * i, (200, 200), 100.0) for i in range(4)]
    for one in ring:
        for row in range(3):
            one["camera2lidar"][row][3] = 0.0
    assert main(["data", "check", "--rig", str(write_rig(tmp_path, ring))]) == 0
    shares = [float(line.split("sees ")[1].split(" %")[0]) for line in capsys.readouterr().out.splitlines()[1:5]]
    assert shares == pytest.approx([25.0] * 4, abs=0.6)  # what is within 5 m below and 3 m above is steeper than 45


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (lambda folder: (folder / "images" / "0-left.jpg").unlink(), "images", "cannot be read (No such file"),
        (lambda folder: (folder / "images" / "0-left.jpg").write_bytes(b"\xff\xd8"), "images", "no whole image"),
        (
            lambda folder: cv2.imwrite(str(folder / "images" / "0-left.jpg"), np.zeros((9, 9, 3), np.uint8)),
            "images",
            "is 9x9 pixels, its camera says 96x64",
        ),
        (lambda folder: (folder / "1.bin").write_bytes(b"123"), "scans", "has 3 bytes"),
        (lambda folder: (folder / "1.bin").unlink(), "scans", "cannot be read (No such file"),
        (lambda folder: (folder / "1.label.bin").write_bytes(b"1"), "labels", "holds 1 labels for the 40 points"),
        (lambda folder: (folder / "1.label.bin").unlink(), "labels", "is missing"),
        (lambda folder: (folder / "rig.json").write_text("{}"), "rig", "is JSON of another kind"),
    ],
)
def test_check_names_each_fault(tmp_path: Path, capsys, change, kind: str, text: str) -> None:
    rig = write_rig(tmp_path, THREE, (0, 40))
    change(tmp_path)
    assert main(["data", "check", "--rig", str(rig)]) == 1
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith(f"{kind}: ")]
    assert text in line and said.endswith("1 faults\n")


def test_check_remarks_on_what_is_likely_wrong(tmp_path: Path, capsys) -> None:
    one = camera("CAM_FRONT", 90)
    one["intrinsics"][0][2] = 800
    rig = write_rig(tmp_path, [one])
    assert main(["data", "check", "--rig", str(rig)]) == 0
    said = capsys.readouterr().out
    assert "note: CAM_FRONT: its principal point (800, 22) lies outside of 77x45 pixels" in said
    assert "note: CAM_FRONT looks 90 degrees away from where nuScenes' looks" in said
    for wrong in (["--rig", str(tmp_path / "none.json")], []):
        assert main(["data", "check", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_geometry_draws_the_ground_where_there_is_no_lidar(tmp_path: Path, capsys) -> None:
    """The line straight ahead is green, in the middle of a camera that looks that way; the horizon is at its height."""
    row = [camera(name, turn, (640, 360), 300.0) for name, turn in (("front", 0), ("left", -90), ("right", 90))]
    row[0]["camera2lidar"][0][3] = 0.0
    out, rig = tmp_path / "g.png", write_rig(tmp_path, row)
    cv2.imwrite(str(tmp_path / "images" / "front.jpg"), np.zeros((360, 640, 3), np.uint8))
    assert main(["check-geometry", "--rig", str(rig), "--out", str(out)]) == 0
    assert "lines on the ground every 10 m" in capsys.readouterr().out
    picture = cv2.imread(str(out)).astype(int)
    assert picture.shape == (360, 1928, 3)
    blue, green, red = picture[340, 316:325].max(0)
    assert green > 200 and green > blue + 80 and green > red + 60
    row = 180 + round(300 * (1.84023 - 0.3) / 9.8)  # the line 10 m ahead of the lidar
    assert picture[row - 2 : row + 3, 100].max() > 150
    assert picture[178:183, 40].max() > 150 and picture[100:170, 40:600].max() == 0


def test_geometry_paints_the_points_of_a_rig(tmp_path: Path, capsys) -> None:
    for labelled, colours in ((True, "coloured by class"), (False, "coloured by distance")):
        rig = write_rig(tmp_path, THREE, (40,), labelled)
        assert main(["check-geometry", "--rig", str(rig), "--out", str(tmp_path / "g.png")]) == 0
        said = capsys.readouterr().out
        assert "sample frame0: 40 points, 3 cameras" in said and colours in said
    assert main(["check-geometry", "--rig", str(rig), "--augment", "--out", str(tmp_path / "g.png")]) == 0
