"""Rig files that cannot be used: each is refused in one sentence that names the file and the place in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rig_tools import THREE, Rig, changed, save

from tpvformer.data.formats import load_infos
from tpvformer.data.rig import json_file
from tpvformer.errors import DataError

RIG: Rig = {
    "format": "tpvformer-rig-1",
    "cameras": [*THREE],
    "frames": [
        {
            "token": "a",
            "images": {"front": "a.jpg", "left": "b.jpg", "right": "c.jpg"},
            "lidar": "a.bin",
            "labels": "a.l",
        },
        {"token": "b", "images": {"front": "a.jpg", "left": "b.jpg", "right": "c.jpg"}},
    ],
}
MIRROR = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
REFUSED = [
    ("format", "tpvformer-rig-2", r'format is "tpvformer-rig-2"; expected "tpvformer-rig-1"'),
    ("camras", [], "unknown key \"camras\"; did you mean 'cameras'?"),
    ("cameras", [], r"cameras is \[\]; expected a list of cameras, at least one"),
    ("cameras", {"a": 1}, "expected a list of cameras"),
    ("cameras.0", 3, r"cameras\[0\] is 3; expected an object with name, width"),
    ("cameras.0.nmae", "x", "unknown key \"nmae\"; did you mean 'name'?"),
    ("cameras.0.name", "", "expected a text that is not empty"),
    ("cameras.0.name", "left", "two cameras have the name left"),
    ("cameras.0.width", 77.5, r"cameras\[0\] \(front\): width is 77.5; expected a whole number from 1 to 16384"),
    ("cameras.0.width", True, "width is true"),
    ("cameras.0.height", 0, "height is 0"),
    ("cameras.0.height", 10**30, "height is 1e\\+30"),
    ("cameras.0.intrinsics", [[60, 0, 38], [0, 60, 22]], "intrinsics is .*; expected 3x3 finite numbers"),
    ("cameras.0.intrinsics.0.0", "60", "expected 3x3 finite numbers"),
    ("cameras.0.intrinsics.0.0", 10**400, "expected 3x3 finite numbers"),
    ("cameras.0.intrinsics.0.0", 0, "with fx and fy above 0"),
    ("cameras.0.intrinsics.1.1", -60, "with fx and fy above 0"),
    ("cameras.0.intrinsics.2.2", 2, r"expected \[\[fx, s, cx\]"),
    (
        "cameras.0.intrinsics",
        [[0.8, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]],
        "focal lengths 0.8 and 0.8, which are no pixels",
    ),
    ("cameras.0.intrinsics", [60, 60, 38, 22], "expected 3x3 finite numbers"),
    ("cameras.0.camera2lidar.0.3", 1500, "front lies 1500 m away from the lidar; expected metres on one vehicle"),
    ("cameras.0.camera2lidar", {"translation": [0, 0, 0], "rotation": [90, 0, 0]}, "expected a quaternion .* angles"),
    ("cameras.0.camera2lidar", [0, 1, 0, 0] * 4, "last row"),
    ("cameras.0.distortion", {"model": "fisheye", "coefficients": [0, 0, 0, 0]}, "distortion is not zero"),
    ("cameras.0.intrinsics.0.0", 1e60, "no projection that can be inverted"),
    ("cameras.0.camera2lidar", [1, 2], "camera2lidar is .1, 2.; expected 4x4 finite numbers"),
    ("cameras.0.camera2lidar", "x", "expected a 4x4 matrix, or an object with translation and rotation"),
    ("cameras.0.camera2lidar", MIRROR, r"is a mirror, not a rotation \(determinant -1\)"),
    ("cameras.0.camera2lidar.0.0", 1.1, r"is no rotation \(R R\^T misses 1 by 0.21\)"),
    ("cameras.0.camera2lidar.3", [0, 0, 1, 0], r"last row \[0.0, 0.0, 1.0, 0.0\]"),
    ("cameras.0.camera2lidar", {"translation": [0, 0, 0]}, "has no 'rotation'"),
    ("cameras.0.camera2lidar", {"translation": [0, 0, 0], "rotation": [1, 1, 0, 0]}, "expected a unit quaternion"),
    ("cameras.0.camera2lidar", MIRROR[:3], r"is a mirror, not a rotation"),
    ("cameras.0.camera2lidar", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "expected 3x4 finite numbers"),
    (
        "cameras.0.camera2lidar",
        {"translation": [0, 0, 0], "rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]},
        "no rotation",
    ),
    ("cameras.0.camera2lidar", {"translation": [0, 0, 0], "rotation": [[1, 0], [0, 1]]}, "expected 3x3 finite numbers"),
    ("cameras.0.camera2lidar", {"translation": [0, 0, 0], "rotation": [r[:3] for r in MIRROR[:3]]}, "is a mirror"),
    ("cameras.0.camera2ego", MIRROR, "has camera2ego and camera2lidar; expected one of the two"),
    ("cameras.0.distortion", [0, -0.3], "distortion is not zero, .* undistort the images"),
    ("cameras.0.distortion", "fisheye", "distortion is not zero"),
    ("cameras.0.distortion", {"k1": 0.1}, "distortion is not zero"),
    ("lidar2ego", MIRROR, "rig.json: lidar2ego: its 3x3 part is a mirror"),
    ("lidar_columns", 2, "lidar_columns is 2; expected 3 or more"),
    ("frames", [], "frames is .*; expected a list of frames"),
    ("frames.0.token", "b", "two frames have the token b"),
    ("frames.0.token", "../a", "expected a text that can be a file's name"),
    ("frames.0.token", "a\nb", "expected a text that is not empty and can be printed"),
    ("frames.0.images.rihgt", "c.jpg", "unknown key \"rihgt\"; did you mean 'right'?"),
    ("frames.0.images.left", 7, "images: left is 7; expected a text"),
    ("frames.1.labels", "b.l", r"frames\[1\] \(token b\): has labels but no lidar"),
    ("frames.1.ego2global", [0], "frames.1.: ego2global is .0.; expected 4x4"),
]


@pytest.mark.parametrize(("where", "value", "text"), REFUSED)
def test_refused(tmp_path: Path, where: str, value: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as err:
        load_infos(save(tmp_path / "rig.json", changed(RIG, where, value)))
    assert str(err.value).startswith(str(tmp_path / "rig.json"))
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        (
            "front.yaml",
            b"image_width: 96\ncamera_matrix:\n  rows: 3\n",
            "YAML file of one camera's intrinsics, as ROS'",
        ),
        ("rig.yml", b"cameras: []\n", "is a YAML file"),
        ("notes.txt", b"front camera: 70 px\n", "is a text file"),
        ("drive.mp4", b"\0\0\0\x18ftypmp42" + bytes(50), "is an MP4 or QuickTime video.*written as images first"),
        ("drive.mov", b"moov", "is a video"),
        ("drive.bag", b"#ROSBAG V2.0\n", "is a ROS bag"),
        ("drive.db3", b"SQLite format 3\0", "is an SQLite database, as ROS 2"),
        ("drive.mcap", b"\x89MCAP0\r\n", "is an MCAP recording"),
        ("CAM_FRONT.jpg", b"\xff\xd8\xff\xe0", "is a JPEG image"),
        ("page", b"<!DOCTYPE html>", "is a web page"),
        ("robot.urdf", b"<robot/>", "is an XML file"),
    ],
)
def test_other_kinds_of_file_are_called_what_they_are(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(data)
    readers: Any = (load_infos, json_file.read_json)
    for read in readers:
        with pytest.raises(DataError, match=rf"{name}: is .*docs/rig.md shows") as err:
            read(tmp_path / name)
        assert "\n" not in str(err.value) and "pickle" not in str(err.value)
    with pytest.raises(DataError, match=text):
        load_infos(tmp_path / name)


def test_what_is_missing_is_named_and_the_rest_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "rig.json"
    for where, text in (
        ("format", "has no 'format'"),
        ("cameras.1.width", r"cameras\[1\] has no 'width'"),
        ("cameras.1.camera2lidar", "neither camera2ego nor camera2lidar"),
        ("frames.0.images.left", r"frames\[0\] \(token a\): images has no 'left'; expected one image of each camera"),
    ):
        with pytest.raises(DataError, match=text):
            load_infos(save(path, changed(RIG, where, remove=True)))
    fine = changed(changed(RIG, "cameras.0.distortion", [0.0, 0, None]), "frames.1.scene", "drive")
    records = load_infos(save(path, fine))
    assert [record.scene for record in records] == ["", "drive"]
    assert records[0].scan == str(tmp_path / "a.bin") and records[1].scan == ""


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "is no JSON that can be used"),
        (b'{"format": "tpvformer-rig-1", "cameras": [', "is no JSON that can be used"),
        (b"\xff\xfe{}", "is no JSON that can be used"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b'{"format": NaN, "cameras": []}', "NaN is no number"),
        (b'{"format": "x", "format": "y"}', 'the key "format" stands twice'),
        (b'{"format": "\\ud800", "cameras": []}', "is no JSON that can be used"),
        (b"7" * 1_000_000, "expected an object with format, cameras"),
        (b'{"infos": [], "metadata": {}}', "is infos as JSON, which are read as .pkl or .safetensors; expected a rig"),
        (b'[{"token": "a", "cams": {}}]', "is infos as JSON"),
        (b'[{"token": "a", "translation": []}]', "is JSON of another kind; expected a rig file, .*docs/rig.md"),
        (b"[]", r"is \[\]; expected an object"),
    ],
)
def test_hostile_json_is_one_sentence(tmp_path: Path, raw: bytes, text: str) -> None:
    path = tmp_path / "rig.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=text) as err:
        load_infos(path)
    assert len(str(err.value)) < len(str(path)) + 300 and "\n" not in str(err.value)


def test_a_file_that_is_absent_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"none.json: cannot be read \(No such file"):
        load_infos(tmp_path / "none.json")
    monkeypatch.setattr(json_file, "LARGEST_FILE", 10)
    with pytest.raises(DataError, match="bytes, more than 10; split its frames"):
        load_infos(save(tmp_path / "rig.json", RIG))


def test_random_changes_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever stands where something else belongs: records, or a DataError."""
    rng = np.random.RandomState(0)
    values: list = [None, True, -1, 0, 1e308, 10**400, "", "x", [], {}, [[]], {"translation": 1}, [[1, 2], 3], "\x00"]
    places = list(leaves(RIG, ""))
    for _ in range(400):
        rig = RIG
        for _ in range(rng.randint(1, 3)):
            try:
                rig = changed(rig, places[rng.randint(len(places))], values[rng.randint(len(values))])
            except (KeyError, IndexError, TypeError):
                continue  # the first change took the place away
        try:
            assert load_infos(save(tmp_path / "rig.json", rig))
        except DataError as err:
            assert "\n" not in str(err)


def leaves(node: Any, where: str) -> Any:
    """The dotted places of a tree."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield f"{where}.{key}".lstrip(".")
        yield from leaves(value, f"{where}.{key}".lstrip("."))
