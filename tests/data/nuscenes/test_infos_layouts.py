"""Info files of other tools: what their records hold is read, or named; files are found where people keep them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any, Callable, Dict, List

import cv2
import numpy as np
import pytest
import torch
from engine_tools import MODEL, tiny_config, tiny_model, write_config
from info_tools import Info, depth, edit, modern, records, store, write_set
from rig_tools import camera, save
from tiny_nuscenes import CAMERAS, VERSION, write_tiny

from tpvformer.cli import main
from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.reader import resolve
from tpvformer.errors import DataError
from tpvformer.geometry import quaternions, rotations

FIRST = f"samples/{CAMERAS[0]}/log__{CAMERAS[0]}__0.jpg"


def frames(cfg: DataConfig, labels: bool = False, scans: bool = True) -> FrameDataset:
    return FrameDataset(cfg, MODEL.grid, "val", 0, require_labels=labels, require_scans=scans)


def refused(cfg: DataConfig, content: Any) -> str:
    store(cfg, content)
    with pytest.raises(DataError) as caught:
        load_infos(cfg.val_infos)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Which tool wrote it


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (
            {"token": "a", "lidar_path": "b", "cam_front_path": "c", "cam_intrinsic": np.eye(3)},
            "CenterPoint or OpenPCD",
        ),
        ({"image": {"image_idx": 0}, "calib": {"P2": np.eye(4)}, "point_cloud": {}}, "KITTI for OpenPCDet, SECOND"),
        ({"point_cloud": {}, "calib": {}, "annos": {}}, "KITTI for OpenPCDet, SECOND"),
    ],
)
@pytest.mark.parametrize("pack", [list, lambda r: {"infos": r}, lambda r: {"data_list": r}])
def test_infos_without_calibrated_cameras_are_named(tmp_path: Path, record: Info, text: str, pack: Callable) -> None:
    said = refused(write_tiny(tmp_path, (9,)), pack([record]))
    assert text in said and "tpvformer data infos" in said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.pop("lidar_infos"), "record 0 has no 'lidar_infos'; expected the info format of BEVDepth"),
        (lambda r: r["cam_infos"]["CAM_BACK"].pop("ego_pose"), "camera CAM_BACK has no 'ego_pose'"),
        (lambda r: r["cam_infos"]["CAM_BACK"].update(filename=None), "camera CAM_BACK: names no image"),
        (lambda r: r["cam_infos"]["CAM_BACK"]["calibrated_sensor"].update(rotation=np.zeros((3, 3))), "no rotation"),
        (lambda r: r["cam_infos"].clear(), "lists no cameras"),
        (lambda r: r.pop("sample_token"), "record 0 has no 'token'"),
    ],
)
def test_what_bevdepth_s_records_lack_is_named(tmp_path: Path, change: Callable[[Info], Any], text: str) -> None:
    cfg = write_set(tmp_path, (9,))
    record = depth(records(cfg)[0])
    change(record)
    assert text in refused(cfg, [record])


def test_bevdepth_s_poses_are_those_of_both_times(tmp_path: Path) -> None:
    """The vehicle drives 3 m along x between the camera's time and the lidar's; the lidar stands 2 m above it."""
    cfg = write_set(tmp_path, (9,))
    whole, record = load_infos(cfg.val_infos)[0], depth(records(cfg)[0])
    lidar = record["lidar_infos"]["LIDAR_TOP"]
    lidar["calibrated_sensor"] = {"translation": [0.0, 0, 2], "rotation": [1.0, 0, 0, 0]}
    lidar["ego_pose"] = {"translation": [3.0, 0, 0], "rotation": [1.0, 0, 0, 0]}
    store(cfg, [record])
    (found,) = load_infos(cfg.val_infos)
    moved = np.eye(4)
    moved[:3, 3] = [3, 0, 2]  # lidar coordinates to those that the cameras' poses are given in
    np.testing.assert_allclose(found.lidar2img, whole.lidar2img @ moved, atol=1e-9)
    assert found.lidar2ego is not None and found.lidar2ego[:3, 3].tolist() == [0, 0, 2]
    assert found.ego2global is not None and found.ego2global[:3, 3].tolist() == [3, 0, 0]


def test_openpcdet_s_name_of_the_intrinsics(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    expected, infos = load_infos(cfg.val_infos)[0], records(cfg)
    for view in infos[0]["cams"].values():
        view["camera_intrinsics"] = view.pop("cam_intrinsic")
    store(cfg, infos)
    assert np.array_equal(load_infos(cfg.val_infos)[0].lidar2img, expected.lidar2img)


def test_rotations_may_be_matrices(tmp_path: Path) -> None:
    """Of every turn, half turns included; mirrors are none."""
    rng = np.random.RandomState(0)
    for quaternion in [*rng.normal(size=(50, 4)), *np.eye(4), [0, 1, 1, 0], [1e-9, 1, 0, 0], [1, 1e-9, 0, 0]]:
        matrix = rotations(np.array(quaternion, np.float64))
        np.testing.assert_allclose(rotations(quaternions(matrix)), matrix, atol=1e-9)
    for none in (np.diag([1.0, 1, -1]), np.zeros((3, 3)), np.full((3, 3), np.nan), 2 * np.eye(3)):
        with pytest.raises(ValueError, match="no rotation"):
            quaternions(none)
    cfg, turn = write_set(tmp_path, (9,)), rotations(np.array([0.7, 0.1, 0.0, -0.7]))
    edit(cfg, lambda infos: infos[0].update(lidar2ego_rotation=turn, lidar2ego_translation=[1.0, 0, 2]))
    lidar2ego = load_infos(cfg.val_infos)[0].lidar2ego
    assert lidar2ego is not None
    np.testing.assert_allclose(lidar2ego[:3], np.column_stack([turn, [1, 0, 2]]), atol=1e-9)


# Intrinsics with more columns, cameras without calibration

KITTI_P2 = [[721.5, 0.0, 609.6, 44.86], [0.0, 721.5, 172.9, 0.2164], [0.0, 0.0, 1.0, 0.002746]]


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("layout", ["cams", "images"])
def test_the_last_column_of_intrinsics_is_kept(tmp_path: Path, layout: str, rows: int) -> None:
    cfg, matrix = write_set(tmp_path, (9,)), np.array([*KITTI_P2, [0, 0, 0, 1]])
    info = records(cfg)[0]
    to_lidar = np.eye(4)
    to_lidar[:3, :3] = info["cams"]["CAM_BACK"]["sensor2lidar_rotation"]
    to_lidar[:3, 3] = info["cams"]["CAM_BACK"]["sensor2lidar_translation"]
    info["cams"]["CAM_BACK"]["cam_intrinsic"] = matrix[:rows]
    store(cfg, {"infos": [info]} if layout == "cams" else {"data_list": [modern(info)]})
    found = load_infos(cfg.val_infos)[0]
    np.testing.assert_allclose(found.lidar2img[3], matrix @ np.linalg.inv(to_lidar), atol=1e-9)


@pytest.mark.parametrize("wrong", [np.array([*KITTI_P2, [0, 0, 0, 1]]).T, np.diag([9.0, 9, 1, 2]), np.eye(4)[:, :3]])
def test_other_intrinsics_are_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    cfg = write_set(tmp_path, (9,))
    record = modern(records(cfg)[0])
    record["images"]["CAM_BACK"]["cam2img"] = wrong.tolist()
    assert "camera CAM_BACK: " in refused(cfg, {"data_list": [record]})


def kitti(cfg: DataConfig) -> Info:
    """A record as mmdetection3d 1.x writes it for KITTI: a number for a token, calibration alone of three cameras."""
    record = modern(records(cfg)[0])
    record.pop("token")
    images = record["images"]
    record["images"] = {f"CAM{i}": {"cam2img": [*KITTI_P2, [0.0, 0, 0, 1]]} for i in (0, 1, 3)}
    record["images"].update(CAM2=images["CAM_FRONT"], R0_rect=np.eye(4).tolist())
    return record


def test_cameras_without_an_image_are_left_out(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    whole, record = load_infos(cfg.val_infos)[0], kitti(cfg)
    record["sample_idx"] = 7
    store(cfg, {"metainfo": {}, "data_list": [record]})
    (found,) = load_infos(cfg.val_infos)
    assert (found.token, found.camera_names, found.images) == ("7", ("CAM2",), whole.images[:1])
    np.testing.assert_allclose(found.lidar2img[0], whole.lidar2img[0], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda images: images["CAM2"].pop("lidar2cam"), "camera CAM2 has no 'lidar2cam'"),
        (lambda images: images["CAM2"].pop("cam2img"), "camera CAM2 has no 'cam2img'"),
        (
            lambda images: images["CAM2"].pop("img_path"),
            "(CAM0, CAM1, CAM3, CAM2, R0_rect) has an img_path",
        ),
        (lambda images: images["CAM0"].update(img_path="000000.png"), "camera CAM0 has no 'lidar2cam'"),
        (
            lambda images: images["CAM2"].update(lidar2cam=(np.eye(4) + 5).T.tolist()),
            "CAM2: a matrix with the last row",
        ),
        (lambda images: images.clear(), "lists no cameras"),
    ],
)
def test_an_image_without_calibration_is_named(tmp_path: Path, change: Callable[[Info], Any], text: str) -> None:
    cfg = write_set(tmp_path, (9,))
    record = kitti(cfg)
    change(record["images"])
    assert text in refused(cfg, {"data_list": [record]})


def test_images_that_are_no_dict(tmp_path: Path) -> None:
    """As ScanNet's infos have them."""
    cfg = write_set(tmp_path, (9,))
    record = {**modern(records(cfg)[0]), "images": ["a.jpg"]}
    assert "its images are list, not a dict of them by camera" in refused(cfg, {"data_list": [record]})


