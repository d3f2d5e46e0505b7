"""Info files: made from the tables they are what the generator knows, and every layout people have is read."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from engine_tools import tiny_config, tiny_model, write_config
from info_tools import columns_of

from tpvformer.cli import main
from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.loader import make_loader
from tpvformer.data.nuscenes import splits
from tpvformer.data.nuscenes import tables as read_tables
from tpvformer.data.nuscenes.infos.build import build
from tpvformer.data.nuscenes.infos.cameras import CAMERA_ORDER
from tpvformer.data.nuscenes.infos.pickle_file import to_records, write_pickle
from tpvformer.data.nuscenes.infos.tensor_file import TensorFile, write_tensors
from tpvformer.data.street import rig
from tpvformer.data.street.write import write_dataset
from tpvformer.geometry import is_degenerate, relative, rotations
from tpvformer.untrusted.pickle import load_pickle

VERSION = "v1.0-mini"
REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))
real = pytest.mark.skipif(
    not os.environ.get("TPVFORMER_REAL_DATA") or not (REAL / "tables").is_dir(),
    reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("infos") / "set"
    write_dataset(folder, 4, (64, 36), 5, 3, workers=1)
    return folder


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal types, keys in equal order, equal values; arrays to 1e-9, which is far below a lidar's millimetres."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{where}/{i}")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        assert np.abs(found - expected).max() < 1e-9, where
    else:
        assert found == expected, where


BOX_KEYS = ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag")


@pytest.mark.parametrize("part", ["train", "val"])
def test_from_the_tables_come_the_infos_that_the_generator_knows(root, tmp_path, part):
    split = f"synthetic_{part}"
    write_pickle(build(root, VERSION, [split], sweeps=0)[split], tmp_path / "mine.pkl")
    mine, theirs = (load_pickle(path) for path in (tmp_path / "mine.pkl", root / f"nuscenes_infos_{part}.pkl"))
    keys = mine["infos"][0].keys()
    assert set(theirs["infos"][0]) - set(keys) == {*BOX_KEYS, "prev", "next", "frame_idx"}  # the generator's alone
    theirs["infos"] = [{key: info[key] for key in info if key in keys} for info in theirs["infos"]]
    assert_same(mine, theirs)


def test_sweeps_are_the_lidar_files_before(root):
    """The synthetic set has no files between key frames, so the sweeps are the earlier key frames, nearest first."""
    expected = load_pickle(root / "nuscenes_infos_train.pkl")["infos"]
    records = to_records(build(root, VERSION, ["synthetic_train"], "x/", sweeps=10)["synthetic_train"])
    assert [len(record["sweeps"]) for record in records] == [0, 1, 2] * 2
    assert records[1]["lidar_path"] == f"x/{expected[1]['lidar_path']}"
    for i in (1, 2, 4, 5):
        mine = rig.pose(expected[i]["ego2global_translation"], expected[i]["ego2global_rotation"])
        mounted = rig.pose(rig.LIDAR_TRANSLATION, rig.LIDAR_ROTATION)
        for sweep, before in zip(records[i]["sweeps"], expected[i - 1 :: -1]):
            theirs = rig.pose(before["ego2global_translation"], before["ego2global_rotation"])
            between = np.linalg.inv(mine @ mounted) @ theirs @ mounted
            assert sweep["data_path"] == f"x/{before['lidar_path']}"
            assert sweep["timestamp"] == before["timestamp"]
            assert sweep["type"] == "lidar"
            assert sweep["sensor2lidar_rotation"] == pytest.approx(between[:3, :3], abs=1e-9)
            assert sweep["sensor2lidar_translation"] == pytest.approx(between[:3, 3], abs=1e-9)
    short = build(root, VERSION, ["synthetic_train"], sweeps=1)["synthetic_train"]
    assert np.diff(short.sweep_start).tolist() == [0, 1, 1] * 2


def test_tensor_file_holds_the_same(root, tmp_path):
    infos = build(root, VERSION, ["synthetic_train"])["synthetic_train"]
    write_tensors(infos, tmp_path / "a.safetensors")
    write_pickle(infos, tmp_path / "a.pkl")
    file = TensorFile(tmp_path / "a.safetensors")
    columns = columns_of(file)
    for name, held in columns.items():
        column = getattr(infos, name)
        assert_same(held, {part: getattr(column, part) for part in held} if isinstance(held, dict) else column, name)
    assert file.version == VERSION
    assert not file.lidar2img().flags.owndata  # it is the file, mapped
    for a, b in zip(load_infos(tmp_path / "a.safetensors"), load_infos(tmp_path / "a.pkl")):
        assert (a.token, a.scan, a.camera_names, a.images) == (b.token, b.scan, b.camera_names, b.images)
        assert np.array_equal(a.lidar2img, b.lidar2img)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pkl", "a.safetensors"]


def test_data_set_is_the_same_from_either_file(root, tmp_path):
    infos = build(root, VERSION, ["synthetic_val"])["synthetic_val"]
    write_tensors(infos, tmp_path / "a.safetensors")
    cfg = DataConfig(
        root=str(root), version=VERSION, val_infos=str(tmp_path / "a.safetensors"), workers=2, batch_size=2
    )
    mine = FrameDataset(cfg, GridConfig(w=18, h=14, z=5), "val", seed=0)
    other = replace(cfg, val_infos=str(root / "nuscenes_infos_val.pkl"))
    theirs = FrameDataset(other, GridConfig(w=18, h=14, z=5), "val", seed=0)
    seen = 0
    for batch in make_loader(mine, cfg, 0, 1, train=False, seed=0):
        for token, matrix, image in zip(batch.tokens, batch.grid2img, batch.images):
            expected = theirs[theirs.tokens.index(token)]
            assert matrix.numpy() == pytest.approx(expected.grid2img.numpy(), abs=1e-4)  # float32
            assert (image == expected.images).all()
            seen += 1
    assert seen == 6


def test_tensor_file_is_safetensors(root, tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    infos = build(root, VERSION, ["synthetic_val"])["synthetic_val"]
    write_tensors(infos, tmp_path / "a.safetensors")
    loaded = library.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(loaded["lidar2img"], infos.lidar2img())
    assert bytes(loaded["tokens.bytes"]).decode() == "".join(infos.tokens)


def test_chunks_of_any_size_give_the_same(root, monkeypatch):
    whole = to_records(build(root, VERSION, ["mini_val"])["mini_val"])
    said = []
    monkeypatch.setattr(read_tables, "CHUNK", 97)
    pieces = build(root, VERSION, ["mini_val"], progress=lambda *what: said.append(what))
    assert_same(to_records(pieces["mini_val"]), whole)
    assert {name for name, done, total in said if done == total} == {"sample_data", "ego_pose"}


def test_command_writes_both_files(root, tmp_path, capsys):
    command = ["data", "infos", "--root", str(root), "--version", VERSION, "--out", str(tmp_path / "new")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "nuscenes_infos_synthetic_train.pkl: 6 samples of 2 scenes, 6 cameras, 6 sweeps" in said.out
    names = [f"nuscenes_infos_synthetic_{part}.{end}" for part in ("train", "val") for end in ("pkl", "safetensors")]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names
    found = [word for word in command if word not in ("--version", VERSION)]  # the one that is there
    assert main(found[:-1] + [str(tmp_path / "found")]) == 0
    for name in names:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    capsys.readouterr()
    record = load_infos(tmp_path / "new" / names[0])[0]
    assert record.scan.startswith(f"{root}/samples/LIDAR_TOP/")
    assert main([*command, "--splits", "mini_train", "--format", "pkl", "--prefix", ""]) == 0
    said = capsys.readouterr()
    assert "mini_train: 2 of its 8 scenes are in" in said.err
    assert load_infos(tmp_path / "new" / "nuscenes_infos_mini_train.pkl")[0].scan.startswith("samples/LIDAR_TOP/")
    assert not (tmp_path / "new" / "nuscenes_infos_mini_train.safetensors").exists()


def test_a_download_is_predicted_on_without_info_files(root, tmp_path, quick, capsys):
    """The tables are read instead, and the answer is the same, bit by bit."""
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    config = tiny_config(DataConfig(root=str(root), val_infos=str(root / "nuscenes_infos_val.pkl"), version=VERSION))
    words = ["--py-config", str(write_config(tmp_path / "c.py", config)), "--ckpt-path", str(tmp_path / "w.pth")]
    words = ["predict", *words, "--device", "cpu", "--truth", "--index", "1"]
    assert main([*words, "--out", str(tmp_path / "infos")]) == 0
    assert main([*words, "--root", str(root), "--out", str(tmp_path / "tables")]) == 0
    (ours,), (theirs,) = ((tmp_path / name).iterdir() for name in ("tables", "infos"))
    assert ours.name == theirs.name
    with np.load(ours) as a, np.load(theirs) as b:
        assert a.files == b.files
        assert all(np.array_equal(a[name], b[name]) for name in set(a.files) - {"lidar2img"})
        assert np.allclose(a["lidar2img"], b["lidar2img"], atol=1e-9)
    capsys.readouterr()
    for more, text in (
        (["--root", str(root), "--split", "test"], "has no split that is called test"),
        (["--root", str(tmp_path)], "holds no table folder such as v1.0-mini"),
        (["--root", str(root), "--version", "v1.0-trainval"], "v1.0-trainval: no such folder of nuScenes tables"),
        (["--version", VERSION], "--version names a table folder of --root"),
        (["--rig", "x.json", "--split", "val"], "--rig holds one set"),
    ):
        assert main([*words, *more, "--out", str(tmp_path / "none")]) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    (root / "v1.0-other").mkdir()
    (root / "v1.0-other" / "sample_data.json").touch()
    assert main([*words, "--root", str(root), "--out", str(tmp_path / "none")]) == 2
    assert "holds the table folders v1.0-mini, v1.0-other; choose one" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_default_place_is_beside_the_root(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    command = ["data", "infos", "--root", "set", "--version", VERSION, "--splits", "mini_val", "--format", "pkl"]
    assert main(command) == 0
    assert load_infos("nuscenes_infos_mini_val.pkl")[0].scan.startswith("set/samples/LIDAR_TOP/")


def open_as_published(infos: Path, root: Path, tables: Path) -> int:
    """What TPVFormer's published loader does with info files: an ordinary pickle, names opened as they are stored."""
    opened = 0
    rows = {name: json.loads((tables / f"{name}.json").read_text()) for name in ("sample_data", "lidarseg")}
    labels = {row["sample_data_token"]: row["filename"] for row in rows["lidarseg"]}
    for info in pickle.loads(infos.read_bytes())["infos"]:  # noqa: S301 - a file that this test has just written
        assert {"sweeps", "ego2global_translation", "ego2global_rotation", "timestamp"} <= set(info)
        points = np.fromfile(info["lidar_path"], dtype=np.float32).reshape(-1, 5)
        (scan,) = [
            row["token"]
            for row in rows["sample_data"]
            if row["sample_token"] == info["token"] and row["is_key_frame"] and "/LIDAR_TOP/" in row["filename"]
        ]
        assert len(np.fromfile(root / labels[scan], dtype=np.uint8)) == len(points)
        assert list(info["cams"]) == list(CAMERA_ORDER)
        for camera in info["cams"].values():
            assert cv2.imread(camera["data_path"], cv2.IMREAD_UNCHANGED).shape[2] == 3
            assert camera["sensor2lidar_rotation"].shape == camera["cam_intrinsic"].shape == (3, 3)
            assert len(camera["sensor2lidar_translation"]) == 3
        opened += 1
    return opened


