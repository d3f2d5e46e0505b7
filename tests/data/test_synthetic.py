"""The synthetic street: one world for cameras and lidar, and a data set on disk that holds together."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import pytest

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.images.preprocess import padded_shape
from tpvformer.data.street import rig
from tpvformer.data.street import write as synthetic
from tpvformer.data.street.camera import NO_CLASS, render_camera
from tpvformer.data.street.drive import start_ride
from tpvformer.data.street.lidar import EGO_LABEL, render_lidar
from tpvformer.data.street.shadows import cast_shadows
from tpvformer.data.street.tables import TABLES
from tpvformer.data.street.world import build_street
from tpvformer.data.street.write import scene_names, write_dataset
from tpvformer.errors import ConfigError
from tpvformer.labels import CLASS_NAMES, EVALUATED, RAW_TO_CLASS
from tpvformer.untrusted.pickle import load_pickle

SCENES, FRAMES, SIZE, SEED = 3, 3, (192, 108), 11
VERSION = "v1.0-mini"
SENSORS = rig.sensor_poses()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("street") / "set"
    assert write_dataset(out, SCENES, SIZE, SEED, FRAMES, workers=1)
    return out


@pytest.fixture(scope="module")
def tables(root) -> Dict[str, List[Dict[str, Any]]]:
    return {file.stem: json.loads(file.read_text()) for file in (root / VERSION).glob("*.json")}


def pose_of(row: Dict[str, Any]) -> np.ndarray:
    return rig.pose(row["translation"], row["rotation"])


def project(points: np.ndarray, lidar2camera: np.ndarray, intrinsic: np.ndarray, size):
    """Rows of the points inside the image, their pixel (row, column), and their depth."""
    local = points @ lidar2camera[:3, :3].T + lidar2camera[:3, 3]
    depth = local[:, 2]
    pixel = np.floor((local @ intrinsic.T)[:, :2] / np.maximum(depth, 1e-6)[:, None]).astype(int)
    inside = (depth > 0.5) & (pixel >= 0).all(1) & (pixel[:, 0] < size[0]) & (pixel[:, 1] < size[1])
    return inside, pixel[inside, 1], pixel[inside, 0], depth[inside]


def compare(points, labels, lidar2camera, intrinsic, size, seen_labels, seen_depth):
    """(share of points whose pixel lies behind them, share of label agreement where both see the same surface)."""
    keep = labels != EGO_LABEL
    inside, v, u, depth = project(points[keep], lidar2camera, intrinsic, size)
    behind = seen_depth[v, u] > depth * 1.05 + 0.4
    same = np.abs(seen_depth[v, u] - depth) < 0.02 * depth + 0.1
    agree = seen_labels[v, u][same] == labels[keep][inside][same]
    assert same.mean() > 0.6, "cameras and lidar mostly look at the same surfaces"
    return behind.mean(), agree.mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_camera_sees_what_the_lidar_hits(seed):
    street = build_street(np.random.default_rng(seed), 20.0)
    shadows = cast_shadows(street)
    x, y, heading = street.road.at(8.0, street.ego_s)
    ego2scene = rig.pose((x, y, 0), rig.euler_quaternion(heading, 0.01, -0.02))
    sweep = render_lidar(street, ego2scene @ SENSORS[rig.LIDAR_CHANNEL], seed)
    size = (480, 270)
    for camera in rig.CAMERAS:
        pose = ego2scene @ SENSORS[camera.channel]
        _, labels, depth = render_camera(street, shadows, pose, camera.intrinsic(size), size, np.ones(3), 0)
        lidar2camera = np.linalg.inv(SENSORS[camera.channel]) @ SENSORS[rig.LIDAR_CHANNEL]
        through, agree = compare(
            sweep.points[:, :3].astype(float), sweep.labels, lidar2camera, camera.intrinsic(size), size, labels, depth
        )
        assert through < 0.03  # silhouettes only: a pixel's ray is not quite the point's
        assert agree > 0.985


def test_stored_calibration_carries_the_motion_of_the_ego(root, tables):
    """The labels on disk, projected with the infos, land on the picture taken from the tables' own camera pose.

    The picture shows what moves where it was for the lidar: this is about the ego's motion.
    """
    scene = tables["scene"][0]
    ride = start_ride(SEED, 0, FRAMES)
    street = ride.street.at((FRAMES - 1) * rig.KEYFRAME_MICROSECONDS * 1e-6)
    shadows = cast_shadows(street)
    scene2global = rig.pose((*ride.offset, 0), rig.euler_quaternion(ride.yaw))
    token = scene["last_sample_token"]
    info = next(i for i in load_pickle(root / "nuscenes_infos_val.pkl")["infos"] if i["token"] == token)
    poses = {row["token"]: row for row in tables["ego_pose"]}
    lidar = next(r for r in tables["sample_data"] if r["sample_token"] == token and r["fileformat"] == "pcd")
    points = np.fromfile(root / lidar["filename"], np.float32).reshape(-1, 5)[:, :3].astype(float)
    labels = np.fromfile(root / "lidarseg" / VERSION / f"{lidar['token']}_lidarseg.bin", np.uint8)
    moved = []
    for channel, record in info["cams"].items():
        ego = poses[record["sample_data_token"]]
        moved.append(np.linalg.norm(np.subtract(ego["translation"], poses[lidar["token"]]["translation"])))
        sensor2scene = np.linalg.inv(scene2global) @ pose_of(ego) @ SENSORS[channel]
        size = (480, 270)
        intrinsic = next(c for c in rig.CAMERAS if c.channel == channel).intrinsic(size)
        _, seen, depth = render_camera(street, shadows, sensor2scene, intrinsic, size, np.ones(3), 0)
        camera2lidar = np.eye(4)
        camera2lidar[:3, :3] = record["sensor2lidar_rotation"]
        camera2lidar[:3, 3] = record["sensor2lidar_translation"]
        through, agree = compare(points, labels, np.linalg.inv(camera2lidar), intrinsic, size, seen, depth)
        assert through < 0.03
        assert agree > 0.985
    delays = [-c.trigger_us * 1e-6 for c in rig.CAMERAS]
    assert np.allclose(moved, ride.speed * np.array(delays), rtol=0.15)


def test_pictures_are_written_as_they_are_seen(root):
    ride = start_ride(SEED, 0, FRAMES)
    position, angles = ride.ego(rig.CAMERAS[0].trigger_us * 1e-6)
    pose = rig.pose(position, rig.euler_quaternion(*angles)) @ SENSORS["CAM_FRONT"]
    light = ride.street.light
    seen, labels, _ = render_camera(
        ride.street, cast_shadows(ride.street), pose, rig.CAMERAS[0].intrinsic(SIZE), SIZE, light.exposure, 0
    )
    info = load_pickle(root / "nuscenes_infos_val.pkl")["infos"][0]
    stored = cv2.imread(str(root / info["cams"]["CAM_FRONT"]["data_path"]))
    assert stored is not None and stored.shape == (SIZE[1], SIZE[0], 3)
    ground = labels != NO_CLASS
    same = np.corrcoef(stored[ground].mean(1), seen[ground].mean(1))[0, 1]
    assert same > 0.95


def test_every_class_is_common():
    """Each class holds at least 0.4 % of the labelled points, and most single sweeps show it."""
    counts, present = np.zeros(17), np.zeros(17)
    streets = 24
    for seed in range(streets):
        street = build_street(np.random.default_rng([5, seed]), 0.0)
        x, y, heading = street.road.at(0.0, street.ego_s)
        pose = rig.pose((x, y, 0), rig.euler_quaternion(heading)) @ SENSORS[rig.LIDAR_CHANNEL]
        found = np.bincount(np.array(RAW_TO_CLASS)[render_lidar(street, pose, seed).labels], minlength=17)
        counts += found
        present += found > 10
    share = counts / counts[1:].sum()
    for k in EVALUATED:
        assert share[k] > 0.004, f"{CLASS_NAMES[k]}: {share[k]:.2%} of the points"
        assert present[k] > 0.6 * streets, f"{CLASS_NAMES[k]}: in {present[k]:.0f} of {streets} sweeps"


def test_the_lidar_file_is_a_nuscenes_sweep(root, tables):
    elevations = np.degrees(rig.beam_elevations())
    for row in tables["lidarseg"]:
        data = next(r for r in tables["sample_data"] if r["token"] == row["sample_data_token"])
        points = np.fromfile(root / data["filename"], np.float32).reshape(-1, 5)
        labels = np.fromfile(root / row["filename"], np.uint8)
        assert len(points) == len(labels)
        assert rig.FIRINGS - 2 <= len(points) / rig.BEAMS <= rig.FIRINGS
        assert (points[:, 4].reshape(-1, 32) == np.arange(32)).all()
        reach = np.linalg.norm(points[:, :3], axis=1)
        assert (labels[reach < 0.1] == EGO_LABEL).all()
        assert (reach[labels == EGO_LABEL] < 0.1).all()
        assert labels.max() <= 31
        far = reach > 2
        seen = np.degrees(np.arcsin(points[far, 2] / reach[far]))
        assert np.abs(seen - elevations[points[far, 4].astype(int)]).max() < 0.01
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= 255


def test_tables_hold_together(root, tables):
    assert set(tables) == {*TABLES, "lidarseg", "splits"}
    by_token = {name: {row["token"]: row for row in rows} for name, rows in tables.items() if name != "splits"}
    for name, rows in by_token.items():
        assert len(rows) == len(tables[name]), f"{name}: tokens repeat"
        if name != "visibility":
            assert all(len(token) == 32 and int(token, 16) >= 0 for token in rows)
    assert len(tables["sample"]) == SCENES * FRAMES
    assert len(tables["sample_data"]) == len(tables["ego_pose"]) == SCENES * FRAMES * 7
    assert len(tables["lidarseg"]) == len(list((root / "lidarseg" / VERSION).iterdir())) == SCENES * FRAMES
    links = {
        "sample_token": "sample",
        "scene_token": "scene",
        "log_token": "log",
        "sensor_token": "sensor",
        "calibrated_sensor_token": "calibrated_sensor",
        "ego_pose_token": "ego_pose",
        "category_token": "category",
        "instance_token": "instance",
        "first_sample_token": "sample",
        "last_sample_token": "sample",
        "first_annotation_token": "sample_annotation",
        "last_annotation_token": "sample_annotation",
        "sample_data_token": "sample_data",
    }
    for name, rows in by_token.items():
        for row in rows.values():
            for key, target in links.items():
                assert key not in row or row[key] in by_token[target], f"{name}.{key}"
            if row.get("next"):
                assert rows[row["next"]]["prev"] == row["token"]
            if "filename" in row:
                assert (root / row["filename"]).is_file()
            assert all(t in by_token["attribute"] for t in row.get("attribute_tokens", []))
    for scene in tables["scene"]:
        token, count = scene["first_sample_token"], 1
        while by_token["sample"][token]["next"]:
            token, count = by_token["sample"][token]["next"], count + 1
        assert (token, count) == (scene["last_sample_token"], scene["nbr_samples"])
    for row in tables["sample_data"]:
        sample, ego = by_token["sample"][row["sample_token"]], by_token["ego_pose"][row["ego_pose_token"]]
        assert row["timestamp"] == ego["timestamp"]
        assert 0 <= sample["timestamp"] - row["timestamp"] < 50_000
        assert (row["width"], row["height"]) == (SIZE if row["fileformat"] == "jpg" else (0, 0))
    assert {log for row in tables["map"] for log in row["log_tokens"]} == set(by_token["log"])
    for instance in tables["instance"]:
        own = [row for row in tables["sample_annotation"] if row["instance_token"] == instance["token"]]
        assert len(own) == instance["nbr_annotations"]


def test_boxes_contain_the_points_they_count(root, tables):
    """The lidar points inside an annotation's box are about as many as it says."""
    poses = {row["token"]: row for row in tables["ego_pose"]}
    for data in [r for r in tables["sample_data"] if r["fileformat"] == "pcd"][:2]:
        lidar2global = pose_of(poses[data["token"]]) @ SENSORS[rig.LIDAR_CHANNEL]
        points = np.fromfile(root / data["filename"], np.float32).reshape(-1, 5)[:, :3].astype(float)
        points = points @ lidar2global[:3, :3].T + lidar2global[:3, 3]
        rows = [r for r in tables["sample_annotation"] if r["sample_token"] == data["sample_token"]]
        assert len(rows) > 10
        for row in rows:
            width, length, height = row["size"]
            local = (points - row["translation"]) @ rig.rotation_matrix(row["rotation"])
            inside = (np.abs(local) < np.array([length, width, height]) / 2 + 0.1).all(1).sum()
            assert inside >= 0.9 * row["num_lidar_pts"]


