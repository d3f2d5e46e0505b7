"""Data on another storage than a local folder, and decoded images kept on a disk: always the same samples."""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import List

import fsspec
import numpy as np
import pytest
import torch
from rig_tools import write_rig
from tiny_nuscenes import write_tiny

from tpvformer import files as storage
from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.images import cache as image_cache
from tpvformer.data.loader import make_loader
from tpvformer.data.nuscenes.occupancy import OccupancyLabels
from tpvformer.data.types import Batch
from tpvformer.errors import ConfigError, DataError

pytest.importorskip("upath", reason="universal-pathlib is not installed (pip install tpvformer[remote])")
GRID = GridConfig(w=6, h=5, z=4)


@pytest.fixture
def cfg(tmp_path) -> DataConfig:
    return write_tiny(tmp_path / "set", points=(9, 8, 7))


@pytest.fixture
def remote(cfg):
    """The same set in a file system that has no local paths."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{cfg.root}/", "/bucket/nuscenes/", recursive=True)
    yield replace(
        cfg,
        root="memory://bucket/nuscenes",
        **dict.fromkeys(("train_infos", "val_infos"), "memory://bucket/nuscenes/infos.pkl"),
    )
    memory.rm("/bucket", recursive=True)


def test_a_rig_file_and_all_that_it_names_may_lie_elsewhere(tmp_path):
    """Cameras of different sizes, a scan and its labels; the cache keeps what was made of the images."""
    local = write_rig(tmp_path / "rig", points=(30, 20))
    memory = fsspec.filesystem("memory")
    memory.put(f"{local.parent}/", "/rigs/", recursive=True)
    near, far = (DataConfig(train_infos=path, val_infos=path) for path in (str(local), "memory://rigs/rig.json"))
    near, far = (replace(cfg, workers=0) for cfg in (near, far))
    expected = batches(near)
    assert_same(batches(far), expected)
    cached = replace(near, image_cache=str(tmp_path / "cache"))
    assert_same(batches(cached), expected)
    assert_same(batches(cached), expected)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    memory.rm("/rigs", recursive=True)


def batches(cfg: DataConfig, train: bool = False) -> List[Batch]:
    data = FrameDataset(cfg, GRID, "train" if train else "val", 0)
    return list(make_loader(data, cfg, 0, 1, train, 0))


def assert_same(ours: List[Batch], theirs: List[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        assert a.tokens == b.tokens
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors()))


def test_another_file_system(cfg, remote):
    assert_same(batches(remote), batches(cfg))
    assert batches(remote)[0].point_labels.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_url_of_local_files(cfg, workers):
    url = replace(cfg, root=f"file://{cfg.root}", workers=workers)
    assert_same(batches(url), batches(cfg))


def test_what_is_missing_there_is_said(remote):
    with pytest.raises(DataError, match="memory://bucket/nuscenes/v0.lidarseg.json: no such file"):
        batches(replace(remote, version="v0"))
    fsspec.filesystem("memory").rm("/bucket/nuscenes/samples/CAM_BACK/log__CAM_BACK__1.jpg")
    with pytest.raises(DataError, match="sample sample1: .*CAM_BACK.* is missing"):
        batches(remote)


@pytest.mark.parametrize("kind, name", [("occ3d", "scene-1/t/labels.npz"), ("surroundocc", "samples/scan.npy")])
def test_dense_labels_there(kind, name):
    classes = np.full((200, 200, 16), 17, np.uint8)
    classes[3, 4, 5] = 2
    file = io.BytesIO()
    if kind == "occ3d":
        np.savez(file, semantics=classes, mask_lidar=classes > 9, mask_camera=classes < 9)
    else:
        np.save(file, np.array([[3, 4, 5, 2]]))
    fsspec.filesystem("memory").pipe(f"/dense/{kind}/{name}", file.getvalue())
    labels = OccupancyLabels(DataConfig(occupancy=kind, occupancy_root=f"memory://dense/{kind}"))
    assert np.array_equal(labels.read(labels.find("t", "scan"), "t").classes, classes)


@pytest.mark.parametrize("url", ["nosuch://bucket/set", "gs://bucket/set"])
def test_a_storage_without_its_package(cfg, url, monkeypatch):
    def absent(protocol: str) -> None:
        raise ImportError("Please install gcsfs") if protocol == "gs" else ValueError(f"Protocol not known: {protocol}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    storage._need.cache_clear()
    with pytest.raises(
        ConfigError, match=r"cannot be read \((Please install gcsfs|Protocol not known).*tpvformer\[remote"
    ):
        batches(replace(cfg, root=url))


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_change_nothing(cfg, tmp_path, workers):
    cached = replace(cfg, image_cache=str(tmp_path / "cache"), workers=workers)
    for train in (True, False):
        assert_same(batches(cached, train), batches(cfg, train))
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".npy"] * 3


def test_a_cached_sample_is_not_decoded_again(cfg, tmp_path, monkeypatch):
    cached = replace(cfg, image_cache=str(tmp_path / "cache"))
    expected = batches(cached)
    monkeypatch.setattr(image_cache, "read_pictures", None)
    assert_same(batches(cached), expected)


def test_a_changed_jpeg_is_decoded_anew(cfg, tmp_path):
    cached = replace(cfg, image_cache=str(tmp_path / "cache"))
    before = batches(cached)
    a, b = (Path(cfg.root, "samples", name, f"log__{name}__0.jpg") for name in ("CAM_BACK", "CAM_FRONT"))
    shutil.copyfile(a, b)
    os.utime(b, (1, 1))
    assert_same(batches(cached), batches(cfg))
    assert not torch.equal(batches(cached)[0].images, before[0].images)


@pytest.mark.parametrize("damage", ["empty", "short", "long", "header", "huge", "flipped", "zeros"])
def test_a_damaged_cache_file_is_written_again(cfg, tmp_path, damage):
    cached = replace(cfg, image_cache=str(tmp_path / "cache"))
    batches(cached)
    files = sorted((tmp_path / "cache").iterdir())
    whole = files[0].read_bytes()
    broken = {
        "empty": b"",
        "short": whole[:-7],
        "long": whole + b"more",
        "header": b"\x93NUMPY\x01\x00" + b"\xff" * 200,
        "flipped": whole[:-9000] + bytes([whole[-9000] ^ 4]) + whole[-8999:],
        "zeros": whole[:5000] + bytes(4096) + whole[9096:],
        "huge": whole.replace(b"(6, 45, 77, 3)", b"(6, 45, 77, 9)"),
    }
    files[0].write_bytes(broken[damage])
    assert_same(batches(cached), batches(cfg))
    assert files[0].read_bytes() == whole


def test_a_full_disk_ends_the_caching_not_the_training(cfg, tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with caplog.at_level(logging.WARNING):
        assert_same(batches(replace(cfg, image_cache=str(tmp_path / "cache"))), batches(cfg))
    assert not list((tmp_path / "cache").iterdir())
    assert caplog.text.count("takes no more images") == 1


def test_a_cache_that_cannot_be_made(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data.image_cache is .*cannot be made"):
        batches(replace(cfg, image_cache=str(tmp_path / "file" / "cache")))
