"""A rig file of a drive, from folders of images and a table of poses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional

import cv2
import numpy as np
import pytest
from rig_tools import camera, save

from tpvformer.cli import main
from tpvformer.data.rig.from_folders import write_drive
from tpvformer.data.rig.read import read_rig
from tpvformer.data.windows import find_windows
from tpvformer.errors import ConfigError, DataError

CAMERAS = (camera("front", size=(32, 20)), camera("rear", 180, size=(32, 20)))
FRAMES = 11
LIDAR = {"translation": [1.0, 0.0, 1.8], "rotation": [0.7071067811865476, 0, 0, -0.7071067811865476]}


def quaternion(yaw: float) -> List[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]  # w, x, y, z


def pose(i: int) -> np.ndarray:
    made, yaw = np.eye(4), 0.1 * i
    made[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    made[:3, 3] = 2.0 * i, 0.5 * i, 0.1
    return made


def row(i: int, order: str, time: Optional[float] = None) -> str:
    w, x, y, z = quaternion(0.1 * i)
    values = {"t": 100 + 0.25 * i if time is None else time, "x": 2.0 * i, "y": 0.5 * i, "z": 0.1}
    values.update(W=w, X=x, Y=y, Z=z)
    return (" " if order == TUM else ",").join(repr(values[letter]) for letter in order)


TUM, CSV = "txyzXYZW", "WXYZzyxt"
HEAD = "qw,qx,qy,qz,z,y,x,timestamp"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A calibration, and images whose numbers have no zeros in front: 2.jpg comes before 10.jpg."""
    save(tmp_path / "calibration.json", {"format": "tpvformer-rig-1", "cameras": list(CAMERAS), "lidar2ego": LIDAR})
    for one in CAMERAS:
        (tmp_path / "morning" / one["name"]).mkdir(parents=True)
        for i in range(FRAMES):
            picture = np.full((20, 32, 3), 10 * i, np.uint8)
            assert cv2.imwrite(str(tmp_path / "morning" / one["name"] / f"{i}.png"), picture)
    (tmp_path / "poses.txt").write_text("# TUM\n" + "\n".join(row(i, TUM) for i in range(FRAMES)) + "\n")
    (tmp_path / "poses.csv").write_text("\n".join([HEAD, *(row(i, CSV) for i in range(FRAMES))]) + "\n")
    return tmp_path


def drive(folder: Path, poses: str = "poses.txt", **more: Any) -> List[str]:
    return write_drive(
        folder / "calibration.json", folder / "morning", folder / poses, folder / "out" / "rig.json", **more
    )


@pytest.mark.parametrize("poses", ["poses.txt", "poses.csv"])
def test_frames_are_images_and_poses_in_order(folder: Path, poses: str) -> None:
    lines = drive(folder, poses)
    assert len(lines) == 1 and "rig.json: 11 frames of 2 cameras, 2.5 s, 20.6 m" in lines[0]
    records = read_rig(folder / "out" / "rig.json")
    for i, record in enumerate(records):
        assert record.scene == "morning" and record.token == f"morning-{i:06d}"
        assert record.timestamp == pytest.approx(100 + 0.25 * i)
        assert record.ego2global is not None and np.allclose(record.ego2global, pose(i))
        assert [Path(image).resolve() for image in record.images] == [
            (folder / "morning" / name / f"{i}.png").resolve() for name in record.camera_names
        ]
    assert find_windows(records, "lidar", 1, "rig") == [(), *((i,) for i in range(FRAMES - 1))]


