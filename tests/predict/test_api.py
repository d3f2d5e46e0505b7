"""Three lines of Python: every kind of images and rigs, and what comes out."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Tuple

import cv2
import numpy as np
import pytest
import torch
from api_tools import CONFIG, assert_same, images_of, lively
from engine_tools import write_config
from rig_tools import THREE, camera, changed, matrices, rig_of_infos, save, write_images, write_rig

import tpvformer
from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat import load_config
from tpvformer.config import GridConfig
from tpvformer.data.voxels.voxelize import grid_index
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("quick")

REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))
RING = [camera(f"c{i}", 360 / 6 * i, (77 + 16 * (i % 3), 45 + 8 * i), 40.0 + i) for i in range(6)]


def test_the_result_says_what_and_where(model: TPVFormer, rig: Path) -> None:
    points = np.random.RandomState(0).uniform(-60, 60, (50, 4))
    result = model.predict(images_of(rig), rig, points)
    voxels = result.voxels
    assert voxels.labels.shape == (6, 5, 4) and voxels.labels.dtype == np.uint8
    assert voxels.probabilities.shape == (17, 6, 5, 4) and voxels.probabilities.dtype == np.float32
    assert np.allclose(voxels.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(voxels.probabilities.argmax(0), voxels.labels)
    assert np.array_equal(voxels.confidence, voxels.probabilities.max(0))
    assert [len(axis) for axis in voxels.axes] == [6, 5, 4]
    assert voxels.axes[0][0] == pytest.approx(-51.2 + 102.4 / 12) and voxels.axes[2][-1] == pytest.approx(2)
    assert voxels.pc_range == (-51.2, -51.2, -5, 51.2, 51.2, 3) and voxels.frame == "lidar"
    assert voxels.class_names[4] == "car" and len(voxels.class_names) == 17
    assert np.array_equal(result.points, points[:, :3].astype(np.float32))
    assert np.array_equal(result.label(points), result.point_labels) and len(set(result.point_labels)) > 1
    assert result.label(points[:0]).shape == (0,)
    with pytest.raises(DataError, match=r"points are float64 of shape \(4,\)"):
        result.label(points[0])
    with pytest.raises(DataError, match="not finite"):
        result.label([[0, 0, np.nan]])
    assert repr(result) == "Result(6x5x4 voxels, 17 classes, 50 points)" and "6x5x4" in repr(model)


def test_it_is_what_the_command_predicts(model: TPVFormer, tmp_path: Path) -> None:
    """The same archive, bit by bit, whichever way a frame with lidar went."""
    rig = write_rig(tmp_path, THREE, (40,), labelled=False)
    torch.save(model.network.state_dict(), tmp_path / "w.pth")
    words = ["--py-config", str(write_config(tmp_path / "c.py", CONFIG)), "--ckpt-path", str(tmp_path / "w.pth")]
    out = tmp_path / "out"
    assert main(["predict", *words, "--device", "cpu", "--rig", str(rig), "--out", str(out)]) == 0
    images = {one["name"]: tmp_path / "images" / f"0-{one['name']}.jpg" for one in THREE}
    scan = np.fromfile(tmp_path / "0.bin", "<f4").reshape(-1, 5)
    path = model.predict(images, rig, scan).save(tmp_path / "scene.npz")
    with np.load(path) as ours, np.load(out / "frame0.npz") as theirs:
        assert sorted(ours.files) == sorted(theirs.files) and "points" in ours.files
        for name in set(ours.files) - {"token", "scene", "number"}:  # which a rig file gives, and a call does not
            assert ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]), name


def test_images_of_every_kind_are_the_same_images(model: TPVFormer, rig: Path) -> None:
    paths = images_of(rig)
    expected = model.predict(paths, rig)
    arrays = {name: cv2.imread(str(path))[..., ::-1] for name, path in paths.items()}
    pil = {name: SimpleNamespace(convert=lambda mode, a=a: a if mode == "RGB" else None) for name, a in arrays.items()}
    tree = json.loads(rig.read_text())
    for one in tree["cameras"]:
        one["intrinsics"] = np.array(one["intrinsics"])
    in_order = [str(paths[one["name"]]) for one in THREE]
    for images, calibration in ((arrays, str(rig)), (pil, rig), (in_order, rig), (paths, tree)):
        assert_same(model.predict(images, calibration), expected)
    swapped = {**arrays, "front": arrays["front"][..., ::-1]}
    assert np.abs(model.predict(swapped, rig).voxels.probabilities - expected.voxels.probabilities).max() > 1e-6


@pytest.mark.parametrize("number", [1, 4, 6])
def test_any_number_of_cameras_in_any_order(model: TPVFormer, tmp_path: Path, number: int) -> None:
    """Cameras of different sizes, no lidar, W != H != Z: the order in which they are named means nothing."""
    cameras = RING[:number]
    write_images(tmp_path, cameras)
    images = {one["name"]: tmp_path / "images" / f"{one['name']}.jpg" for one in cameras}
    expected = model.predict(images, save(tmp_path / "rig.json", {"format": "tpvformer-rig-1", "cameras": cameras}))
    assert len(expected.point_labels) == 0
    turned = cameras[::-1]
    rig = save(tmp_path / "turned.json", {"format": "tpvformer-rig-1", "cameras": turned})
    projections = matrices(turned)
    for answer in (
        model.predict([images[one["name"]] for one in turned], rig),
        model.predict(images, projections),
        model.predict([images[name] for name in projections], projections),
        model.predict([images[one["name"]] for one in cameras], list(matrices(cameras).values())),
    ):
        assert_same(answer, expected, 1e-5)
    if number > 1:
        crossed = dict(zip(images, list(images.values())[1:] + list(images.values())[:1]))
        assert (
            np.abs(model.predict(crossed, projections).voxels.probabilities - expected.voxels.probabilities).max()
            > 1e-5
        )


def test_what_does_not_fit_is_said(model: TPVFormer, rig: Path) -> None:
    images, grey = images_of(rig), np.zeros((45, 77), np.uint16)
    projections = matrices(list(THREE))
    some = {name: path for name, path in images.items() if name != "left"}
    cases: Tuple[Tuple[Any, Any, str], ...] = (
        (some, rig, "'left', there is no such image; expected front, left, right"),
        ({**images, "top": grey}, rig, "'top', the rig has no such camera"),
        (list(images.values())[:2], rig, "images are 2; expected a list of 3: front, left, right"),
        (str(rig), rig, "images are the path .*rig.json, which is no folder"),
        (
            {**images, "front": grey},
            rig,
            r"image front is uint16 of shape \(45, 77\); expected \(height, width, 3\) uint8",
        ),
        ({**images, "front": images["left"]}, rig, "image front is 96x64 pixels, but its camera is said to have 77x45"),
        ({**images, "front": rig.parent / "no.jpg"}, rig, "image front: .*no.jpg is missing"),
        ({**images, "front": rig}, rig, "is no whole image"),
        (images, rig.parent / "no.json", "cannot be read"),
        (images, changed(json.loads(rig.read_text()), "cameras.0.width", 0), "rig: cameras.*width is 0"),
        (images, {"cameras": object(), "format": ""}, "rig holds a object"),
        (images, {**projections, "left": np.zeros((4, 4))}, "lidar2img of left is no 4x4 matrix"),
        (images, {**projections, "left": [[1], [1, 2]]}, "lidar2img of left is no 4x4 matrix"),
        (images, list(projections.values()), "lidar2img has none; give it by the same names"),
        ([], [], "lidar2img is empty"),
    )
    for given, calibration, text in cases:
        with pytest.raises(DataError, match=text):
            model.predict(given, calibration)
    many = [camera(f"c{i}", 45 * i) for i in range(7)]
    with pytest.raises(ConfigError, match="model.num_cams is 6, but the cameras of the rig need 7"):
        model.predict([np.zeros((45, 77, 3), np.uint8)] * 7, {"format": "tpvformer-rig-1", "cameras": many})


def test_the_names_and_the_caller_s_random_numbers(model: TPVFormer) -> None:
    assert load_config("demo") == load_config("config/demo.py") == load_config("demo.py")
    with pytest.raises(ConfigError, match="no such configuration file; known by name are bev_baseline, debug, demo, "):
        load_config("demos")
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    TPVFormer(CONFIG, device="cpu")
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        tpvformer.nothing_like_this  # noqa: B018


def test_a_grid_on_the_vehicle(tmp_path: Path) -> None:
    """Points are given in the lidar's frame and the grid lies in the vehicle's: they are moved."""
    grid = GridConfig(w=6, h=5, z=4, frame="ego")
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, grid=grid))
    model, lidar2ego = lively(config), np.eye(4)
    lidar2ego[:3, 3] = (7, -9, 2)
    rig = write_rig(tmp_path, THREE, lidar2ego=lidar2ego.tolist())
    points = np.random.RandomState(0).uniform(-60, 60, (50, 3)).astype(np.float32)
    logits = model.predict(images_of(rig), rig)._scene.voxel_logits()
    with torch.no_grad():
        model.network.aggregator.classifier.bias -= logits.mean((1, 2, 3))  # no class is ahead everywhere
    result = model.predict(images_of(rig), rig, points)
    assert result.voxels.frame == "ego" and np.array_equal(result.label(points), result.point_labels)
    cells = torch.from_numpy(grid_index(points + np.float32([7, -9, 2]), grid.shape, grid.pc_range))
    assert np.array_equal(result._scene.points_in(cells).numpy(), result.point_labels)
    unmoved = torch.from_numpy(grid_index(points, grid.shape, grid.pc_range))
    assert (result._scene.points_in(unmoved).numpy() != result.point_labels).any()
    with pytest.raises(DataError, match="model.grid.frame=ego needs"):
        model.predict(list(images_of(rig).values())[:1], [np.diag([60.0, 60, 1, 1])])


@pytest.mark.skipif(not os.environ.get("TPVFORMER_REAL_DATA"), reason="TPVFORMER_REAL_DATA names no nuscenes_real")
def test_a_real_frame(tmp_path: Path) -> None:
    infos, sample = REAL / "infos" / "nuscenes_infos_2samples.pkl", REAL / "sample"
    rig = rig_of_infos(infos, sample, tmp_path / "rig.json")
    images = {name: Path(path) for name, path in json.loads(rig.read_text())["frames"][0]["images"].items()}
    small = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, image_scale=0.25))
    model = TPVFormer(small, device="cpu")
    scan = np.fromfile(next(sample.glob("*LIDAR_TOP*.bin")), "<f4").reshape(-1, 5)
    result = model.predict(images, rig, scan)
    assert result.points.shape == (len(scan), 3) and len(result.point_labels) == len(scan)
    assert np.isfinite(result.voxels.probabilities).all() and pick_device("cpu")[0].type == "cpu"
