"""Rig files give the samples of info files; other sizes and other cameras change nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from engine_tools import CPU, MODEL, tiny_config, tiny_model
from rig_tools import THREE, camera, find, rig_of_infos, save, write_images, write_rig
from tiny_nuscenes import write_tiny

from tpvformer.config import Config, DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.images.letterbox import canvas_size, fitted
from tpvformer.data.images.preprocess import network_images
from tpvformer.data.loader import collate
from tpvformer.data.nuscenes.infos.cameras import camera_slots
from tpvformer.data.rig.read import NUSCENES_LIDAR
from tpvformer.data.scans.read import read_cloud
from tpvformer.engine import train as run
from tpvformer.engine.forward import predict
from tpvformer.errors import ConfigError, DataError
from tpvformer.geometry import project
from tpvformer.predict.encoded_frame import predict_scene

pytestmark = pytest.mark.usefixtures("quick")
REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))
GRID = GridConfig(w=6, h=5, z=4)


def dataset(path: Path, split: str = "val", grid: GridConfig = GRID, labels: bool = True, **data: Any) -> FrameDataset:
    cfg = DataConfig(train_infos=str(path), val_infos=str(path), workers=0, **data)
    return FrameDataset(cfg, grid, split, 0, require_labels=labels)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_rig_file_gives_the_sample_of_the_infos(tmp_path: Path, split: str) -> None:
    """To the last bit, with its cameras in another order; and nothing of data.root is needed."""
    cfg = write_tiny(tmp_path / "set")
    infos = Path(cfg.val_infos)
    stored = pickle.loads(infos.read_bytes())  # noqa: S301 - a file that this test has just written
    info = stored["infos"][0]
    for one in info["cams"].values():
        one["sensor2lidar_rotation"][:, 0] *= -1  # the tiny set's cameras are mirrors, which a rig's may not be
    infos.write_bytes(pickle.dumps(stored, protocol=2))
    scan = str(find(tmp_path, info["lidar_path"]))
    labels = str(find(tmp_path, "scan0_lidarseg.bin"))
    path = rig_of_infos(infos, tmp_path, tmp_path / "rig.json", 0, scan, labels)
    theirs = FrameDataset(cfg, GRID, split, 0)[0]
    ours = dataset(path, split, root="/nowhere")[0]
    for field in dataclasses.fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        same = torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert same, field.name
    assert ours.camera_slots is None


def test_poses_on_the_vehicle_are_those_at_the_lidar(tmp_path: Path) -> None:
    """camera2ego with lidar2ego, as a quaternion, is camera2lidar; and an ego grid sees the same pixels."""
    half = float(np.sqrt(0.5))
    lidar2ego = {"translation": [1.0, 0.2, 1.8], "rotation": [half, 0, 0, -half]}
    plain = load_infos(write_rig(tmp_path / "a", lidar2ego=lidar2ego))[0]
    assert plain.lidar2ego is not None
    moved = []
    for one in THREE:
        one = dict(one)
        one["camera2ego"] = (plain.lidar2ego @ np.array(one.pop("camera2lidar"))).tolist()
        moved.append(one)
    path = write_rig(tmp_path / "b", moved, lidar2ego=lidar2ego)
    np.testing.assert_allclose(load_infos(path)[0].lidar2img, plain.lidar2img, atol=1e-9)
    sample = dataset(path, grid=dataclasses.replace(GRID, frame="ego"), labels=False)[0]
    pixels, _ = project(np.array([[1.0, 9.0, 0.5]]), dataset(path, labels=False)[0].grid2img[0].numpy())
    place = plain.lidar2ego @ [1.0, 9.0, 0.5, 1.0]
    again, _ = project(place[None, :3], sample.grid2img[0].numpy())
    np.testing.assert_allclose(again, pixels, atol=1e-3)


def test_without_lidar_the_grid_lies_where_nuscenes_lidar_would_be(tmp_path: Path) -> None:
    one = dict(camera("CAM_FRONT"))
    one["camera2ego"] = {"translation": [1.7, 0, 1.5], "rotation": [0.5, -0.5, 0.5, -0.5]}
    del one["camera2lidar"]
    record = load_infos(write_rig(tmp_path, [one]))[0]
    assert record.token == "rig" and record.scan == record.labels == ""
    assert record.lidar2ego is NUSCENES_LIDAR
    # a point on the ground, 10 m before the rear axle and 2 m to its right, as the lidar frame has it
    pixels, depth = project(np.array([[2.0, 10 - 0.943713, -1.84023]]), record.lidar2img[0])
    assert depth[0] == pytest.approx(10 - 1.7)
    assert pixels[0] == pytest.approx([38.5 + 60 * 2 / 8.3, 22.5 + 60 * 1.5 / 8.3])
    path = write_rig(tmp_path, [one], (20,))
    with pytest.raises(DataError, match="CAM_FRONT has camera2ego and the frames have lidar, so lidar2ego is needed"):
        load_infos(path)
    with pytest.raises(DataError, match="rig file no lidar2ego"):
        dataset(write_rig(tmp_path / "b"), grid=dataclasses.replace(GRID, frame="ego"), labels=False)[0]


def test_sizes_are_those_of_the_images(tmp_path: Path) -> None:
    for cameras in (THREE[:1], THREE):
        path = write_rig(tmp_path, cameras)
        picture = tmp_path / "images" / "front.jpg"
        cv2.imwrite(str(picture), np.zeros((40, 77, 3), np.uint8))
        with pytest.raises(DataError, match=r"sample rig: .*front.jpg is 77x40 pixels, but .* said to have 77x45"):
            dataset(path, labels=False)[0]
        picture.unlink()
        with pytest.raises(DataError, match=r"front.{jpg,jpeg,png} is missing; correct its path in .*rig.json"):
            dataset(path, labels=False)[0]


def test_poses_as_calibration_tools_write_them(tmp_path: Path) -> None:
    """[R | t] of three rows, and a rotation as a matrix beside the translation."""
    expected = load_infos(write_rig(tmp_path))[0].lidar2img
    pose = np.array(THREE[1]["camera2lidar"])
    turn, place = pose[:3, :3].tolist(), pose[:3, 3].tolist()
    for other in (pose[:3].tolist(), {"translation": place, "rotation": turn}):
        path = write_rig(tmp_path, (THREE[0], {**THREE[1], "camera2lidar": other}, THREE[2]))
        np.testing.assert_array_equal(load_infos(path)[0].lidar2img, expected)


def test_matrices_as_one_list_row_after_row(tmp_path: Path) -> None:
    nested = load_infos(write_rig(tmp_path))[0].lidar2img
    flat = []
    for i, one in enumerate(json.loads(json.dumps(THREE))):
        pose = np.array(one["camera2lidar"])
        forms = [pose.ravel().tolist(), pose[:3].ravel().tolist()]
        forms.append({"translation": pose[:3, 3].tolist(), "rotation": pose[:3, :3].ravel().tolist()})
        zero = {"model": "plumb_bob", "coefficients": [0, 0.0, 0, 0, 0]}
        intrinsics = np.array(one["intrinsics"]).ravel().tolist()
        flat.append({**one, "camera2lidar": forms[i], "intrinsics": intrinsics, "distortion": zero})
    np.testing.assert_array_equal(load_infos(write_rig(tmp_path, flat))[0].lidar2img, nested)


def test_suffixes_of_images_in_any_letters(tmp_path: Path) -> None:
    path = write_rig(tmp_path)
    images = tmp_path / "images"
    for name, kind in (("front", "JPG"), ("left", "Jpeg"), ("right", "PNG")):
        (images / f"{name}.jpg").rename(images / f"{name}.{kind}")
    (images / "front.png").write_bytes(b"")  # .jpg comes first, in whatever letters
    assert [Path(file).name for file in load_infos(path)[0].images] == ["front.JPG", "left.Jpeg", "right.PNG"]
    (images / "left.Jpeg").unlink()
    with pytest.raises(DataError, match=r"images/left.{jpg,jpeg,png} is missing"):
        dataset(path, labels=False)[0]


def test_canvas_sizes() -> None:
    assert canvas_size([(10, 40), (30, 20), (60, 10)]) == (60, 10)
    assert canvas_size([(640, 480), (1600, 900), (900, 1600)]) == (1600, 900)
    assert fitted((640, 480), (1600, 900)) == (1200, 900)
    assert fitted((1920, 886), (1920, 1280)) == (1920, 886)
    assert fitted((5000, 1), (100, 100)) == (100, 1)


def test_what_a_camera_sees_stays_where_it_projects(tmp_path: Path) -> None:
    """A white square around the place of a point is there on the canvas as well; the rest of the canvas is the mean."""
    rig = (
        camera("wide", size=(160, 90), focal=100.0),
        camera("high", size=(60, 120), focal=80.0),
        camera("small", size=(48, 40)),
    )
    path = write_rig(tmp_path, rig)
    point = np.array([[0.6, 8.2, 0.4]])
    record = load_infos(path)[0]
    for one, matrix in zip(sorted(rig, key=lambda c: c["name"]), record.lidar2img):
        picture = np.zeros((one["height"], one["width"], 3), np.uint8)
        u, v = project(point, matrix)[0][0]
        picture[int(v) - 4 : int(v) + 5, int(u) - 4 : int(u) + 5] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{one['name']}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
    data = dataset(path, labels=False)
    frame, sample = data.load_frame(0), data[0]
    assert frame.images.shape == (3, 90, 160, 3)
    assert [p.shape[:2] for p in frame.pictures()] == [(90, 45), (90, 108), (90, 160)]  # high, small, wide
    for matrix, picture in zip(frame.lidar2img, frame.pictures()):
        (u, v), depth = project(point, matrix)[0][0], project(point, matrix)[1]
        assert picture[int(v), int(u)].min() > 200
        bright = np.argwhere(picture[..., 0] > 128)
        assert bright.mean(0) + 0.5 == pytest.approx([v, u], abs=2.1)
        assert depth[0] == pytest.approx(8.0)
    images = network_images(collate([sample], 0), DataConfig())[0]
    assert images[0, :, :, 45:].abs().max() < 0.5 and images[0, :, :90, :45].abs().min() > 3
    assert images[2, :, :90, :160].abs().min() > 3


def test_camera_names_choose_their_embeddings() -> None:
    assert camera_slots(["CAM_BACK", "CAM_FRONT"]) == [3, 0]
    assert camera_slots(["left", "CAM_FRONT_RIGHT", "front"]) == [2, 1, 0]
    assert camera_slots([f"c{i}" for i in range(8)]) == list(range(8))
    assert camera_slots(["b", "a"]) == [1, 0]


def test_order_in_the_file_does_not_matter_and_slots_reach_the_model(tmp_path: Path) -> None:
    rig = (camera("CAM_BACK", 180), camera("CAM_FRONT"))
    path = write_rig(tmp_path, rig)
    sample = dataset(path, labels=False)[0]
    other = dataset(write_rig_again(tmp_path, rig[::-1]), labels=False)[0]
    assert torch.equal(sample.grid2img, other.grid2img) and torch.equal(sample.images, other.images)
    assert sample.camera_slots is not None and sample.camera_slots.tolist() == [0, 3]
    config, model = tiny_config(DataConfig(workers=0)), tiny_model().eval()
    batch = collate([sample], 0)
    with torch.no_grad():
        ours = predict(model, batch, config, dense=True).voxel_logits
        wrong = predict(model, dataclasses.replace(batch, camera_slots=None), config, dense=True).voxel_logits
        model.encoder.camera_embed[1] = model.encoder.camera_embed[3]
        right = predict(model, dataclasses.replace(batch, camera_slots=None), config, dense=True).voxel_logits
    assert torch.equal(ours, right)
    assert not torch.equal(ours, wrong)


def write_rig_again(folder: Path, cameras: Any) -> Path:
    return save(folder / "again.json", {"format": "tpvformer-rig-1", "cameras": list(cameras)})


def test_three_cameras_of_different_sizes_train_and_are_evaluated(tmp_path: Path) -> None:
    path = write_rig(tmp_path, THREE, (60, 80, 0, 50))
    data = DataConfig(train_infos=str(path), val_infos=str(path), batch_size=2, workers=0)
    config = tiny_config(data, epochs=1)
    summary = run.train(config, tmp_path / "work", "cpu")
    assert summary["steps"] == 2 and np.isfinite(summary["final_loss"])
    evaluation = summary["evaluation"]
    assert (evaluation["samples"], evaluation["scenes"]) == (4, 2)
    assert evaluation["pts"]["miou"] is not None
    few = dataclasses.replace(config, model=dataclasses.replace(MODEL, num_cams=2))
    with pytest.raises(ConfigError, match="num_cams is 2, but the cameras of .*rig.json need 3 embeddings"):
        run.train(few, tmp_path / "two", "cpu")


def test_labels_are_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    path = write_rig(tmp_path, THREE, (60, 80), labelled=False)
    with pytest.raises(DataError, match="frame frame0 has lidar but no labels, as 2 of 2 have; add labels"):
        dataset(path)
    assert len(dataset(path, labels=False)[0].grid_index) == 60
    with pytest.raises(DataError, match="none of its 1 records names a lidar scan"):
        dataset(write_rig(tmp_path / "b"))


def test_scans_of_other_layouts(tmp_path: Path) -> None:
    cloud = np.random.RandomState(0).uniform(-9, 9, (30, 6)).astype(np.float32)
    cloud.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "a.npy", cloud.astype(np.float64))
    for path, columns in ((tmp_path / "a.bin", 6), (tmp_path / "a.npy", 5)):
        np.testing.assert_array_equal(read_cloud(path, "t", columns).points, cloud[:, :3])
    with pytest.raises(DataError, match=r"expected a multiple of 28 \(float32 x, y, z and 4 more\)"):
        read_cloud(tmp_path / "a.bin", "t", 7)
    for i, wrong in enumerate((np.zeros(3), np.zeros((0, 3)), np.array([["x"] * 3]), np.array([[{}] * 3]))):
        np.save(tmp_path / f"{i}.npy", wrong, allow_pickle=True)
        with pytest.raises(DataError, match="expected an array of numbers with a point a row"):
            read_cloud(tmp_path / f"{i}.npy", "t")
    (tmp_path / "b.npy").write_bytes(b"")
    with pytest.raises(DataError, match="is no array file"):
        read_cloud(tmp_path / "b.npy", "t")


def test_the_examples_of_the_documentation_work(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "rig.md").read_text(encoding="utf-8")
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]
    assert len(examples) == 2
    for i, rig in enumerate(examples):
        folder = tmp_path / str(i)
        write_images(folder, rig["cameras"])
        for frame in rig.get("frames", ()):
            for path in (*frame["images"].values(), frame["lidar"], frame["labels"]):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
            for name, path in frame["images"].items():
                (folder / "images" / f"{name}.jpg").rename(folder / path)
            np.zeros((7, rig["lidar_columns"]), "<f4").tofile(folder / frame["lidar"])
            np.zeros(7, np.uint8).tofile(folder / frame["labels"])
        path = save(folder / "rig.json", rig)
        data = dataset(path, labels="frames" in rig, image_scale=0.1)
        assert len(data[0].grid_index) == (7 if "frames" in rig else 0)
        config = tiny_config(DataConfig(image_scale=0.1))
        assert predict_scene(tiny_model(), data[0], config, CPU).voxel_labels.shape == (6, 5, 4)


@pytest.mark.skipif(not (REAL / "sample").is_dir(), reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real")
def test_a_real_frame_without_lidar_has_the_voxels_of_its_infos(tmp_path: Path) -> None:
    infos = REAL / "infos" / "nuscenes_infos_2samples.pkl"
    path = rig_of_infos(infos, REAL / "sample", tmp_path / "rig.json")
    cfg = DataConfig(root=str(REAL / "sample"), val_infos=str(infos), image_scale=0.25)
    config: Config = tiny_config(cfg)
    theirs = FrameDataset(cfg, GRID, "val", 0, require_labels=False)[0]
    ours = dataset(path, labels=False, image_scale=0.25)[0]
    model = tiny_model()
    scenes = [predict_scene(model, sample, config, CPU) for sample in (ours, theirs)]
    assert len(scenes[0].point_labels) == 0 and len(scenes[1].point_labels) == 34688
    np.testing.assert_array_equal(scenes[0].voxel_labels, scenes[1].voxel_labels)
    np.testing.assert_array_equal(scenes[0].confidence, scenes[1].confidence)
