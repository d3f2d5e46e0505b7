"""Three lines of Python: every kind of weights, every kind of images and rigs, and what comes out."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pytest
import torch
from engine_tools import ROOT, tiny_config, write_config
from rig_tools import THREE, camera, changed, rig_of_infos, save, write_images, write_rig
from safetensors.torch import save_file

import tpvformer
from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat import CheckpointError, export_reference, load_config
from tpvformer.compat.infer import PUBLISHED, infer_config
from tpvformer.config import Config, ConfigError, DataConfig, GridConfig
from tpvformer.data.types import DataError
from tpvformer.data.voxelize import grid_index
from tpvformer.engine.device import pick_device
from tpvformer.model import TPVFormer as Network

pytestmark = pytest.mark.usefixtures("quick")

REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))
TINY = tiny_config(DataConfig(workers=0))
CONFIG = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, image_heads=4))  # as many as plane_heads
RING = [camera(f"c{i}", 360 / 6 * i, (77 + 16 * (i % 3), 45 + 8 * i), 40.0 + i) for i in range(6)]


@pytest.fixture(scope="module")
def model() -> TPVFormer:
    return lively(CONFIG)


def lively(config: Config) -> TPVFormer:
    """None of its tensors is left at a constant, so that everything shows in the answer."""
    made, generator = TPVFormer(config, device="cpu"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture()
def rig(tmp_path: Path) -> Path:
    return write_rig(tmp_path, THREE)


def images_of(rig: Path) -> Dict[str, Path]:
    return {file.stem: file for file in sorted((rig.parent / "images").iterdir())}


def assert_same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    assert np.abs(a.voxels.probabilities - b.voxels.probabilities).max() <= tolerance
    if tolerance == 0:
        assert np.array_equal(a.voxels.labels, b.voxels.labels)


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
    """The same archive, bit by bit, whichever way a frame with LiDAR went."""
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


def matrices(cameras: List[Dict[str, Any]]) -> Dict[str, np.ndarray]:
    made = {}
    for one in cameras:
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = one["intrinsics"]
        made[one["name"]] = intrinsics @ np.linalg.inv(one["camera2lidar"])
    return made


@pytest.mark.parametrize("number", [1, 4, 6])
def test_any_number_of_cameras_in_any_order(model: TPVFormer, tmp_path: Path, number: int) -> None:
    """Cameras of different sizes, no LiDAR, W != H != Z: the order in which they are named means nothing."""
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
    images, grey = images_of(rig), np.zeros((45, 77), np.uint8)
    projections = matrices(list(THREE))
    some = {name: path for name, path in images.items() if name != "left"}
    cases: Tuple[Tuple[Any, Any, str], ...] = (
        (some, rig, "'left', there is no such image; expected front, left, right"),
        ({**images, "top": grey}, rig, "'top', the rig has no such camera"),
        (list(images.values())[:2], rig, "images are 2; expected a list of 3: front, left, right"),
        (str(rig), rig, "images are a path"),
        (
            {**images, "front": grey},
            rig,
            r"image front is uint8 of shape \(45, 77\); expected \(height, width, 3\) uint8",
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


def test_a_folder_has_config_weights_and_card(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    secret = dataclasses.replace(CONFIG.data, root="/home/someone/set", image_cache="/home/someone/cache")
    named = TPVFormer(dataclasses.replace(CONFIG, data=secret), device="cpu")
    named.network.load_state_dict(model.network.state_dict())
    folder = named.save_pretrained(tmp_path / "saved" / "model")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "someone" not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    card = (folder / "README.md").read_text()
    assert "6 x 5 x 4" in card and "driveable_surface" in card and "from_pretrained" in card
    expected = model.predict(images_of(rig), rig)
    for source in (folder, str(folder), folder / "model.safetensors"):
        opened = TPVFormer.from_pretrained(source, device="cpu")
        assert opened.config == CONFIG
        assert_same(opened.predict(images_of(rig), rig), expected)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match='config.json: is not of the format "tpvformer-model-1"'):
        TPVFormer.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: cannot be read"):
        TPVFormer.from_pretrained(folder)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match="holds none of model.safetensors, best.pth, latest.pth"):
        TPVFormer.from_pretrained(tmp_path)


def test_a_run_is_opened_by_its_work_dir(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    stored = {"format": "tpvformer", "config": dataclasses.asdict(CONFIG), "epoch": 1}
    torch.save({**stored, "state_dict": TPVFormer(CONFIG, device="cpu").network.state_dict()}, tmp_path / "latest.pth")
    latest = TPVFormer.from_pretrained(tmp_path, device="cpu")
    torch.save({**stored, "state_dict": model.network.state_dict()}, tmp_path / "best.pth")
    expected = model.predict(images_of(rig), rig)
    assert_same(TPVFormer.from_pretrained(tmp_path, device="cpu").predict(images_of(rig), rig), expected)
    assert np.abs(latest.predict(images_of(rig), rig).voxels.probabilities - expected.voxels.probabilities).max() > 1e-6


def test_every_naming_of_the_same_weights_says_the_same(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    """Bit by bit; the configuration of the reference's files is given, or told by their shapes."""
    expected, reference = model.predict(images_of(rig), rig), export_reference(model.network)
    stale = {**reference, "tpv_head.encoder.ref_2d_hw": torch.zeros(1, 30, 1, 2)}
    for name, content in {
        "ours.pth": dict(model.network.state_dict()),
        "reference.pth": reference,
        "stale.pth": stale,
        "module.pth": {f"module.{key}": value for key, value in reference.items()},
        "wrapped.pth": {"state_dict": {f"module.{key}": value for key, value in reference.items()}, "epoch": 3},
    }.items():
        torch.save(content, tmp_path / name)
        opened = TPVFormer.from_pretrained(tmp_path / name, config=CONFIG, device="cpu")
        assert_same(opened.predict(images_of(rig), rig), expected)
        if name != "ours.pth":
            assert opened.report is not None and opened.report.kind == "reference"
            with pytest.warns(UserWarning, match="image attention with 4 heads and a grid over"):
                told = TPVFormer.from_pretrained(tmp_path / name, device="cpu")
            assert told.config.name == "inferred" and told.config.data.label_map == "nuscenes"
            assert_same(told.predict(images_of(rig), rig), expected)
    save_file({key: value.contiguous() for key, value in reference.items()}, str(tmp_path / "reference.safetensors"))
    with pytest.warns(UserWarning, match="of no published size"):
        told = TPVFormer.from_pretrained(tmp_path / "reference.safetensors", device="cpu")
    assert_same(told.predict(images_of(rig), rig), expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_recognised_by_their_shapes(name: str) -> None:
    """Shapes that the reference's own models have, where they are recorded; of our model under its names else."""
    config, manifest = load_config(name), ROOT / "tests" / "golden_data" / "manifest" / f"{name}.json"
    if manifest.is_file():
        recorded = json.loads(manifest.read_text())["state_dict"]
        shapes = {key: torch.empty(entry["shape"], device="meta") for key, entry in recorded.items()}
    else:
        shapes = export_reference(Network(config.model))
    assert infer_config(shapes, "w.pth") == config


def test_weights_that_are_not_whole_are_refused(model: TPVFormer, tmp_path: Path) -> None:
    reference = export_reference(model.network)
    file = tmp_path / "w.pth"

    def refused(content: Dict[str, Any], text: str, **more: Any) -> None:
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=text):
            TPVFormer.from_pretrained(file, device="cpu", **more)

    lost = {k: v for k, v in reference.items() if k != "tpv_head.level_embeds"}
    refused(lost, "encoder.level_embed", config=CONFIG)
    refused(lost, "has no tpv_head.level_embeds, by which its configuration could be told")
    lost = {k: v for k, v in reference.items() if "classifier.bias" not in k}
    refused(lost, "aggregator.classifier.bias", config=CONFIG)
    refused({**reference, "tpv_head.extra": torch.zeros(1)}, "tpv_head.extra", config=CONFIG)
    backbone = {k: v for k, v in reference.items() if k.startswith("img_backbone.")}
    refused(backbone, "a detector's image backbone alone", config=CONFIG)
    nineteen = {**reference, "tpv_aggregator.classifier.weight": torch.zeros(19, 16)}
    refused(nineteen, "has 19 classes, whose names are not known")
    # another port's names: what is not in the table of names is not guessed at
    other = {
        k.replace("tpv_head.", "encoder.").replace("tpv_aggregator.", "decode_head."): v for k, v in reference.items()
    }
    other = {k.replace("img_", ""): v for k, v in other.items()}
    refused(other, "entries have no place in this model: encoder.level_embeds", config=CONFIG)
    with pytest.warns(UserWarning, match="ref_3d_hw differs from this configuration's"):
        moved = dataclasses.replace(
            CONFIG.model, grid=dataclasses.replace(CONFIG.model.grid, pc_range=(-9, -9, -9, 9, 9, 9))
        )
        torch.save(reference, file)
        TPVFormer.from_pretrained(file, config=dataclasses.replace(CONFIG, model=moved), device="cpu")


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["TPVFORMER_BOMB"],))


