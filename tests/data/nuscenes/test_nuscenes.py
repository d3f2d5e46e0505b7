"""Reading a data set from disk: what is found, and what is said where something is missing or broken."""

from __future__ import annotations

import json
import pickle
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
import torch
from tiny_nuscenes import CAMERAS, VERSION, write_tiny

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.loader import collate, make_loader
from tpvformer.data.nuscenes import lidarseg
from tpvformer.data.nuscenes.reader import resolve
from tpvformer.errors import ConfigError, DataError
from tpvformer.labels import RAW_TO_CLASS

GRID = GridConfig(w=18, h=14, z=5)


def dataset(cfg: DataConfig, split: str = "val", **options: Any) -> FrameDataset:
    return FrameDataset(cfg, GRID, split, seed=0, **options)


def edit_infos(cfg: DataConfig, change: Callable[[dict], Any]) -> None:
    path = Path(cfg.val_infos)
    stored = pickle.loads(path.read_bytes())  # noqa: S301 - written by this test
    change(stored)
    path.write_bytes(pickle.dumps(stored))


def test_frame_is_what_was_written(tmp_path):
    cfg = write_tiny(tmp_path)
    data = dataset(cfg)
    assert data.tokens == ["sample0", "sample1", "sample2"]
    frame = data.load_frame(1)
    assert frame.camera_names == list(CAMERAS)
    assert frame.images.shape == (6, 45, 77, 3)
    assert frame.lidar2img.shape == (6, 4, 4)
    scan = np.fromfile(tmp_path / "samples/LIDAR_TOP/log__LIDAR_TOP__1.pcd.bin", np.float32).reshape(-1, 5)
    assert np.array_equal(frame.points, scan[:, :3])
    raw = np.fromfile(tmp_path / "lidarseg" / VERSION / "scan1_lidarseg.bin", np.uint8)
    assert frame.labels.tolist() == [RAW_TO_CLASS[value] for value in raw]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_any_number_of_cameras(tmp_path, count):
    cfg = write_tiny(tmp_path, cameras=[f"CAM_{i}" for i in range(count)])
    assert dataset(cfg)[0].images.shape == (count, 45, 77, 3)


def test_lidar2img_projects_along_the_optical_axis(tmp_path):
    info = load_infos(write_tiny(tmp_path).val_infos)[0]
    ahead = info.lidar2img[0] @ [0.0, 0.2 - 10.0, -0.3, 1.0]  # the first camera of the tiny rig looks along -y
    assert ahead[:2] / ahead[2] == pytest.approx([38, 22])
    assert ahead[2] == pytest.approx(10)