def test_the_published_loader_opens_what_is_named(tmp_path, monkeypatch, capsys):
    """From its working directory: with --prefix what synth writes, and what data infos writes by itself."""
    monkeypatch.chdir(tmp_path)
    words = ["synth", "--scenes", "2", "--frames", "1", "--size", "64x36", "--seed", "5", "--workers", "1"]
    assert main([*words, "--out", "data/nuscenes", "--prefix", "data/nuscenes"]) == 0
    folder = Path("data/nuscenes")
    for part in ("train", "val"):
        assert open_as_published(folder / f"nuscenes_infos_{part}.pkl", folder, folder / VERSION) == 1
    assert main(["data", "infos", "--root", "data/nuscenes", "--version", VERSION, "--splits", "mini_val"]) == 0
    assert open_as_published(Path("data/nuscenes_infos_mini_val.pkl"), folder, folder / VERSION) == 1
    # the same set for readers of ours, and no other file says anything of the prefix
    cfg = DataConfig(root="data/nuscenes", version=VERSION, val_infos="data/nuscenes/nuscenes_infos_val.pkl")
    assert len(FrameDataset(cfg, GridConfig(w=18, h=14, z=5), "val", 0)[0].images) == 6
    assert "data/nuscenes" not in (folder / "rig.json").read_text()
    assert all("data/nuscenes" not in table.read_text() for table in (folder / VERSION).glob("*.json"))
    capsys.readouterr()
    assert main([*words, "--out", "data/nuscenes", "--prefix", "data/nuscenes/"]) == 0
    assert "already holds" in capsys.readouterr().out
    assert main([*words, "--out", "data/nuscenes"]) == 2
    assert "another synthetic set" in capsys.readouterr().err
    # elsewhere a prefix that is no way from there must be absolute
    command = [
        "data",
        "infos",
        "--root",
        "data/nuscenes",
        "--version",
        VERSION,
        "--splits",
        "mini_val",
        "--out",
        "made",
    ]
    assert main([*command, "--prefix", str(folder.absolute())]) == 0
    made = Path("made/nuscenes_infos_mini_val.pkl").absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_as_published(made, tmp_path / folder, tmp_path / folder / VERSION) == 1
    assert main(["synth", "--kitti", "--out", "x", "--prefix", "y"]) == 2


