"""Cameras of info files have the embeddings of their names, in whatever order a record lists them; calibrations that
can be computed with and still are none (other units, other orders) are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch
from engine_tools import CPU, MODEL, POINTS, tiny_config, tiny_model, write_config
from info_tools import LAYOUTS, depth, edit, listed, modern, records, store, write_layout, write_set
from tiny_nuscenes import CAMERAS

from tpvformer.cli import main
from tpvformer.config import Config, DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.loader import make_loader
from tpvformer.engine import train as run
from tpvformer.engine.device.preflight import check_cameras
from tpvformer.errors import ConfigError, DataError
from tpvformer.predict.encoded_frame import predict_scene

pytestmark = pytest.mark.usefixtures("quick")

ORDERS = {
    "BEVDet": ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
    "alphabet": tuple(sorted(CAMERAS)),
    "backwards": CAMERAS[::-1],
}
# nuScenes' names have their embeddings, whichever cameras there are
SLOTS = {"CAM_FRONT": 0, "CAM_FRONT_RIGHT": 1, "CAM_FRONT_LEFT": 2, "CAM_BACK": 3, "CAM_BACK_LEFT": 4}
SLOTS["CAM_BACK_RIGHT"] = 5


def val_set(data: DataConfig) -> FrameDataset:
    return FrameDataset(data, MODEL.grid, "val", 0, require_labels=False)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_cameras_means_nothing(tmp_path: Path, layout: str, order: str) -> None:
    cfg = write_set(tmp_path, (9, 8))
    expected = load_infos(cfg.val_infos)
    found = load_infos(write_layout(cfg, layout, tmp_path, ORDERS[order]))
    assert len(found) == 2
    for a, b in zip(found, expected):
        assert (a.token, a.scan, a.camera_names, a.images, a.slots) == (b.token, b.scan, CAMERAS, b.images, ())
        np.testing.assert_allclose(a.lidar2img, b.lidar2img, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_the_answer_is_the_same_to_the_last_bit(tmp_path: Path, order: str) -> None:
    config, model = tiny_config(write_set(tmp_path, (9,))), tiny_model()
    with torch.no_grad():
        model.encoder.camera_embed.normal_(0, 8)
    answers = []
    for names in (CAMERAS, ORDERS[order]):
        edit(config.data, lambda infos, names=names: infos.__setitem__(0, listed(infos[0], names)))
        answers.append(predict_scene(model, val_set(config.data)[0], config, CPU))
    assert np.array_equal(answers[0].confidence, answers[1].confidence)
    assert np.array_equal(answers[0].voxel_labels, answers[1].voxel_labels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("there", [CAMERAS[:1] + CAMERAS[2:], ("CAM_BACK", "CAM_FRONT"), ("CAM_BACK_RIGHT",)])
def test_an_absent_camera_moves_no_other(tmp_path: Path, layout: str, there: Any) -> None:
    cfg = write_set(tmp_path, (9,))
    whole = load_infos(cfg.val_infos)[0]
    (record,) = load_infos(write_layout(cfg, layout, tmp_path, there))
    assert record.slots == tuple(sorted(SLOTS[name] for name in there))
    assert record.camera_names == tuple(CAMERAS[slot] for slot in record.slots)
    assert record.images == tuple(whole.images[slot] for slot in record.slots)
    np.testing.assert_allclose(record.lidar2img, whole.lidar2img[list(record.slots)], atol=1e-9)
    data = replace(cfg, val_infos=str(tmp_path / f"{layout}.{'safetensors' if layout == 'safetensors' else 'pkl'}"))
    assert val_set(data)[0].camera_slots.tolist() == list(record.slots)
    assert val_set(data).slots_used == max(record.slots) + 1


def test_other_names_take_what_is_left_in_the_whole_file(tmp_path: Path, capsys) -> None:
    """In alphabetical order, and a frame that lacks one does not move the others; predict says so."""
    names = ("side", "CAM_FRONT_RIGHT", "rear", "left")
    cfg = write_set(tmp_path, (9, 8), cameras=names)
    edit(cfg, lambda infos: infos.__setitem__(1, listed(infos[1], ("side", "rear"))))
    first, second = load_infos(cfg.val_infos)
    assert (first.camera_names, first.slots) == (("left", "CAM_FRONT_RIGHT", "rear", "side"), ())
    assert (second.camera_names, second.slots) == (("rear", "side"), (2, 3))
    data = val_set(cfg)
    assert "alphabetical order: left 0, rear 2, side 3" in data.camera_note
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    words = ["--py-config", str(write_config(tmp_path / "c.py", tiny_config(cfg))), "--ckpt-path"]
    assert main(["predict", *words, str(tmp_path / "w.pth"), "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert data.camera_note in capsys.readouterr().out


def test_nothing_is_said_of_nuscenes_names(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    edit(cfg, lambda infos: infos.__setitem__(0, listed(infos[0], ("CAM_BACK", "CAM_FRONT"))))
    assert val_set(cfg).camera_note == ""


def test_more_cameras_than_embeddings_are_refused(tmp_path: Path) -> None:
    """Names of different frames count together, because each has one embedding."""
    cfg = write_set(tmp_path, (9, 8), cameras=[f"c{i}" for i in range(7)])
    order = [f"c{i}" for i in range(6)]
    edit(cfg, lambda infos: infos.__setitem__(slice(0, 2), [listed(infos[0], order), listed(infos[1], ["c6"])]))
    with pytest.raises(ConfigError, match="need 7 embeddings"):
        check_cameras(val_set(cfg), tiny_config(cfg))


def test_a_camera_is_scored_with_the_embedding_it_is_trained_with(tmp_path: Path) -> None:
    """Names that are not nuScenes' take what the others of their file leave, which may differ from file to file."""
    cfg = write_set(tmp_path / "set", (9, 8), cameras=("a", "b", "c"))
    store(replace(cfg, val_infos=str(tmp_path / "val.pkl")), {"infos": [listed(records(cfg)[0], ("a", "c"))]})
    config = tiny_config(replace(cfg, val_infos=str(tmp_path / "val.pkl")), epochs=1)
    with pytest.raises(ConfigError, match=r"camera c has embedding 2 in .*infos\.pkl and 1 in .*val\.pkl") as caught:
        run.train(config, tmp_path / "work", "cpu")
    assert "\n" not in str(caught.value)