def test_paths_as_stored_then_below_the_root(tmp_path, monkeypatch):
    stored = "data/nuscenes/samples/CAM_FRONT/a.jpg"
    for place in ("root/a.jpg", "root/samples/CAM_FRONT/a.jpg", "cwd/data/nuscenes/samples/CAM_FRONT/a.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    assert resolve(stored, tmp_path / "root", "t") == Path(stored)
    Path(stored).unlink()
    assert resolve(stored, tmp_path / "root", "t") == tmp_path / "root/samples/CAM_FRONT/a.jpg"
    (tmp_path / "root/samples/CAM_FRONT/a.jpg").unlink()
    assert resolve(stored, tmp_path / "root", "t") == tmp_path / "root/a.jpg"
    (tmp_path / "root/a.jpg").unlink()
    with pytest.raises(DataError, match=r"sample t: data/nuscenes/samples/CAM_FRONT/a\.jpg is missing.*data\.root"):
        resolve(stored, tmp_path / "root", "t")
    absolute = tmp_path / "b.jpg"
    absolute.touch()
    assert resolve(str(absolute), "elsewhere", "t") == absolute


def test_labels_are_found_by_scan_where_the_token_is_another(tmp_path):
    cfg = write_tiny(tmp_path)
    expected = dataset(cfg).load_frame(2).labels
    edit_infos(cfg, lambda stored: stored["infos"][2].update(token="renamed"))
    assert np.array_equal(dataset(cfg).load_frame(2).labels, expected)


def test_a_table_read_in_small_pieces_gives_the_same(tmp_path, monkeypatch):
    cfg = write_tiny(tmp_path)
    whole = dataset(cfg).load_frame(2).labels
    monkeypatch.setattr(lidarseg, "_CHUNK", 7)
    lidarseg._read.cache_clear()
    assert np.array_equal(dataset(cfg).load_frame(2).labels, whole)


def test_tables_are_read_again_when_they_change(tmp_path):
    cfg = write_tiny(tmp_path)
    dataset(cfg)
    (tmp_path / VERSION / "lidarseg.json").write_text("[]")
    with pytest.raises(DataError, match="sample sample0: .* has no labels for it"):
        dataset(cfg)


def test_without_labels(tmp_path):
    cfg = write_tiny(tmp_path)
    (tmp_path / VERSION / "lidarseg.json").unlink()
    with pytest.raises(DataError, match=r"lidarseg\.json: no such file.*data\.version"):
        dataset(cfg)
    data = dataset(cfg, require_labels=False)
    assert not data.has_labels
    assert not data.load_frame(0).labels.any()


SCAN, LABEL = "samples/LIDAR_TOP/log__LIDAR_TOP__0.pcd.bin", f"lidarseg/{VERSION}/scan0_lidarseg.bin"
PHOTO = "samples/CAM_BACK/log__CAM_BACK__0.jpg"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (SCAN, lambda data: None, "is missing"),
        (SCAN, lambda data: data[:-3], "997 bytes; expected a multiple of 20"),
        (SCAN, lambda data: b"", "0 bytes"),
        (SCAN, lambda data: data[:-20], "50 labels for the 49 points"),
        (SCAN, lambda data: b"\0\0\xc0\x7f" + data[4:], "not finite"),
        (LABEL, lambda data: None, "label file .* is missing"),
        (LABEL, lambda data: data[:-1], "49 labels for the 50 points"),
        (LABEL, lambda data: data[:-1] + b"\x20", "holds label 32; expected 0 to 31"),
        (PHOTO, lambda data: None, "is missing"),
        (PHOTO, lambda data: data[:-200], "no whole image"),
        (PHOTO, lambda data: b"\xff\xd8 nothing \xff\xd9", "no whole image"),
        (PHOTO, lambda data: b"", "no whole image"),
        (PHOTO, lambda data: cv2.imencode(".png", np.zeros((45, 77), np.uint16))[1].tobytes(), "colour image"),
    ],
)
def test_broken_files_are_named_in_one_sentence(tmp_path, name, change, message):
    data = dataset(write_tiny(tmp_path))
    path = tmp_path / name
    changed = change(path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    with pytest.raises(DataError, match=message) as caught:
        data[0]
    text = str(caught.value)
    assert text.startswith("sample sample0: ")
    assert path.name in text
    assert "\n" not in text


def test_a_worker_says_the_same_sentence(tmp_path):
    cfg = replace(write_tiny(tmp_path), workers=1)
    (tmp_path / SCAN).write_bytes(b"abc")
    data, texts = dataset(cfg), []
    for read in (lambda: data[0], lambda: next(iter(make_loader(data, cfg, 0, 1, train=False, seed=0)))):
        try:
            read()
        except DataError as err:
            texts.append(str(err))
            traceback.clear_frames(err.__traceback__)  # or the loader's worker lives on in a reference cycle
    assert len(texts) == 2
    assert texts[0] == texts[1]


def test_other_info_files_are_named(tmp_path):
    cfg = write_tiny(tmp_path)
    for stored, message in [
        ({"metainfo": {}, "samples": []}, "a dict of metainfo, samples; expected .* mmdetection3d 1.x"),
        ({"data_list": [{"token": "a", "images": {}}]}, "record 0 has an unusable .* mmdetection3d 1.x"),
        ({"data_list": [{"token": "a"}]}, "record 0 has no 'images'"),
        ([], "holds no frames; expected one at least"),
        ({"infos": [], "metadata": {}}, "holds no frames; expected one at least"),
        ({"data_list": []}, "holds no frames; expected one at least"),
        ({"infos": {"scene": []}}, "holds no frames; expected one at least"),
        ({"infos": [{"token": "a", "lidar_path": "b"}]}, "record 0 has no 'cams'"),
        ({"infos": [{"token": "a", "lidar_path": "b", "cams": {}}]}, "record 0 has an unusable calibration"),
        ({"infos": ["a"]}, "record 0 has an unusable calibration"),
    ]:
        Path(cfg.val_infos).write_bytes(pickle.dumps(stored))
        with pytest.raises(DataError, match=message):
            load_infos(cfg.val_infos)


def test_singular_rotation(tmp_path):
    cfg = write_tiny(tmp_path)
    edit_infos(
        cfg, lambda stored: stored["infos"][1]["cams"]["CAM_BACK"].update(sensor2lidar_rotation=np.zeros((3, 3)))
    )
    with pytest.raises(DataError, match="record 1 has an unusable calibration"):
        load_infos(cfg.val_infos)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"token": "a", "filename": "x LIDAR_TOP"}]', "a record has no 'sample_token'"),
        ('[{"token": LIDAR_TOP}]', "not JSON"),
        ('[{"token": "a', "ends in the middle"),
        ("", "ends in the middle"),
    ],
)
def test_damaged_tables(tmp_path, text, message):
    cfg = write_tiny(tmp_path)
    (tmp_path / VERSION / "sample_data.json").write_text(text)
    with pytest.raises(DataError, match=message):
        dataset(cfg)


