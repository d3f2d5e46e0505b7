"""The data doctor: a whole set has no fault, and every fault put in is named with its token."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any, Callable, List

import cv2
import numpy as np
import pytest
from box_tools import infos_of

from tpvformer.cli import main
from tpvformer.data.check.files import image_fault, jpeg_size
from tpvformer.untrusted.pickle import load_pickle

VERSION = "v1.0-mini"
REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))


def table(root: Path, name: str) -> List[dict]:
    return json.loads((root / VERSION / f"{name}.json").read_text())


def edit(root: Path, name: str, change: Callable[[List[dict]], Any]) -> None:
    rows = table(root, name)
    change(rows)
    (root / VERSION / f"{name}.json").write_text(json.dumps(rows))


def row_of(root: Path, channel: str, number: int = 0) -> dict:
    return [row for row in table(root, "sample_data") if f"/{channel}/" in row["filename"]][number]


def check(root: Path, *more: str) -> int:
    return main(["data", "check", "--root", str(root), "--version", VERSION, *more])


@pytest.mark.parametrize("more", [(), ("--whole",), ("--splits", "mini_val")])
def test_a_whole_set_has_no_fault(whole, capsys, more):
    assert check(whole, *more) == 0
    said = capsys.readouterr().out
    samples = 4 if "--splits" in more else 6
    assert f"{samples} samples: {samples * 6} images, {samples} scans and {samples} label files looked at" in said
    assert "samples/CAM_FRONT/                       6         6\n" in said
    assert said.endswith("no faults\n")


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def hole(data: bytes) -> bytes:
    """Zeros where the file system lost a piece."""
    middle = 2 * len(data) // 3
    return data[: middle - 100] + bytes(200) + data[middle + 100 :]


def small_picture(_: bytes) -> bytes:
    return cv2.imencode(".jpg", np.zeros((30, 64, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("channel", "change", "more", "text"),
    [
        ("CAM_BACK", rewrite(lambda data: data[:-300]), (), "images: sample {token}: .* no end marker"),
        ("CAM_BACK", rewrite(lambda data: b""), (), "images: sample {token}: .* is no whole image .0 bytes"),
        ("CAM_BACK", rewrite(lambda data: b"<html>404</html>"), (), "images: sample {token}: .* is no whole image"),
        ("CAM_BACK", rewrite(small_picture), (), "images: sample {token}: .* is 64x30 pixels, .* says 64x36"),
        ("CAM_BACK", rewrite(lambda data: data[:300] + b"\xff\xd9"), ("--whole",), "images: sample {token}: "),
        ("CAM_BACK", rewrite(hole), ("--whole",), "images: sample {token}: .* is damaged .zeros from byte"),
        ("CAM_BACK", Path.unlink, (), "files: sample {token}: .*CAM_BACK.* is missing"),
        ("LIDAR_TOP", Path.unlink, (), "files: sample {token}: .*LIDAR_TOP.* is missing"),
        ("LIDAR_TOP", rewrite(lambda data: data[:-7]), (), "scans: sample {token}: .* the file is cut short"),
        ("LIDAR_TOP", rewrite(lambda data: b""), (), "scans: sample {token}: .* has 0 bytes"),
        ("LIDAR_TOP", rewrite(lambda data: data[:-20]), (), "labels: sample {token}: .* labels for the .* points"),
        ("LIDAR_TOP", rewrite(lambda d: b"\0\0\xc0\x7f" + d[4:]), ("--whole",), "scans: sample {token}: .* not finite"),
    ],
)
def test_a_broken_file_is_named(root, capsys, channel, change, more, text):
    row = row_of(root, channel)
    change(root / row["filename"])
    assert check(root, *more) == 1
    said = capsys.readouterr()
    assert re.search("(?m)^" + text.format(token=row["sample_token"]), said.out), said.out
    assert said.out.endswith("1 faults\n")
    assert [line for line in said.err.splitlines() if "CPU kernel" not in line] == []  # compiled once a machine


@pytest.mark.parametrize(
    ("change", "more", "text"),
    [
        (rewrite(lambda data: data[:-1]), (), "labels for the"),
        (Path.unlink, (), "cannot be read (No such file"),
        (rewrite(lambda data: data[:-1] + b"\x20"), ("--whole",), "holds label 32"),
    ],
)
def test_a_broken_label_file_is_named(root, capsys, change, more, text):
    row = row_of(root, "LIDAR_TOP", 1)
    change(root / "lidarseg" / VERSION / f"{row['token']}_lidarseg.bin")
    assert check(root, *more) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("labels: ")]
    assert row["sample_token"] in line
    assert text in line


def first(rows: List[dict], **values: Any) -> None:
    rows[0].update(values)


TABLE_FAULTS = [
    (
        "calibrated_sensor",
        lambda rows: first(rows[1:], camera_intrinsic=[[0, 0, 1], [0, 9, 1], [0, 0, 1]]),
        "CAM_FRONT has",
    ),
    ("calibrated_sensor", lambda rows: first(rows[1:], camera_intrinsic=[]), "CAM_FRONT has the camera_intrinsic []"),
    ("calibrated_sensor", lambda rows: first(rows, translation=[1, 2, float("nan")]), "no usable pose"),
    ("calibrated_sensor", lambda rows: rows.pop(1), "has no calibration"),
    ("calibrated_sensor", lambda rows: rows.append(rows[0]), "two rows have the token"),
    ("calibrated_sensor", lambda rows: first(rows, sensor_token="none"), "no sensor none"),
    ("ego_pose", lambda rows: rows.pop(0), "is not in"),
    ("ego_pose", lambda rows: rows.append(rows[0]), "two rows have the token"),
    ("ego_pose", lambda rows: first(rows, rotation=[0, 0, 0, 0]), "no usable pose"),
    ("ego_pose", lambda rows: first(rows, rotation="abcd"), "not list"),
    ("sample_data", lambda rows: rows.pop(0), "no key frame of"),
    ("sample_data", lambda rows: rows.append({**rows[0], "token": "x"}), "two key frames of"),
    ("sample", lambda rows: rows.append({**rows[0], "token": "x"}), "no key frame of"),
    ("sample", lambda rows: first(rows, scene_token="none"), "its scene none"),
    ("sample", lambda rows: rows.clear(), "no sample of the scenes"),
    ("lidarseg", lambda rows: rows.pop(0), "no labels of its lidar file"),
]


@pytest.mark.parametrize(("name", "change", "text"), TABLE_FAULTS)
def test_a_broken_table_is_named(root, capsys, name, change, text):
    edit(root, name, change)
    assert check(root) == 1
    said = capsys.readouterr()
    assert text in said.out
    assert said.err == ""


@pytest.mark.parametrize("name", ["sample_data", "ego_pose", "scene", "calibrated_sensor"])
@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: '{"a": 1}', None]
)
def test_a_damaged_or_missing_table_is_one_line(root, capsys, name, damage):
    path = root / VERSION / f"{name}.json"
    path.unlink() if damage is None else path.write_text(damage(path.read_text()))
    assert check(root) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tables: ")]
    assert len(lines) == 1
    assert f"{name}.json" in lines[0]


def test_a_missing_archive_is_guessed_and_long_lists_are_cut(root, capsys):
    for row in table(root, "sample_data")[:14]:  # the first scene
        (root / row["filename"]).unlink()
    (root / "samples" / "CAM_BACK" / "stray.jpg").touch()
    assert check(root, "--limit", "2") == 1
    said = capsys.readouterr().out
    assert "note: no key-frame file of 1 whole scenes is there (scene-0103): most likely an archive v1.0-mini " in said
    assert "samples/CAM_BACK/                        6         4  2 missing, 1 not in the tables" in said
    assert "files: 12 more, which --limit 14 lists" in said
    assert said.count("files: sample") == 2
    (root / table(root, "sample_data")[-1]["filename"]).unlink()
    (root / VERSION / "lidarseg.json").unlink()
    (root / VERSION / "attribute.json").unlink()
    assert check(root) == 1
    said = capsys.readouterr().out
    assert "note: 1 scenes are there in part (scene-0061; missing in " in said
    assert "lidarseg.json is missing; it is part of the archive nuScenes-lidarseg-mini-v1.0" in said
    assert "note: no boxes: attribute missing among the tables: only detection and nuscenes-devkit need them" in said


@pytest.mark.parametrize(
    "wrong",
    [
        ["--root", "/nowhere", "--version", VERSION],
        ["--version", "v1.0-trainval"],
        ["--version", VERSION, "--splits", "val"],
        ["--version", VERSION, "--split", "tests"],
        ["--version", VERSION, "--paint", "nothing"],
    ],
)
def test_wrong_arguments_are_one_line_and_2(whole, capsys, wrong):
    assert main(["data", "check", "--root", str(whole), *wrong]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tpvformer data: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_the_version_is_found(whole, tmp_path, capsys):
    assert main(["data", "check", "--root", str(whole), "--splits", "mini_val"]) == 0
    found = capsys.readouterr().out
    assert check(whole, "--splits", "mini_val") == 0
    assert capsys.readouterr().out == found
    for root, text in (
        (tmp_path, f"--root {tmp_path} holds no table folder such as v1.0-mini with sample_data.json in it"),
        (tmp_path / "none", f"--root {tmp_path / 'none'} is no folder; name the one that holds samples/"),
    ):
        for action in ("check", "infos"):
            assert main(["data", action, "--root", str(root)]) == 2
            said = capsys.readouterr().err
            assert said.startswith("tpvformer data: ") and text in said and said.count("\n") == 1
    for version in ("v1.0-mini", "v1.0-trainval"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "sample_data.json").write_text("[]")
    assert main(["data", "check", "--root", str(tmp_path)]) == 2
    assert "holds the table folders v1.0-mini, v1.0-trainval; choose one with --version" in capsys.readouterr().err


def test_paint(whole, tmp_path, capsys):
    token = table(whole, "sample")[3]["token"]
    out = tmp_path / "deep" / "points.png"
    assert check(whole, "--paint", token, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert f"sample {token}: " in said
    assert f"{out}: coloured by class" in said
    assert cv2.imread(str(out)).shape == (724, 1928, 3)
    assert check(whole, "--paint", token, "--out", "/proc/none/a.png") == 2


@pytest.mark.skipif(
    not os.environ.get("TPVFORMER_REAL_DATA") or not (REAL / "tables").is_dir(),
    reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real",
)
def test_a_real_frame(tmp_path, capsys):
    """The tables know two samples; the files of one are there, and there are no labels."""
    (tmp_path / "v1.0-trainval").symlink_to(REAL / "tables")
    for path in (REAL / "sample").glob("*__*"):
        folder = tmp_path / "samples" / path.name.split("__")[1]
        folder.mkdir(parents=True)
        (folder / path.name).symlink_to(path)
    command = ["data", "check", "--root", str(tmp_path), "--version", "v1.0-trainval"]
    assert main([*command, "--whole", "--splits", "train"]) == 1
    said = capsys.readouterr().out
    assert "1 samples: 6 images, 1 scans and 0 label files looked at (read to the end)" in said
    assert said.endswith("1 faults\n")
    assert "labels: " in said
    assert main(command) == 1
    said = capsys.readouterr().out
    assert said.count("files: sample fd8420396768425eabec9bdddf7e64b6: ") == 7
    assert "note: no key-frame file of 1 whole scenes is there (scene-0003)" in said
    expected = json.loads((REAL / "sample" / "projection_counts.json").read_text())
    out = tmp_path / "points.png"
    assert main([*command, "--paint", "ca9a282c9e77460f8360f564131a8af5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for name, count in expected["points_in_image"].items():
        assert f"{name:<16} {count:>6} points" in said
    assert "coloured by distance" in said


def test_jpeg_sizes_and_other_formats(tmp_path):
    picture = np.zeros((36, 64, 3), np.uint8)
    assert jpeg_size(cv2.imencode(".jpg", picture)[1].tobytes()) == (64, 36)
    assert jpeg_size(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()) == (64, 36)
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\0\x11", b"\x89PNG"):
        assert jpeg_size(data) is None
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    assert image_fault(tmp_path / "a.png", "t", (64, 36), False) is None
    assert "is 64x36 pixels" in (image_fault(tmp_path / "a.png", "t", (64, 40), False) or "")


BOX_FAULTS = [
    (lambda rows: rows[0].update(size=[1, 0, 1]), "boxes: .*row {token} .* has the size .1, 0, 1."),
    (lambda rows: rows[0].update(translation=[0, 0, float("nan")]), "boxes: .*row {token} has no usable pose"),
    (lambda rows: [r.update(translation=[9e3, 0, 0]) for r in rows[:1]], "boxes: .* a box lies .* m from the lidar"),
    (
        lambda rows: [r.update(size=[r["size"][1], r["size"][0], r["size"][2]]) for r in rows],
        "boxes: .*lidar points lie",
    ),
]


@pytest.mark.parametrize(("change", "text"), BOX_FAULTS)
def test_damaged_annotations_are_named(root, capsys, change, text):
    token = table(root, "sample_annotation")[0]["token"]
    edit(root, "sample_annotation", change)
    assert check(root) == 1
    said = capsys.readouterr().out
    assert re.search("(?m)^" + text.format(token=token), said), said
    assert said.endswith("1 faults\n")


def test_boxes_of_an_info_file_are_checked(root, tmp_path, capsys):
    path = infos_of(root, tmp_path / "infos")
    asked = ["data", "check", "--infos", str(path), "--root", str(root)]
    assert main(asked) == 0
    assert re.search("note: [0-9]+ boxes of the classes of detection in 6 samples", capsys.readouterr().out)
    content = load_pickle(path)
    for info in content["infos"]:
        info["gt_boxes"][:, 6] += 1.57
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert main(asked) == 1
    assert (
        "is the yaw, the order of length and width, or the frame of the boxes another one?" in capsys.readouterr().out
    )
    content["infos"][3]["gt_boxes"][0, 3] = np.nan
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert main(asked) == 1
    assert re.search(r"(?m)^boxes: .*record 3 .* box 0 has the size", capsys.readouterr().out)


def test_a_box_far_away_is_a_note(root, capsys):
    def move(rows):
        rows[0]["translation"][0] += 400.0

    edit(root, "sample_annotation", move)
    assert check(root) == 0
    assert "note: sample" in (said := capsys.readouterr().out)
    assert "m from the lidar" in said


def test_a_set_without_annotations_has_no_fault(root, capsys):
    edit(root, "sample_annotation", list.clear)
    assert check(root) == 0
    assert "note: no boxes: sample_annotation.json has no rows, as in the test set" in capsys.readouterr().out
