"""One entry for a frame: the format of a source chooses its reader, and nothing changes what read_frame returned."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch
from engine_tools import MODEL
from rig_tools import THREE, write_images, write_rig
from tiny_nuscenes import write_tiny

from tpvformer.compat import load_config
from tpvformer.config import Config, DataConfig
from tpvformer.data import dataset as dataset_module
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import format_of, load_infos
from tpvformer.data.frames import read_frame
from tpvformer.data.rig.from_arrays import given_record
from tpvformer.data.rig.json_file import read_json
from tpvformer.data.street.write import write_sequences
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import Frame
from tpvformer.predict.archive import archive_arrays
from tpvformer.predict.encoded_frame import FrameClasses
from tpvformer.viz.check_geometry import check_geometry, count_points

SOURCES = {
    "pickle infos": ("infos.pkl", "nuscenes"),
    "tensor infos": ("infos.safetensors", "nuscenes"),
    "rig file": ("cameras.JSON", "nuscenes"),
    "rig content": ({"cameras": []}, "nuscenes"),
    "semantickitti": ("00 01", "semantickitti"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_one_format(name: str) -> None:
    source, declared = SOURCES[name]
    assert format_of(source, declared).name == name


def test_a_folder_and_the_content_of_a_rig_are_read_as_its_file(tmp_path: Path, monkeypatch: Any) -> None:
    file = write_rig(tmp_path, THREE, (40,))
    monkeypatch.chdir(tmp_path)
    (expected,) = load_infos(file)
    for source in (tmp_path, read_json(file).value):
        (record,) = load_infos(source)
        assert (record.token, record.images, record.scan) == (expected.token, expected.images, expected.scan)
        assert np.array_equal(record.lidar2img, expected.lidar2img) and record.sizes == expected.sizes


def nuscenes_set(root: Path) -> Config:
    return Config("frames", MODEL, write_tiny(root))


def rig_set(root: Path) -> Config:
    root.mkdir()
    file = str(write_rig(root, THREE, (40, 40)))
    return Config("frames", MODEL, DataConfig(root=str(root), train_infos=file, val_infos=file, workers=0))


def kitti_set(root: Path) -> Config:
    assert write_sequences(root, 2, 5, 1, workers=1)
    shipped = load_config("tpv_kitti_ssc")
    places = {"root": str(root), "occupancy_root": str(root), "train_infos": "08", "val_infos": "08"}
    return dataclasses.replace(shipped, data=dataclasses.replace(shipped.data, **places, workers=0))


def unchanged(before: Frame, after: Frame) -> None:
    for field in dataclasses.fields(Frame):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, (np.ndarray, torch.Tensor)):
            assert np.array_equal(np.asarray(old), np.asarray(new)), field.name
        elif dataclasses.is_dataclass(old):
            assert np.array_equal(old.classes, new.classes) and np.array_equal(old.mask, new.mask), field.name
        else:
            assert old == new, field.name


@pytest.mark.parametrize("make", [nuscenes_set, rig_set, kitti_set])
def test_nothing_changes_a_frame(make: Callable[[Path], Config], tmp_path: Path, monkeypatch: Any) -> None:
    """The ways that a frame goes: training with every augmentation, prediction, archive, check-geometry."""
    config = make(tmp_path / "set")
    cfg = dataclasses.replace(config.data, mirror=True, photometric=True, grid_mask=True)
    config, grid = dataclasses.replace(config, data=cfg), config.model.grid
    read: Dict[str, Any] = {}

    def watched(*args: Any, **more: Any) -> Frame:
        frame = read_frame(*args, **more)
        read["frame"], read["before"] = frame, copy.deepcopy(frame)
        return frame

    monkeypatch.setattr(dataset_module, "read_frame", watched)
    frames = FrameDataset(cfg, grid, "train", 0)
    for epoch in range(4):  # mirrored and not
        frames.set_epoch(epoch)
        assert frames[0].token == read["frame"].token
        unchanged(read["before"], read["frame"])
    frame = frames.load_frame(0)
    before = copy.deepcopy(frame)
    sample = make_sample(frame, cfg, grid, None)
    labels, confidence = np.zeros(grid.shape, np.int64), np.ones(grid.shape, np.float16)
    classes = FrameClasses(np.zeros(len(frame.points), np.int64), labels, labels, confidence)
    archive_arrays(frame, sample, classes, config)
    count_points(frame)
    unchanged(before, frame)
    for augment in (False, True):
        check_geometry(frames, cfg, 0, tmp_path / "g.png", augment)
        unchanged(read["before"], read["frame"])


def test_a_frame_cannot_be_assigned_to(tmp_path: Path) -> None:
    cfg = nuscenes_set(tmp_path).data
    frame = FrameDataset(cfg, MODEL.grid, "val", 0).load_frame(0)
    for name, value in (("points", frame.points), ("token", "x"), ("dense", None)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frame, name, value)
    assert dataclasses.replace(frame, token="x").token == "x" and frame.token == "sample0"


def test_images_in_memory_are_read_as_those_of_files(tmp_path: Path) -> None:
    """Cameras of three sizes: the same frame from a rig's files, from paths and from arrays."""
    file = write_rig(tmp_path, THREE)
    paths = {name: tmp_path / path for name, path in write_images(tmp_path, THREE).items()}
    expected = read_frame(load_infos(file)[0])
    arrays = {name: image[..., ::-1] for name, image in zip(expected.camera_names, expected.pictures())}
    for given in (paths, {name: paths[name] for name in reversed(list(paths))}):
        found = read_frame(given_record(given, file))
        assert found.token == "given" and torch.equal(found.images, expected.images)
        assert np.array_equal(found.lidar2img, expected.lidar2img) and found.valid_sizes == expected.valid_sizes
        assert found.camera_slots == expected.camera_slots and not len(found.points)
    cloud = np.arange(12, dtype=np.float32).reshape(4, 3)
    same = {one["name"]: np.ascontiguousarray(arrays[one["name"]]) for one in THREE[:1]}
    front = read_frame(given_record(same, {"front": expected.lidar2img[0]}, cloud))
    assert np.array_equal(front.points, cloud) and not front.labels.any() and front.valid_sizes == []
    assert np.array_equal(front.images[0].numpy(), expected.pictures()[0])
