"""SemanticKITTI: what is read, what is refused, training and evaluation on a generated set."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict

import cv2
import numpy as np
import pytest
import torch
from engine_tools import MODEL, ROOT, tiny_config, write_config

from tpvformer.cli import main
from tpvformer.compat import load_config
from tpvformer.config import Config, DataConfig, override
from tpvformer.data import semantickitti
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.street import kitti, rig
from tpvformer.data.street.camera import render_camera
from tpvformer.data.street.drive import start_ride
from tpvformer.data.street.shadows import cast_shadows
from tpvformer.data.street.write import write_sequences
from tpvformer.engine import train as run
from tpvformer.engine.logging import modelzoo_log as results
from tpvformer.errors import ConfigError, DataError
from tpvformer.labels import RAW_NAMES, class_names
from tpvformer.model import TPVFormer

pytestmark = pytest.mark.usefixtures("quick")
SEED = 5
COUNT = 256 * 256 * 32
# the data set's own numbers: learning class by raw label; None: something without a class
PUBLISHED: Dict[int, Any] = {
    0: 0, 1: None, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12,
    50: 13, 51: 14, 52: None, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: None, 252: 1, 253: 7, 254: 6, 255: 8,
    256: 5, 257: 5, 258: 4, 259: 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sequences 08, 00 and 01, a frame each."""
    out = tmp_path_factory.mktemp("kitti") / "set"
    assert write_sequences(out, 3, SEED, 1, workers=1)
    return out


def kitti_config(folder: Path, **data: Any) -> Config:
    """config/tpv_kitti_ssc.py with a tiny model and the generated files; ``data`` changes its data section."""
    shipped = load_config(str(ROOT / "config" / "tpv_kitti_ssc.py"))
    grid = dataclasses.replace(shipped.model.grid, w=16, h=16, z=4, scale_w=16, scale_h=16, scale_z=8)
    section = dataclasses.replace(
        shipped.data,
        root=str(folder),
        occupancy_root=str(folder),
        train_infos="00 01",
        image_scale=0.25,
        photometric=False,
        mirror=False,
        workers=0,
    )
    tiny = tiny_config(DataConfig(), epochs=1)
    return dataclasses.replace(
        shipped,
        name="tiny_kitti",
        model=dataclasses.replace(MODEL, grid=grid, num_classes=20, num_cams=1),
        data=dataclasses.replace(section, **data),
        optim=tiny.optim,
        train=tiny.train,
    )


def dataset(folder: Path, split: str = "val", **data: Any) -> FrameDataset:
    config = kitti_config(folder, **data)
    return FrameDataset(config.data, config.model.grid, split, 0)