def test_the_reader_takes_it(root):
    config = DataConfig(
        root=str(root),
        version=VERSION,
        train_infos=str(root / "nuscenes_infos_train.pkl"),
        val_infos=str(root / "nuscenes_infos_val.pkl"),
        photometric=False,
        grid_mask=False,
    )
    grid = GridConfig(w=40, h=40, z=4)
    train, val = (FrameDataset(config, grid, split, 0) for split in ("train", "val"))
    assert (len(train), len(val)) == ((SCENES - 2) * FRAMES, 2 * FRAMES)
    frame, sample = train.load_frame(0), train[0]
    assert frame.camera_names == [c.channel for c in rig.CAMERAS]
    assert frame.labels.max() <= 16
    assert padded_shape(*sample.images.shape[1:3]) == (128, 192)


def test_its_first_frame_is_also_a_rig_of_one_s_own(root):
    """Every number of it, to the last bit of the projections."""
    infos, described = str(root / "nuscenes_infos_val.pkl"), str(root / "rig.json")
    data = DataConfig(root=str(root), version=VERSION, val_infos=infos, test_infos=described)
    recorded = FrameDataset(data, GridConfig(), "val", 0).load_frame(0)
    own = FrameDataset(data, GridConfig(), "test", 0, True).load_frame(0)
    assert own.token == recorded.token and own.camera_names == recorded.camera_names
    for name in ("points", "labels", "lidar2img"):
        assert np.array_equal(getattr(own, name), getattr(recorded, name)), name
    for ours, theirs in zip(own.pictures(), recorded.pictures()):
        assert np.array_equal(ours, theirs)


