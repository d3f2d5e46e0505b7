"""data check: cameras that look elsewhere than their names say, lie below the ground, or stand in another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import pytest
from rig_tools import Rig, camera, write_rig
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.data.check.directions import NUSCENES_AZIMUTHS, azimuth_of
from tpvformer.data.nuscenes.infos.cameras import CAMERA_ORDER
from tpvformer.data.street.write import write_dataset
from tpvformer.geometry import quaternions, rotations

VERSION = "v1.0-mini"
# translation and quaternion (w, x, y, z) of one log of nuScenes, two digits less
NUSCENES = {
    "CAM_FRONT": ([1.7008, 0.0159, 1.5110], [0.4998, -0.5030, 0.4998, -0.4974]),
    "CAM_FRONT_RIGHT": ([1.5508, -0.4934, 1.4957], [0.2060, -0.2027, 0.6825, -0.6714]),
    "CAM_FRONT_LEFT": ([1.5239, 0.4946, 1.5093], [0.6757, -0.6736, 0.2121, -0.2112]),
    "CAM_BACK": ([0.0283, 0.0035, 1.5791], [0.5038, -0.4974, -0.4942, 0.5045]),
    "CAM_BACK_LEFT": ([1.0357, 0.4848, 1.5910], [0.6924, -0.7032, -0.1165, 0.1120]),
    "CAM_BACK_RIGHT": ([1.0149, -0.4806, 1.5624], [0.1228, -0.1324, -0.7004, 0.6905]),
}
# x forward, y left, z up: azimuths to the right of forward of other vehicles' cameras
WAYMO = {"FRONT": 0, "FRONT_LEFT": -45, "FRONT_RIGHT": 45, "SIDE_LEFT": -90, "SIDE_RIGHT": 90}
ARGOVERSE = {
    "ring_front_center": 0, "ring_front_left": -45, "ring_front_right": 45, "ring_side_left": -99,
    "ring_side_right": 99, "ring_rear_left": -153, "ring_rear_right": 153, "stereo_front_left": 0,
    "stereo_front_right": 0,
}  # fmt: skip
LYFT = {**dict(zip(CAMERA_ORDER, (0, 60, -60, 180, -120, 120))), "CAM_FRONT_ZOOMED": 0}
PAIR = {"left": 0, "right": 0}


def pose(azimuth: float, height: float = 1.5) -> np.ndarray:
    """(4, 4) camera to vehicle of a level camera half a metre from the vehicle's middle."""
    c, s = np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
    return np.array([[-s, 0, c, 0.5 * c + 1], [-c, 0, -s, -0.5 * s], [0, -1, 0, height], [0, 0, 0, 1]])


def nuscenes() -> Dict[str, np.ndarray]:
    made = {}
    for name, (translation, quaternion) in NUSCENES.items():
        made[name] = np.eye(4)
        made[name][:3, :3], made[name][:3, 3] = rotations(np.array(quaternion)), translation
    return made


def others(azimuths: Dict[str, Any]) -> Dict[str, np.ndarray]:
    return {name: pose(azimuth) for name, azimuth in azimuths.items()}