def unequal(tmp_path: Path, orders: List[Any], batch_size: int) -> Config:
    """A set whose records list the cameras of ``orders``, one after the other."""
    cfg = write_set(tmp_path / "set", POINTS)
    infos = [listed(info, orders[i % len(orders)]) for i, info in enumerate(records(cfg))]
    store(cfg, {"infos": infos})
    return tiny_config(replace(cfg, batch_size=batch_size), epochs=1)


def test_frames_of_other_cameras_are_read_one_by_one(tmp_path: Path) -> None:
    summary = run.train(unequal(tmp_path, [CAMERAS, CAMERAS[2:]], 1), tmp_path / "work", "cpu")
    assert np.isfinite(summary["final_loss"])


def test_frames_of_other_cameras_are_refused_before_training_where_batches_are_larger(tmp_path: Path) -> None:
    config = unequal(tmp_path, [CAMERAS, CAMERAS, CAMERAS[2:]], 2)
    with pytest.raises(DataError, match=r"record 2 \(sample sample2\) has 4 cameras .*set data.batch_size=1") as caught:
        run.train(config, tmp_path / "work", "cpu")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "work").glob("*.pth"))


def test_a_batch_keeps_the_embeddings_of_each_sample(tmp_path: Path) -> None:
    """As many cameras, but others: also beside a sample whose embeddings are simply the first ones."""
    config = unequal(tmp_path, [CAMERAS[:3], CAMERAS[3:]], 2)
    data = val_set(config.data)
    batch = next(iter(make_loader(data, config.data, 0, 1, train=False, seed=0)))
    assert batch.camera_slots.tolist() == [[0, 1, 2], [3, 4, 5]]


# ---- calibrations


def refused(cfg: DataConfig, content: Any) -> str:
    store(cfg, content)
    with pytest.raises(DataError) as caught:
        load_infos(cfg.val_infos)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ([[60, 0, 0], [0, 60, 0], [38, 22, 1]], "is transposed"),
        ([[-60, 0, 38], [0, 60, 22], [0, 0, 1]], "focal lengths -60 and 60"),
        ([[0.8, 0, 0.5], [0, 1.4, 0.5], [0, 0, 1]], "which are no pixels"),
        ([[60, 0, 38], [0, 60, 22], [0, 0, 2]], "is no ..fx, s, cx"),
    ],
)
@pytest.mark.parametrize("layout", ["cams", "images", "cam_infos"])
def test_intrinsics_that_are_none(tmp_path: Path, layout: str, wrong: List[List[float]], text: str) -> None:
    cfg = write_set(tmp_path, (9,))
    info = records(cfg)[0]
    info["cams"]["CAM_BACK"]["cam_intrinsic"] = np.array(wrong)
    made = {"cams": [info], "images": {"data_list": [modern(info)]}, "cam_infos": [depth(info)]}[layout]
    assert re.search(f"camera CAM_BACK: the matrix of intrinsics .*{text}", refused(cfg, made))


@pytest.mark.parametrize("layout", ["infos", "data_list", "bevdepth", "safetensors"])
def test_poses_in_millimetres(tmp_path: Path, layout: str) -> None:
    cfg = write_set(tmp_path, (9,))
    info = records(cfg)[0]
    info["cams"]["CAM_BACK"]["sensor2lidar_translation"] = np.array([20.0, 0, 1500])
    store(cfg, {"infos": [info]})
    with pytest.raises(DataError, match=r"CAM_BACK lies 1500 m away from the lidar; expected metres"):
        load_infos(write_layout(cfg, layout, tmp_path))


def test_a_quaternion_of_another_length(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    record = depth(records(cfg)[0])
    record["cam_infos"]["CAM_BACK"]["calibrated_sensor"]["rotation"] = [0.1, 0.2, 90.0, 3.0]
    assert "camera CAM_BACK: rotation is [0.1, 0.2, 90.0, 3.0], no unit quaternion" in refused(cfg, [record])