def test_pickles_name_what_every_numpy_knows(root, tmp_path):
    """numpy 1.23, which the published code pins, has no numpy._core."""
    write_pickle(build(root, VERSION, ["synthetic_val"])["synthetic_val"], tmp_path / "a.pkl")
    for path in (tmp_path / "a.pkl", root / "nuscenes_infos_val.pkl"):
        texts = {argument for _, argument, _ in pickletools.genops(path.read_bytes()) if isinstance(argument, str)}
        assert {name for name in texts if name.startswith("numpy")} == {"numpy.core.multiarray", "numpy"}
        assert len(pickle.loads(path.read_bytes())["infos"]) == 6  # noqa: S301 - what this test has just written
    assert np.zeros(1).__reduce__()[0].__module__ == np.float64(0).__reduce__()[0].__module__ != ""
    assert ("numpy._core" in np.zeros(1).__reduce__()[0].__module__) == (int(np.__version__.split(".")[0]) > 1)


def test_official_splits_have_their_sizes():
    names = {split: splits.official(split) for split in splits.OFFICIAL}
    assert {split: len(scenes) for split, scenes in names.items()} == {
        "train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2,
    }  # fmt: skip
    assert len(set(names["train"]) | set(names["val"]) | set(names["test"])) == 1000
    assert names["mini_val"] == ["scene-0103", "scene-0916"]
    assert set(names["mini_train"]) | set(names["mini_val"]) <= set(names["train"]) | set(names["val"])