def notes(folder: Path, poses: Dict[str, np.ndarray], capsys: Any, key: str = "camera2ego") -> List[str]:
    cameras: List[Rig] = []
    for name, matrix in poses.items():
        one = camera(name)
        del one["camera2lidar"]
        cameras.append({**one, key: matrix.tolist()})
    assert main(["data", "check", "--rig", str(write_rig(folder, cameras))]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


@pytest.mark.parametrize("azimuths", [None, WAYMO, ARGOVERSE, LYFT, PAIR])
def test_rigs_as_they_are_have_no_note(tmp_path: Path, capsys: Any, azimuths: Optional[Dict[str, Any]]) -> None:
    assert notes(tmp_path, nuscenes() if azimuths is None else others(azimuths), capsys) == []


def xyzw(matrix: np.ndarray) -> np.ndarray:
    """Its quaternion in ROS' order, read as w, x, y, z."""
    made = matrix.copy()
    made[:3, :3] = rotations(np.roll(quaternions(matrix[:3, :3]), -1))
    return made


def body_axes(matrix: np.ndarray) -> np.ndarray:
    made = matrix.copy()
    made[:3, :3] = matrix[:3, :3] @ np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    return made


def upside_down(matrix: np.ndarray) -> np.ndarray:
    return matrix @ np.diag([1.0, -1, -1, 1])


def lidar_axes(matrix: np.ndarray) -> np.ndarray:
    """A vehicle's frame whose x points right."""
    return np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ matrix


CONVENTIONS = [
    (xyzw, "with quaternions read in the order x, y, z, w all cameras", 4),
    (np.linalg.inv, "with poses inverted .vehicle to camera", 6),
    (body_axes, "with camera axes taken as x forward, y left, z up", 6),
    (upside_down, "with camera axes taken as x right, y up, z backward", 6),
    (lidar_axes, "with the vehicle's frame turned by 90 degrees to the right", 6),
]


@pytest.mark.parametrize(("change", "text", "named"), CONVENTIONS)
def test_another_convention_is_named_with_its_cameras(
    tmp_path: Path, capsys: Any, change: Callable[[np.ndarray], np.ndarray], text: str, named: int
) -> None:
    found = notes(tmp_path, {name: change(matrix) for name, matrix in nuscenes().items()}, capsys)
    assert sum(any(line.startswith(f"note: {name} ") for line in found) for name in CAMERA_ORDER) >= named
    assert text in found[-1].replace("(", ".")


def test_own_names_say_nothing_of_directions_but_most_cameras_are_level(tmp_path: Path, capsys: Any) -> None:
    """One camera that looks at the ground is as it may be; most of them are a convention."""
    own = {f"c{i}": pose(azimuth) for i, azimuth in enumerate(NUSCENES_AZIMUTHS)}
    down = pose(0)
    down[:3, :3] = [[0, -1, 0], [-1, 0, 0], [0, 0, -1]]
    assert notes(tmp_path / "a", {**own, "ground": down}, capsys) == []
    found = notes(tmp_path / "b", {name: xyzw(matrix) for name, matrix in own.items()}, capsys)
    assert any("c1 looks" in line and "down" in line for line in found) and "order x, y, z, w" in found[-1]


def test_poses_by_the_lidar_are_looked_at_too(tmp_path: Path, capsys: Any) -> None:
    by_lidar = {name: lidar_axes(matrix) for name, matrix in nuscenes().items()}
    assert notes(tmp_path / "a", by_lidar, capsys, "camera2lidar") == []
    found = notes(tmp_path / "b", {n: np.linalg.inv(m) for n, m in by_lidar.items()}, capsys, "camera2lidar")
    others = [name for name in CAMERA_ORDER if name != "CAM_BACK"]  # whose rotation is its own inverse
    assert all(any(line.startswith(f"note: {name} ") for line in found) for name in others)
    assert "poses inverted" in found[-1]


def test_an_order_that_the_names_contradict(tmp_path: Path, capsys: Any) -> None:
    """Each camera looks within 60 degrees of where it should, and yet two have changed places."""
    poses = nuscenes()
    poses["CAM_FRONT"], poses["CAM_FRONT_RIGHT"] = poses["CAM_FRONT_RIGHT"], poses["CAM_FRONT"]
    (line,) = notes(tmp_path / "a", poses, capsys)
    assert (
        "the cameras are CAM_BACK, CAM_BACK_LEFT, CAM_FRONT_LEFT, CAM_FRONT_RIGHT, CAM_FRONT, CAM_BACK_RIGHT; by"
        in line
    )
    under = nuscenes()
    under["CAM_BACK"][2, 3] = -0.4
    (line,) = notes(tmp_path / "b", under, capsys)
    assert line.startswith("note: CAM_BACK lies 0.40 m below the ground")


@pytest.mark.parametrize(
    ("name", "azimuth"),
    [
        ("CAM_BACK_RIGHT", 110), ("front_camera", 0), ("rearCameraLeft", -110), ("FRONT_LEFT", -55), ("rear", 180),
        ("side_right", 90), ("camera:front:wide:120fov", 0), ("backleft", -110), ("cam0", None), ("image_02", None),
        ("background", None), ("frontback", None), ("bright", None),
    ],
)  # fmt: skip
def test_what_names_say(name: str, azimuth: Optional[float]) -> None:
    assert azimuth_of(name) == azimuth


def test_tables_are_looked_at_too(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "set"
    write_dataset(root, 3, (64, 36), 5, 2, workers=1)
    command = ["data", "check", "--root", str(root), "--version", VERSION]
    assert main(command) == 0
    assert "note: CAM_" not in capsys.readouterr().out
    path = root / VERSION / "calibrated_sensor.json"
    rows = json.loads(path.read_text())
    for row in rows:
        if row["camera_intrinsic"]:
            row["rotation"] = row["rotation"][1:] + row["rotation"][:1]
    path.write_text(json.dumps(rows))
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("note: CAM_") >= 4 and "quaternions read in the order x, y, z, w" in said


def noted(folder: Path, cameras: List[Rig], capsys: Any, **more: Any) -> List[str]:
    assert main(["data", "check", "--rig", str(write_rig(folder, cameras, **more))]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


def test_poses_in_centimetres(tmp_path: Path, capsys: Any) -> None:
    cameras = [camera(name) for name in ("one", "two")]
    assert noted(tmp_path, cameras, capsys) == []
    cameras[1]["camera2lidar"][2][3] = -30
    (note,) = noted(tmp_path, cameras, capsys)
    assert "two lies 30 m away from the lidar; expected metres on one vehicle" in note


@pytest.mark.parametrize(("centre", "notes"), [((0.5, 0.3), 0), ((0.3, 0.5), 0), ((0.25, 0.25), 1), ((0.9, 0.8), 1)])
def test_intrinsics_of_another_size(tmp_path: Path, capsys: Any, centre: Tuple[float, float], notes: int) -> None:
    one = camera("one")
    one["intrinsics"][0][2], one["intrinsics"][1][2] = centre[0] * one["width"], centre[1] * one["height"]
    found = noted(tmp_path, [one], capsys)
    assert len(found) == notes and all("intrinsics those of another image size" in note for note in found)


def test_one_image_of_two_cameras(tmp_path: Path, capsys: Any) -> None:
    frame = {"token": "a", "images": {"one": "images/one.jpg", "two": "images/one.jpg"}}
    (note,) = noted(tmp_path, [camera("one"), camera("two")], capsys, frames=[frame])
    assert "sample a: one and two have one image, " in note


def test_names_in_other_letters(tmp_path: Path, capsys: Any) -> None:
    (note,) = noted(tmp_path, [camera("cam_front"), camera("cam_back", 180)], capsys)
    assert "cam_back is not nuScenes' CAM_BACK; " in note and "cam_back 0, cam_front 1" in note


def test_infos_with_a_mirror(tmp_path: Path, capsys: Any) -> None:
    cfg = write_tiny(tmp_path, (20,))  # whose cameras are mirrors
    main(["data", "check", "--infos", cfg.val_infos, "--root", str(tmp_path)])
    assert "note: CAM_FRONT is a mirror: " in capsys.readouterr().out