def test_wrong_settings(tmp_path):
    cfg = write_tiny(tmp_path)
    with pytest.raises(ConfigError, match="label_map is 'kitti'"):
        dataset(replace(cfg, label_map="kitti"))
    with pytest.raises(ConfigError, match="split is 'mini_val'"):
        dataset(cfg, "mini_val")
    with pytest.raises(DataError, match="do not fill one batch of 4"):
        make_loader(dataset(cfg, "train"), replace(cfg, batch_size=4), 0, 1, train=True, seed=0)


def test_empty_space_needs_the_other_label_map(tmp_path):
    cfg = write_tiny(tmp_path)
    (tmp_path / LABEL).write_bytes(bytes([32] * 50))
    assert (dataset(replace(cfg, label_map="nuscenes-noIgnore")).load_frame(0).labels == 17).all()


def test_cameras_of_different_size_are_refused(tmp_path):
    cfg = write_tiny(tmp_path)
    (tmp_path / PHOTO).write_bytes(cv2.imencode(".jpg", np.zeros((45, 76, 3), np.uint8))[1].tobytes())
    with pytest.raises(DataError, match=r"sample sample0: the cameras' images have different sizes \[\(45, 76, 3\), "):
        dataset(cfg)[0]


def test_batch_pads_what_is_ragged(tmp_path):
    cfg = replace(write_tiny(tmp_path, points=(50, 70, 60)), batch_size=3, ignore_label=0, fill_label=17)
    data = dataset(cfg)
    batch = next(iter(make_loader(data, cfg, 0, 1, train=False, seed=0)))
    assert batch.tokens == data.tokens
    assert batch.images.shape == (3, 6, 45, 77, 3)
    assert batch.grid2img.shape == (3, 6, 4, 4)
    assert batch.point_lengths.tolist() == [50, 70, 60]
    assert batch.images.dtype == batch.voxel_labels.dtype == torch.uint8
    for i in range(3):
        one, points, cells = data[i], int(batch.point_lengths[i]), int(batch.voxel_lengths[i])
        assert cells == len(one.voxel_coords)
        assert torch.equal(batch.voxel_coords[i, :cells], one.voxel_coords)
        assert torch.equal(batch.grid_index[i, :points], one.grid_index)
        assert torch.equal(batch.point2voxel[i, :points], one.point2voxel)
        assert torch.equal(batch.point_labels[i, :points], one.point_labels)
        assert not batch.point_labels[i, points:].any()
        assert not batch.voxel_coords[i, cells:].any()
        assert torch.equal(batch.voxel_labels[i], one.voxel_labels)
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.tokens == batch.tokens


def test_padding_carries_the_ignore_label(tmp_path):
    data = dataset(write_tiny(tmp_path, points=(50, 70)))
    batch = collate([data[0], data[1]], ignore_label=255)
    assert (batch.point_labels[0, 50:] == 255).all()


def test_batches_of_unequal_images_are_refused(tmp_path):
    cfg = write_tiny(tmp_path)
    for camera in CAMERAS:
        path = tmp_path / "samples" / camera / f"log__{camera}__1.jpg"
        path.write_bytes(cv2.imencode(".jpg", np.zeros((30, 77, 3), np.uint8))[1].tobytes())
    with pytest.raises(DataError, match="samples sample0 and sample1 have images of shapes"):
        next(iter(make_loader(dataset(cfg), replace(cfg, batch_size=2), 0, 1, train=False, seed=0)))


def test_table_files_hold_what_the_reader_assumes(tmp_path):
    write_tiny(tmp_path)
    records = json.loads((tmp_path / VERSION / "sample_data.json").read_text())
    assert len(records) == 3 * (2 + 6)