def test_geometry_agrees_with_single_matrices():
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(4, 5, 7)) * [1000, 1000, 1, 1, 1, 1, 1]
    rotation, translation = relative(*poses)
    for i in range(5):
        sensor, ego, lidar, lidar_ego = (rig.pose(p[i, :3], p[i, 3:]) for p in poses)
        expected = np.linalg.inv(lidar_ego @ lidar) @ ego @ sensor
        assert rotation[i] == pytest.approx(expected[:3, :3], abs=1e-9)
        assert translation[i] == pytest.approx(expected[:3, 3], abs=1e-9)
    assert rotations(poses[0, :, 3:])[2] == pytest.approx(rig.rotation_matrix(poses[0, 2, 3:]), abs=1e-12)


def test_unusable_projections_are_told_from_small_ones():
    good = np.eye(4) * 1e-3
    flat, absent = np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan)
    assert is_degenerate(np.stack([good, flat, absent, np.zeros((4, 4))])).tolist() == [False, True, True, True]


def test_bevdet_infos_are_read(root, tmp_path):
    """Its further keys are ignored; where it keeps only poses, the chain of both times gives the same matrices."""
    stored = load_pickle(root / "nuscenes_infos_val.pkl")
    expected = load_infos(root / "nuscenes_infos_val.pkl")
    for info in stored["infos"]:
        info.update(ann_infos=([np.zeros((2, 9))], [3]), gt_boxes=np.zeros((2, 7)), gt_names=np.array(["car", "bus"]))
        info.update(occ_path="gts/a", scene_name="scene-0103", valid_flag=np.array([True, False]))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(stored))
    assert all(np.array_equal(a.lidar2img, b.lidar2img) for a, b in zip(load_infos(tmp_path / "a.pkl"), expected))
    for info in stored["infos"]:
        for camera in info["cams"].values():
            del camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(stored))
    for a, b in zip(load_infos(tmp_path / "a.pkl"), expected):
        assert a.lidar2img == pytest.approx(b.lidar2img, abs=1e-9)