def test_a_malicious_file_is_refused_and_not_run(model: TPVFormer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TPVFORMER_BOMB", str(tmp_path / "went off"))
    torch.save({"state_dict": model.network.state_dict(), "more": Bomb()}, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("w.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match="refused, opening it would run|not a readable PyTorch checkpoint"):
            TPVFormer.from_pretrained(tmp_path / name, config=CONFIG)
    assert not (tmp_path / "went off").exists()


def test_the_hub_is_asked_where_no_path_is(model: TPVFormer, tmp_path: Path, monkeypatch) -> None:
    """With a stand-in of huggingface_hub, and without the library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        TPVFormer.from_pretrained("owner/model")
    with pytest.raises(CheckpointError, match="no such file"):
        TPVFormer.from_pretrained("folder/model.pth")
    hub: Any = ModuleType("huggingface_hub")
    calls, shelf = [], tmp_path / "shelf"

    def create_repo(repo_id: str, private: bool, exist_ok: bool) -> None:
        calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(repo_id: str, folder_path: str, commit_message: str) -> str:
        TPVFormer.from_pretrained(folder_path, device="cpu").save_pretrained(shelf)
        return f"https://hub/{repo_id}"

    def snapshot_download(repo_id: str, revision: Any, allow_patterns: List[str]) -> str:
        calls.append(("download", repo_id, revision, tuple(allow_patterns)))
        if repo_id != "owner/model":
            raise RuntimeError("404: no such repository\nmore")
        return str(shelf)

    hub.create_repo, hub.upload_folder, hub.snapshot_download = create_repo, upload_folder, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert model.push_to_hub("owner/model", private=True) == "https://hub/owner/model"
    opened = TPVFormer.from_pretrained("owner/model", revision="v1", device="cpu")
    assert all(
        torch.equal(a, b) for a, b in zip(opened.network.state_dict().values(), model.network.state_dict().values())
    )
    assert calls == [
        ("create", "owner/model", True, True),
        ("download", "owner/model", "v1", ("config.json", "model.safetensors")),
    ]
    with pytest.raises(CheckpointError, match=r"the hub did not give it \(404: no such repository\)"):
        TPVFormer.from_pretrained("owner/other")


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
    """Points are given in the LiDAR's frame and the grid lies in the vehicle's: they are moved."""
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
    cells = torch.from_numpy(grid_index(points + np.float32([7, -9, 2]), grid.voxels, grid.pc_range))
    assert np.array_equal(result._scene.points_in(cells).numpy(), result.point_labels)
    unmoved = torch.from_numpy(grid_index(points, grid.voxels, grid.pc_range))
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