def test_the_command_writes_what_predict_reads(folder: Path, capsys: Any) -> None:
    words = ["data", "drive", "--rig", str(folder / "calibration.json"), "--images", str(folder / "morning")]
    out = folder / "rig.json"
    more = ["--poses", str(folder / "poses.csv"), "--pose-of", "lidar", "--out", str(out)]
    assert main([*words, *more]) == 0 and read_rig(out)[0].scene == "morning"
    assert main([*words, *more, "--scene", "a"]) == 0
    assert "11 frames of 2 cameras" in capsys.readouterr().out
    assert main(["data", "check", "--rig", str(out)]) == 0
    records = read_rig(out)
    assert records[0].lidar2ego is not None
    for i, record in enumerate(records):
        assert record.ego2global is not None and record.scene == "a"
        assert np.allclose(record.ego2global @ record.lidar2ego, pose(i)), "the poses are the lidar's"


def test_poses_of_a_camera(folder: Path) -> None:
    drive(folder, pose_of="rear")
    records = read_rig(folder / "out" / "rig.json")
    camera2lidar = np.array(CAMERAS[1]["camera2lidar"])
    for i, record in enumerate(records):
        assert record.ego2global is not None and record.lidar2ego is not None
        assert np.allclose(record.ego2global @ record.lidar2ego @ camera2lidar, pose(i))
    with pytest.raises(
        ConfigError, match="poses are said to be of 'left'; expected ego, lidar or a camera: front, rear"
    ):
        drive(folder, pose_of="left")
    content = json.loads((folder / "calibration.json").read_text())
    del content["lidar2ego"]
    save(folder / "calibration.json", content)
    with pytest.raises(DataError, match="does not say where rear is on the vehicle"):
        drive(folder, pose_of="rear")


def test_a_gap_is_told(folder: Path) -> None:
    times = [100 + 0.25 * i + (4 if i > 5 else 0) for i in range(FRAMES)]
    (folder / "poses.txt").write_text("\n".join(row(i, TUM, time) for i, time in enumerate(times)))
    lines = drive(folder)
    assert len(lines) == 2 and lines[1].startswith(
        "morning-000006 is 4.25 s after the frame before it, more than 2.5 s"
    )


def lines_of(**changed: str) -> str:
    return "\n".join(changed.get(f"line{i}", row(i, TUM)) for i in range(FRAMES))


REFUSED = {
    "a jump": (lines_of(line3="100.75 900 0 0 0 0 0 1"), r"morning-000002 and morning-000003 .* are 89\d\.\d m apart"),
    "too few": (
        "\n".join(row(i, TUM) for i in range(5)),
        "has 5 poses, and .*front 11 images; expected a pose for each",
    ),
    "not later": (lines_of(line4=row(4, TUM, 100.1)), "line 5 has the time 100.100000 s, not later than 100.750000 s"),
    "no numbers": (
        lines_of(line2="a b c"),
        "line 3 is 'a b c'; expected 8 finite numbers, timestamp x y z qx qy qz qw",
    ),
    "not finite": (lines_of(line2="100.5 nan 0 0 0 0 0 1"), "line 3 is .*; expected 8 finite numbers"),
    "another order": (lines_of(line1="100.25 2 0 0 1 1 0 0"), "line 2 has a quaternion of length 1.41; expected 1"),
    "nanoseconds": (lines_of(line0="1.6e18 0 0 0 0 0 0 1"), "line 1 has the time 1.6e[+]18; expected seconds"),
    "other columns": ("t,x,y\n1,2,3\n", "its first line is t, x, y; expected CSV whose first line has the names"),
    "empty": ("# nothing\n", "is empty; expected CSV whose first line"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_tables_that_are_refused(folder: Path, kind: str) -> None:
    text, said = REFUSED[kind]
    (folder / "poses.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        drive(folder)
    assert not (folder / "out" / "rig.json").exists()


def test_images_that_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing.csv: cannot be read"):
        drive(folder, "nothing.csv")
    (folder / "morning" / "rear" / "7.png").unlink()
    with pytest.raises(DataError, match="camera rear has 10 images, front has 11; expected as many of each"):
        drive(folder)
    for path in (folder / "morning" / "rear").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="rear: holds no image"):
        drive(folder)
    (folder / "morning" / "rear").rmdir()
    with pytest.raises(DataError, match="rear: no such folder; expected the images of camera rear"):
        drive(folder)