def test_same_seed_same_bytes_whatever_the_workers(root, tmp_path):
    again = tmp_path / "again"
    write_dataset(again, SCENES, SIZE, SEED, FRAMES, workers=2)
    first, second = (sorted(p.relative_to(r) for p in r.rglob("*") if p.is_file()) for r in (root, again))
    assert first == second
    _, differ, failed = filecmp.cmpfiles(root, again, [str(p) for p in first], shallow=False)
    assert (differ, failed) == ([], [])
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"
    other = tmp_path / "other"
    write_dataset(other, 2, (64, 32), SEED + 1, 1, workers=1)
    assert not {p.name for p in (other / "lidarseg" / VERSION).iterdir()} & {p.name for p in first}
    assert [len(load_infos(other / f"nuscenes_infos_{split}.pkl")) for split in ("train", "val")] == [1, 1]


def test_asking_again_changes_nothing(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert write_dataset(root, SCENES, SIZE, SEED, FRAMES) is False
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    with pytest.raises(ConfigError, match="another synthetic set"):
        write_dataset(root, SCENES, SIZE, SEED + 1, FRAMES)


def test_progress_and_a_leftover_of_a_killed_run(tmp_path):
    (tmp_path / ".set.partial" / "samples").mkdir(parents=True)
    seen: List[Any] = []
    write_dataset(
        tmp_path / "set", 2, (64, 32), 0, 2, workers=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 4), (4, 4)]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scenes": 1}, "scenes is 1; expected 2 or more, one for validation and one to train on"),
        ({"scenes": 10**6}, "expected at most"),
        ({"size": (8, 900)}, "size is 8x900"),
        ({"seed": -1}, "seed is -1"),
        ({"frames_per_scene": 0}, "frames a scene is 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, change, words):
    arguments: Dict[str, Any] = {"scenes": 2, "size": (64, 32), "seed": 0, **change}
    with pytest.raises(ConfigError, match=words) as error:
        write_dataset(tmp_path / "set", **arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_foreign_targets_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for name, words in (("file", "is a file"), ("full", "is not empty"), ("file/below", "cannot write")):
        with pytest.raises(ConfigError, match=words):
            write_dataset(tmp_path / name, 2, (64, 32), 0)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ConfigError, match="GB free"):
        write_dataset(tmp_path / "set", 2, (64, 32), 0)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "record_scene", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_dataset(tmp_path / "set", 2, (64, 32), 0, workers=1)
    assert not list(tmp_path.iterdir())


def test_scene_names():
    for count in range(2, 12):
        assert {split for _, split in scene_names(count)} == {"train", "val"} and len(scene_names(count)) == count
    names = scene_names(35)
    assert names[:2] == [("scene-0103", "val"), ("scene-0916", "val")]
    assert [name for name, split in names[2:10] if split == "train"] == list(synthetic.MINI_TRAIN)
    assert len({name for name, _ in names}) == 35
    assert sum(split == "val" for _, split in names) == 4