def test_the_shipped_configuration() -> None:
    config = load_config(str(ROOT / "config" / "tpv_kitti_ssc.py"))
    assert config.model.grid.shape == semantickitti.VOXELS == (256, 256, 32)
    assert np.allclose(np.array(config.model.grid.extent) / config.model.grid.shape, 0.2)
    assert len(config.loss.class_weights) == config.model.num_classes == len(class_names("semantickitti")) == 20
    assert sorted(config.data.train_infos.split() + [config.data.val_infos]) == [f"{n:02}" for n in range(11)]
    backbone = dataclasses.replace(config.model.backbone, blocks=(1, 1, 1, 1))
    with torch.device("meta"):
        model = TPVFormer(dataclasses.replace(config.model, backbone=backbone, layers=("self_cross",)))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["aggregator.classifier.weight"] == (20, 96)
    assert (128 * 128, 96) in shapes.values() and (16 * 128, 96) in shapes.values()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("data.format=kitti", "expected 'nuscenes'.*'semantickitti'"),
        ("data.label_map=nuscenes", "semantickitti in all three or in none"),
        ("model.num_classes=18", "loss.class_weights has 20 numbers"),
        ("data.fill_label=17", "data.fill_label=0"),
        ("data.ignore_label=19", "unknown voxels are 255"),
        ("model.grid.z=8", "expected|set model.grid"),
        ("loss.ce_input=points", "set loss.ce_input to voxel"),
        ("loss.lovasz_input=points", "labels voxels"),
        ("loss.lovasz_input=all", "'points' or 'voxel' or 'none'"),
        ("loss.class_weights=[1.0, 2.0]", "expected model.num_classes, 20"),
        ("data.ignore_label=0", "free space as a class"),
    ],
)
def test_combinations_that_cannot_work(change: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        override(load_config(str(ROOT / "config" / "tpv_kitti_ssc.py")), [change])


def test_labels_are_those_of_the_files(folder: Path) -> None:
    data = dataset(folder)
    assert (data.tokens, data.scenes, data.has_points) == (["08/000000"], ["08"], False)
    frame = data.load_frame(0)
    assert frame.dense is not None and frame.dense.classes.shape == (256, 256, 32)
    assert len(frame.points) == len(frame.labels) == 0
    voxels = folder / "sequences" / "08" / "voxels" / "000000"
    raw, invalid = (voxels.with_suffix(f".{kind}").read_bytes() for kind in ("label", "invalid"))
    seen = set()
    chosen = np.random.RandomState(0).randint(0, COUNT, 3000).tolist()
    chosen += np.flatnonzero(np.frombuffer(raw, "<u2"))[::7].tolist()
    for n in chosen:
        x, y, z = n // (256 * 32), n // 32 % 256, n % 32
        known = PUBLISHED[raw[2 * n] + 256 * raw[2 * n + 1]]
        hidden = invalid[n // 8] >> (7 - n % 8) & 1
        assert frame.dense.classes[x, y, z] == (255 if hidden or known is None else known)
        seen.add(int(frame.dense.classes[x, y, z]))
    assert {0, 9, 11, 13, 255} <= seen


def test_every_raw_label(tmp_path: Path) -> None:
    raw = np.zeros(COUNT, "<u2")
    raw[: len(PUBLISHED)] = list(PUBLISHED)
    (tmp_path / "0.label").write_bytes(raw.tobytes())
    bits = np.zeros(COUNT // 8, np.uint8)
    bits[-1] = 1  # the last voxel
    (tmp_path / "0.invalid").write_bytes(bits.tobytes())
    classes = semantickitti.read_voxels(tmp_path / "0.label", "00/0").classes.ravel()
    assert classes[: len(PUBLISHED)].tolist() == [255 if c is None else c for c in PUBLISHED.values()]
    assert (classes[-2], classes[-1]) == (0, 255)


def test_camera_and_labels_lie_on_each_other(folder: Path) -> None:
    """What the camera was shown at the pixel of a labelled voxel is of its class, unless something stands before it."""
    frame = dataset(folder).load_frame(0)
    stored = cv2.imread(str(folder / "sequences" / "08" / "image_2" / "000000.png"))
    assert stored.shape == (376, 1241, 3)
    assert np.array_equal(frame.images[0].numpy(), stored[:370, :1220])
    assert np.allclose(frame.lidar2img[0, :3], kitti.P2 @ np.vstack([kitti.TR, [0, 0, 0, 1]]), atol=1e-9)

    ride = start_ride(SEED, 0, 1)
    at, turn = ride.ego(0.0)
    intrinsic, camera2lidar = kitti.camera_pose()
    camera = rig.pose(at, rig.euler_quaternion(*turn)) @ kitti.LIDAR2EGO @ camera2lidar
    light = ride.street.light.exposure
    shown = render_camera(ride.street, cast_shadows(ride.street), camera, intrinsic, (1241, 376), light, 1)[1]
    on_road = shown == RAW_NAMES.index("flat.driveable_surface")
    assert frame.dense is not None
    cells = np.argwhere(frame.dense.classes == class_names("semantickitti").index("road"))
    cells = cells[cells[:, 0] < 100]  # 20 m
    places = np.array([0, -25.6, -2]) + (cells + 0.5) * 0.2
    a, b, depth = (np.c_[places, np.ones(len(places))] @ frame.lidar2img[0].T)[:, :3].T
    ahead = depth > 1
    u, v = (a / depth)[ahead].astype(int), (b / depth)[ahead].astype(int)
    inside = (u >= 0) & (u < 1241) & (v >= 0) & (v < 376)
    assert inside.sum() > 500
    right = on_road[v[inside], u[inside]].mean()
    assert right > 0.7
    assert on_road[v[inside], 1240 - u[inside]].mean() < right - 0.1, "a mirrored image does not fit"


def calibration(**lines: str) -> str:
    identity = "1 0 0 0 0 1 0 0 0 0 1 0"
    known = {"P0": identity, "P2": "700 0 600 45 0 700 180 0.5 0 0 1 0.003", "Tr": "0 -1 0 0.1 0 0 -1 0.2 1 0 0 -0.3"}
    return "".join(f"{name}: {numbers}\n" for name, numbers in {**known, **lines}.items() if numbers)


def test_the_projection_is_p2_whole_after_tr(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text(calibration())
    matrix = semantickitti.read_calibration(tmp_path / "calib.txt")
    x, y, z = 10.3, 2.0, -1.0  # metres ahead, to the left, up
    right, down, ahead = -y + 0.1, -z + 0.2, x - 0.3
    expected = [700 * right + 600 * ahead + 45, 700 * down + 180 * ahead + 0.5, ahead + 0.003, 1]
    assert np.allclose(matrix @ [x, y, z, 1], expected)


def change_calibration(**lines: str) -> Callable[[Path], None]:
    return lambda sequence: (sequence / "calib.txt").write_text(calibration(**lines)) and None


def change_label(value: int) -> Callable[[Path], None]:
    def change(sequence: Path) -> None:
        raw = np.fromfile(sequence / "voxels" / "000000.label", "<u2")
        raw[77] = value
        raw.tofile(sequence / "voxels" / "000000.label")

    return change


def cut(name: str) -> Callable[[Path], None]:
    return lambda sequence: (sequence / name).write_bytes((sequence / name).read_bytes()[:-1]) and None


def shrink(sequence: Path) -> None:
    path = str(sequence / "image_2" / "000000.png")
    cv2.imwrite(path, cv2.imread(path)[:360])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (change_calibration(Tr=""), "calib.txt: expected a line 'Tr:' with 12 numbers"),
        (change_calibration(P2="1 2 3"), "calib.txt: expected a line 'P2:' with 12 numbers"),
        (change_calibration(P2="1 2 x" + " 0" * 9), "calib.txt: expected a line 'P2:' with 12 numbers"),
        (change_calibration(P2="0 " * 12), "calib.txt: P2 and Tr do not make a usable projection"),
        (lambda s: (s / "calib.txt").unlink(), "calib.txt cannot be read"),
        (lambda s: (s / "image_2" / "000000.png").unlink(), "sample 08/000000: .*000000.png is missing"),
        (lambda s: (s / "voxels" / "000000.bin").unlink(), "voxels holds no .*bin"),
        (lambda s: shutil.rmtree(s), "08 is no folder; set data.root"),
        (shrink, "sample 08/000000: the image is 1241x360; expected 1220x370 or more"),
        (cut("image_2/000000.png"), "000000.png is no whole image"),
        (cut("voxels/000000.label"), "has 4194303 bytes; expected 4194304 for 256x256x32 voxels"),
        (cut("voxels/000000.invalid"), "000000.invalid has 262143 bytes; expected 262144"),
        (lambda s: (s / "voxels" / "000000.invalid").unlink(), "sample 08/000000: .*000000.invalid cannot be read"),
        (lambda s: (s / "voxels" / "000000.label").unlink(), "sample 08/000000: no semantickitti labels; expected"),
        (change_label(300), "sample 08/000000: .*000000.label holds label 300, which SemanticKITTI does not define"),
    ],
)
def test_a_broken_set_is_one_sentence(folder: Path, tmp_path: Path, change: Any, complaint: str) -> None:
    shutil.copytree(folder / "sequences" / "08", tmp_path / "sequences" / "08")
    change(tmp_path / "sequences" / "08")
    with pytest.raises(DataError, match=complaint) as caught:
        dataset(tmp_path)[0]
    assert "\n" not in str(caught.value)


def test_no_sequence_at_all(folder: Path) -> None:
    with pytest.raises(DataError, match="no sequence is named"):
        dataset(folder, val_infos=" ")


def test_sequences_with_images_of_different_sizes_share_a_batch(folder: Path) -> None:
    data = dataset(folder, "train")
    stored = {cv2.imread(str(folder / "sequences" / n / "image_2" / "000000.png")).shape for n in ("00", "01")}
    assert len(stored) == 2
    batch = collate([data[0], data[1]], 255)
    assert batch.images.shape == (2, 1, 370, 1220, 3)
    assert batch.voxel_coords.shape == (2, 0, 3)
    assert batch.point_labels.shape == (2, 0)
    assert batch.ray_origins is batch.voxel_mask is None


def test_half_of_the_training_images_are_mirrored(folder: Path) -> None:
    data, plain = (
        dataset(folder, "train", mirror=True, image_scale=0.5),
        dataset(folder, image_scale=0.5, val_infos="00"),
    )
    straight, kinds = plain[0], set()
    point = torch.tensor([20.0, 3.0, 0.0, 1.0])
    u, v, depth, _ = (straight.grid2img[0] @ point).tolist()
    for epoch in range(8):
        data.set_epoch(epoch)
        sample = data[0]
        same = torch.equal(sample.images, straight.images)
        kinds.add(same)
        assert same or torch.equal(sample.images, straight.images.flip(2))
        across = u if same else 0.5 * 1220 * depth - u
        assert torch.allclose(sample.grid2img[0] @ point, torch.tensor([across, v, depth, 1.0]), rtol=1e-5)
        assert torch.equal(sample.voxel_labels, straight.voxel_labels)
    assert kinds == {True, False}


def test_two_steps_an_evaluation_and_what_is_made_of_them(folder: Path, tmp_path: Path, capsys) -> None:
    config = kitti_config(folder)
    summary = run.train(config, tmp_path, "cpu")
    assert (summary["steps"], summary["leading_metric"]) == (2, "ssc_miou")
    assert summary["final_loss"] > 0
    evaluation = json.loads((tmp_path / "summary.json").read_text())["evaluation"]
    assert (evaluation["samples"], evaluation["pts"], evaluation["vox"]) == (1, None, None)
    assert tuple(evaluation["metrics"]) == ("sc_iou", "sc_precision", "sc_recall", "ssc_miou")
    assert list(evaluation["metrics"]["ssc_miou"]["iou"]) == list(class_names("semantickitti"))[1:]
    assert summary["best_val_leading"] == evaluation["metrics"]["ssc_miou"]["value"]
    assert summary["best_val_miou_pts"] is None
    assert (tmp_path / "best.pth").is_file()
    text = max(tmp_path.glob("2*.log")).read_text()
    assert "while the best val ssc_miou is" in text and "miou pts" not in text and "(0 points)" not in text
    lines = results.publish(tmp_path)
    assert f"Final Train Accuracy : {summary['best_val_leading']:.3f}" in lines
    after = lines[lines.index(f"Final Train Accuracy : {summary['best_val_leading']:.3f}") + 1]
    assert after.startswith("(of the validation set; ") and "accuracy: best ssc_miou in percent" in after

    file, picture = str(write_config(tmp_path / "kitti.py", config)), tmp_path / "frame.png"
    weights = ["--ckpt-path", str(tmp_path / "best.pth"), "--py-config", file, "--device", "cpu"]
    capsys.readouterr()
    assert main(["picture", *weights, "--out", str(picture)]) == 0
    assert "occupied voxels right" in capsys.readouterr().out
    shown = cv2.imread(str(picture))
    assert shown.shape[1] == 1920 and shown[100:600].std() > 20
    assert main(["check-geometry", "--py-config", file, "--out", str(picture)]) == 0
    report = capsys.readouterr().out
    assert "sample 08/000000" in report and "middles of labelled voxels" in report
    for arguments, complaint in (
        (["--permute-cameras"], "controls compare the classes of lidar points"),
        (["--submission", str(tmp_path / "s.zip")], "a submission is for nuScenes' servers"),
    ):
        assert main(["eval", *weights, *arguments]) == 2
        assert complaint in capsys.readouterr().err


def test_the_generator_is_asked_again(folder: Path, tmp_path: Path, capsys) -> None:
    assert write_sequences(folder, 3, SEED, 1) is False
    with pytest.raises(ConfigError, match="holds another synthetic set"):
        write_sequences(folder, 3, SEED + 1, 1)
    with pytest.raises(ConfigError, match="at most 11"):
        write_sequences(tmp_path / "many", 12, SEED, 1)
    assert main(["synth", "--kitti", "--out", str(tmp_path / "set"), "--size", "64x32"]) == 2
    assert "leave --size" in capsys.readouterr().err
    voxels = folder / "sequences" / "08" / "voxels" / "000000"
    bits = {
        k: np.unpackbits(np.fromfile(voxels.with_suffix(f".{k}"), np.uint8)) for k in ("bin", "invalid", "occluded")
    }
    raw = np.fromfile(voxels.with_suffix(".label"), "<u2")
    assert not raw[bits["invalid"] == 1].any(), "what nothing observed has no label"
    assert (raw[bits["bin"] == 1] > 0).mean() > 0.5, "the scan hits what is labelled"
    assert not (bits["invalid"] & bits["occluded"]).any()