def test_infos_of_mmdetection3d_1_are_read(root, tmp_path):
    old = load_pickle(root / "nuscenes_infos_val.pkl")["infos"]
    expected = load_infos(root / "nuscenes_infos_val.pkl")
    new = []
    for info in old:
        images = {}
        for name, camera in info["cams"].items():
            to_lidar = np.eye(4)
            to_lidar[:3, :3], to_lidar[:3, 3] = camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
            images[name] = {
                "img_path": Path(camera["data_path"]).name,
                "cam2img": camera["cam_intrinsic"].tolist(),
                "lidar2cam": np.linalg.inv(to_lidar).tolist(),
                "cam2ego": np.eye(4).tolist(),
            }
        points = {"num_pts_feats": 5, "lidar_path": Path(info["lidar_path"]).name, "lidar2ego": np.eye(4).tolist()}
        new.append({"sample_idx": 0, "token": info["token"], "images": images, "lidar_points": points, "instances": []})
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"metainfo": {"info_version": "1.1"}, "data_list": new}))
    for a, b in zip(load_infos(tmp_path / "a.pkl"), expected):
        assert (a.token, a.scan, a.camera_names, a.images) == (b.token, b.scan, b.camera_names, b.images)
        assert a.lidar2img == pytest.approx(b.lidar2img, abs=1e-9)


@real
def test_real_tables_give_the_real_calibration(tmp_path):
    (tmp_path / "v1.0-trainval").symlink_to(REAL / "tables")
    infos = build(tmp_path, "v1.0-trainval", ["train", "val"])
    assert {split: len(part) for split, part in infos.items()} == {"train": 1, "val": 1}
    stored = json.loads((REAL / "sample" / "calibration.json").read_text())
    assert infos["train"].tokens == [stored["sample_token"]]
    assert infos["train"].scenes == [stored["scene_token"]]
    for name, matrix in zip(infos["train"].cameras, infos["train"].lidar2img()[0]):
        camera = stored["cameras"][name]
        assert np.abs(matrix - camera["lidar2img"]).max() < 1e-9
        row = infos["train"].cameras.index(name)
        pose = camera["ego2global_translation"] + camera["ego2global_rotation"]
        assert np.abs(infos["train"].images.ego2global[row] - pose).max() < 1e-9
        assert infos["train"].images.timestamps[row] == camera["timestamp_us"]


@real
def test_real_infos_of_every_layout(tmp_path):
    """The mini_val pickle whole, with its sweeps; the v1.1 file agrees with the exact calibration to its float32."""
    path = REAL / "infos" / "nuscenes_infos_mini_val.pkl"
    assert len(load_infos(path)) == 81
    compared = 0
    for info in load_pickle(path)["infos"]:
        sweeps, frames = info["sweeps"], ("sensor2ego", "ego2global")
        own = [np.array([[*s[f"{n}_translation"], *s[f"{n}_rotation"]] for s in sweeps]).reshape(-1, 7) for n in frames]
        lidar = [np.array([[*info[f"{n}_translation"], *info[f"{n}_rotation"]]]) for n in ("lidar2ego", "ego2global")]
        rotation, translation = relative(*own, *(np.repeat(pose, len(own[0]), axis=0) for pose in lidar))
        for i, sweep in enumerate(sweeps):
            assert rotation[i] == pytest.approx(sweep["sensor2lidar_rotation"], abs=1e-9)
            assert translation[i] == pytest.approx(sweep["sensor2lidar_translation"], abs=1e-9)
            compared += 1
    assert compared == 790
    stored = json.loads((REAL / "sample" / "calibration.json").read_text())
    (record,) = load_infos(next((REAL / "sample").glob("*.pkl")))
    assert record.token == stored["sample_token"]
    for name, image, matrix in zip(record.camera_names, record.images, record.lidar2img):
        assert image == f"samples/{name}/{stored['cameras'][name]['file']}"
        assert np.abs(matrix - stored["cameras"][name]["lidar2img"]).max() < 2e-3  # pixels times metres