def test_transforms_without_their_last_row(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    whole, record = load_infos(cfg.val_infos)[0], modern(records(cfg)[0])
    for view in record["images"].values():
        view["lidar2cam"] = view["lidar2cam"][:3]
    record["ego2global"] = np.eye(4)[:3].tolist()
    store(cfg, {"data_list": [record]})
    (found,) = load_infos(cfg.val_infos)
    np.testing.assert_allclose(found.lidar2img, whole.lidar2img, atol=1e-9)
    assert np.array_equal(np.asarray(found.ego2global), np.eye(4))


def test_a_whole_projection_in_place_of_its_parts(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    whole, record = load_infos(cfg.val_infos)[0], modern(records(cfg)[0])
    view = record["images"]["CAM_BACK"]
    view["lidar2img"] = (whole.lidar2img[3]).tolist()
    del view["lidar2cam"], view["cam2img"]
    store(cfg, {"data_list": [record]})
    np.testing.assert_allclose(load_infos(cfg.val_infos)[0].lidar2img, whole.lidar2img, atol=1e-9)


# Where files lie


@pytest.mark.parametrize("start", ["D:/data/nuscenes", "./data/nuscenes", "..", ""])
def test_separators_of_windows(tmp_path: Path, start: str) -> None:
    """Of images and scans; the label is found by the scan's name, the scene by the log that it begins with."""
    cfg = write_tiny(tmp_path, (9, 8))
    expected = frames(cfg, labels=True)[1]

    def windows(stored: str) -> str:
        return str(PureWindowsPath(start) / stored[stored.index("samples/") :])

    def change(infos: List[Info]) -> None:
        for info in infos:
            info.update(token=f"renamed {info['token']}", lidar_path=windows(info["lidar_path"]))
            for view in info["cams"].values():
                view["data_path"] = windows(view["data_path"])

    edit(cfg, change)
    assert "\\" in records(cfg)[0]["lidar_path"]
    found = frames(cfg, labels=True)[1]
    assert torch.equal(found.images, expected.images) and torch.equal(found.point_labels, expected.point_labels)
    assert load_infos(cfg.val_infos)[0].scene == "log"


def test_bare_names_of_mmdetection3d_on_windows(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    record = modern(records(cfg)[0])
    for name, view in record["images"].items():
        view["img_path"] = f"samples\\{name}\\{Path(view['img_path']).name}"
    record["lidar_points"]["lidar_path"] = Path(record["lidar_points"]["lidar_path"]).name
    store(cfg, {"data_list": [record]})
    assert frames(cfg)[0].images.shape[0] == 6


def test_separators_of_windows_in_a_rig_file(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    cv2.imwrite(str(tmp_path / "drive" / "a.png"), np.zeros((45, 77, 3), np.uint8))
    frame = {"token": "a", "images": {"front": "drive\\a.png"}}
    path = save(tmp_path / "rig.json", {"format": "tpvformer-rig-1", "cameras": [camera("front")], "frames": [frame]})
    assert Path(load_infos(path)[0].images[0]) == tmp_path / "drive" / "a.png"


def in_own_folders(cfg: DataConfig, root: Path, name: Callable[[str], str]) -> DataConfig:
    """The first sample, with its images in ``root``/cams and named there as ``name`` says; its scan stays."""

    def change(infos: List[Info]) -> None:
        del infos[1:]
        for camera_name, view in infos[0]["cams"].items():
            own = f"cams/{camera_name}/0.jpg"
            (root / own).parent.mkdir(parents=True)
            shutil.move(str(Path(cfg.root, "samples", camera_name, Path(view["data_path"]).name)), str(root / own))
            view["data_path"] = name(own)
        infos[0]["lidar_path"] = str(Path(cfg.root, "samples", "LIDAR_TOP", Path(infos[0]["lidar_path"]).name))

    edit(cfg, change)
    return replace(cfg, root=str(root))


NAMES: Dict[str, Callable[[str], str]] = {
    "below the root": lambda own: own,
    "with a dot": lambda own: f"./{own}",
    "another machine's": lambda own: f"/home/somebody/set/{own}",
    "another machine's, of Windows": lambda own: "D:\\set\\" + own.replace("/", "\\"),
    "beside another folder": lambda own: f"../set/{own}",
}


@pytest.mark.parametrize("kind", NAMES)
def test_own_folders_below_the_root(tmp_path: Path, kind: str) -> None:
    """Each camera has its own image, whatever lies about under the bare name."""
    cfg = write_set(tmp_path / "made", (9,))
    expected = frames(cfg)[0].images
    data = in_own_folders(cfg, tmp_path / "set", NAMES[kind])
    cv2.imwrite(str(tmp_path / "set" / "0.jpg"), np.zeros((45, 77, 3), np.uint8))
    assert torch.equal(frames(data)[0].images, expected)


def test_one_file_is_not_the_image_of_all_cameras(tmp_path: Path) -> None:
    cfg = write_set(tmp_path / "made", (9,))
    data = in_own_folders(cfg, tmp_path / "set", lambda own: own)
    shutil.copy(tmp_path / "set" / "cams" / "CAM_BACK" / "0.jpg", tmp_path / "set" / "0.jpg")
    shutil.rmtree(tmp_path / "set" / "cams")
    with pytest.raises(DataError, match=r"0\.jpg would be the image of both CAM_FRONT \(cams/CAM_FRONT/0\.jpg\) and"):
        frames(data)[0]


def test_an_ending_does_not_lead_upwards(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    (tmp_path / "set" / "sub").mkdir(parents=True)
    with pytest.raises(DataError, match="is missing"):
        resolve("nowhere/../../x.jpg", tmp_path / "set" / "sub", "t")
    (tmp_path / "set" / "10:00").mkdir()
    (tmp_path / "set" / "10:00" / "10:01.jpg").touch()
    assert resolve("cams/10:00/10:01.jpg", tmp_path / "set", "t") == tmp_path / "set" / "10:00" / "10:01.jpg"


# Samples without a scan

NO_SCAN: Dict[str, Callable[[Info, Path], Any]] = {
    "absent": lambda info, root: info.pop("lidar_path"),
    "none": lambda info, root: info.update(lidar_path=None),
    "empty name": lambda info, root: info.update(lidar_path=""),
    "gone": lambda info, root: scan_of(info, root).unlink(),
    "empty": lambda info, root: scan_of(info, root).write_bytes(b""),
}


def scan_of(info: Info, root: Path) -> Path:
    return root / "samples" / "LIDAR_TOP" / Path(info["lidar_path"]).name


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", NO_SCAN)
@pytest.mark.parametrize("layout", ["cams", "images"])
def test_a_sample_without_a_scan_is_predicted(tmp_path: Path, capsys, kind: str, layout: str) -> None:
    """Voxels as with the scan, no points, and a line that says why; what needs points refuses."""
    cfg = write_set(tmp_path / "set", (9,))
    config, out = tiny_config(cfg, epochs=1), tmp_path / "out"
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    words = ["--py-config", str(write_config(tmp_path / "c.py", config)), "--device", "cpu"]
    ask = ["predict", *words, "--ckpt-path", str(tmp_path / "w.pth"), "--out"]
    assert main([*ask, str(tmp_path / "whole")]) == 0
    info = records(cfg)[0]
    NO_SCAN[kind](info, tmp_path / "set")
    if layout == "images":
        stored = modern({"lidar_path": "", **info})
        if "lidar_path" not in info:
            del stored["lidar_points"]
        store(cfg, {"data_list": [stored]})
    else:
        store(cfg, {"infos": [info]})
    capsys.readouterr()
    assert main([*ask, str(out)]) == 0
    said = capsys.readouterr().out
    why = {"gone": "is missing", "empty": "is empty"}.get(kind, "names no lidar scan")
    assert f"voxels, without points (its {'' if why.startswith('is ') else 'record '}" in said and f"{why})" in said
    with np.load(out / "sample0.npz") as found, np.load(tmp_path / "whole" / "sample0.npz") as whole:
        assert np.array_equal(found["voxels"], whole["voxels"]) and "points" in whole and "points" not in found
    train = ["train", *words, "--work-dir", str(tmp_path / "work")]
    for command in (train, ["eval", *ask[1:-1]], [*ask, "x", "--truth"]):
        assert main(command) == 2, command[0]
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "lidar scan" in said or "is missing" in said or "0 bytes" in said


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", NO_SCAN)
def test_geometry_is_painted_without_a_scan(tmp_path: Path, capsys, kind: str, labelled: bool) -> None:
    cfg = write_set(tmp_path / "set", (9,))
    edit(cfg, lambda infos: NO_SCAN[kind](infos[0], tmp_path / "set"))
    if not labelled:
        (tmp_path / "set" / VERSION / "lidarseg.json").unlink()
    words = ["check-geometry", "--infos", cfg.val_infos, "--root", cfg.root, "--version", VERSION]
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "without points: its " in said and "lines on the ground every 10 m, because there is no lidar" in said
    assert (tmp_path / "a.png").is_file()
