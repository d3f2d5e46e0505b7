"""Frames that hold rare classes are drawn more often, by a stated formula; each draw is augmented by itself."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch
from rig_tools import camera, write_rig
from tiny_nuscenes import write_tiny

from tpvformer.config import AugmentConfig, DataConfig, GridConfig
from tpvformer.data.balance import box_classes, draw_frames, frame_shares
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import BICYCLE_RACK, Boxes
from tpvformer.data.formats import load_infos
from tpvformer.data.loader import make_loader
from tpvformer.data.record import Record
from tpvformer.data.samplers import TrainSampler, epoch_order
from tpvformer.data.street.write import write_dataset
from tpvformer.errors import DataError
from tpvformer.labels import raw_to_class
from tpvformer.untrusted.pickle import load_pickle

GRID = GridConfig(w=6, h=5, z=4)


def held(*classes: List[int]) -> List[np.ndarray]:
    return [np.array(one, np.int64) for one in classes]


def test_shares_by_hand() -> None:
    """Class 0 is in three frames, class 7 in one; a fifth frame has none."""
    shares = frame_shares(held([0], [0], [0, 7], [], []))
    common, rare = 3 / (2 * 3), 3 / (2 * 1)  # 3 of 5 draws, half of them for each of the two classes
    np.testing.assert_allclose(shares, [common, common, common + rare, 1, 1])
    assert shares.sum() == pytest.approx(5)


def test_without_rare_classes_every_frame_is_drawn_once() -> None:
    for classes in (held([1, 2], [1, 2], [1, 2]), held([], [], [])):
        np.testing.assert_allclose(frame_shares(classes), 1)
        assert sorted(draw_frames(frame_shares(classes), np.random.RandomState(0)) % 3) == [0, 1, 2]


def test_each_class_is_drawn_equally_often() -> None:
    """What class-balanced sampling is for: over the frames that hold one class alone, as many draws for each class."""
    classes = held(*[[0]] * 60, *[[1]] * 30, *[[2]] * 10)
    drawn = [draw_frames(frame_shares(classes), np.random.RandomState(seed)) % 100 for seed in range(50)]
    counts = np.array([np.bincount([classes[i][0] for i in one]) for one in drawn])
    assert (counts.sum(1) == 100).all() and np.abs(counts - 100 / 3).max() < 8
    np.testing.assert_allclose(counts.mean(0), 100 / 3, atol=1)


def box_record(labels: List[int], places: Any, points: Any = None) -> Record:
    n = len(labels)
    centres, flat = np.zeros((n, 3), np.float32), np.ones((n, 3), np.float32)
    centres[:, :2] = places
    counts = None if points is None else np.array(points)
    boxes = Boxes(centres, flat, flat[:, 0], flat[:, :2], np.array(labels, np.int64), points=counts)
    return Record("t", "", (), (), np.zeros((0, 4, 4)), boxes=boxes)


def test_boxes_count_that_can_be_learned() -> None:
    """A rack is no class, an object that nothing hit is not seen, and one beyond the grid is not asked for."""
    record = box_record([3, 3, 0, BICYCLE_RACK, 5], [(0, 0), (1, 1), (2, 2), (3, 3), (60, 0)], [1, 0, 0, 9, 9])
    found = box_classes([record, box_record([2, 2], [(0, 0), (1, 1)])], GRID)
    assert found is not None and [f.tolist() for f in found] == [[3], [2]]
    assert box_classes([record, replace(record, boxes=None)], GRID) is None


def test_boxes_lie_in_the_frame_of_the_grid() -> None:
    ahead = np.eye(4)
    ahead[0, 3] = 30
    record = replace(box_record([3, 4], [(30, 0), (-60, 0)]), lidar2ego=ahead)
    found = box_classes([record], replace(GRID, frame="ego"))
    assert found is not None and found[0].tolist() == [4]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames for training; cars are in all, the other classes in the first alone."""
    folder = tmp_path_factory.mktemp("street") / "set"
    write_dataset(folder, 4, (64, 36), 5, 3, workers=1)
    file = folder / "nuscenes_infos_train.pkl"
    stored = load_pickle(file)
    for info in stored["infos"][1:]:
        kept = np.flatnonzero(np.asarray(info["gt_names"]) == "car")
        for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag"):
            info[key] = np.asarray(info[key])[kept]
    file.write_bytes(pickle.dumps(stored, protocol=4))
    return folder


def street_config(street: Path, **more: Any) -> DataConfig:
    files = {f"{split}_infos": str(street / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}
    return DataConfig(root=str(street), version="v1.0-mini", workers=0, **{**files, **more})


def test_a_set_with_boxes_is_balanced_by_them(street: Path) -> None:
    cfg = street_config(street, class_balanced=True)
    data = FrameDataset(cfg, GRID, "train", 0)
    classes = box_classes(load_infos(cfg.train_infos, boxes=True), GRID)
    assert classes is not None and data.shares is not None and len(data) == 6
    np.testing.assert_array_equal(data.shares, frame_shares(classes))
    assert data.shares[0] > 2, "the set is not balanced by itself"
    assert data[0].boxes is None and FrameDataset(cfg, GRID, "train", 0, boxes=True)[0].boxes is not None


def test_nothing_changes_where_it_is_off_or_in_evaluation(street: Path) -> None:
    for split, cfg in (("train", street_config(street)), ("val", street_config(street, class_balanced=True))):
        assert FrameDataset(cfg, GRID, split, 0).shares is None
    cfg = street_config(street)
    sampler = make_loader(FrameDataset(cfg, GRID, "train", 0), cfg, 0, 1, train=True, seed=5).sampler
    assert isinstance(sampler, TrainSampler)
    sampler.set_epoch(3)
    assert list(sampler) == np.random.RandomState([5, 3]).permutation(6).tolist()


def test_a_set_without_boxes_is_balanced_by_its_labels(tmp_path: Path) -> None:
    cfg = replace(write_tiny(tmp_path, (40, 30, 20, 5)), class_balanced=True)
    data = FrameDataset(cfg, GRID, "train", 0)
    present = [np.unique(data.load_frame(i).labels) for i in range(4)]
    np.testing.assert_array_equal(data.shares, frame_shares([c[c != 0].astype(np.int64) for c in present]))


def test_labels_of_a_rig_file_count_too(tmp_path: Path) -> None:
    path = write_rig(tmp_path, (camera("front"),), (50, 50, 0))
    rig = json.loads(path.read_text())
    raw = [int(np.flatnonzero(np.array(raw_to_class("nuscenes")) == c)[0]) for c in (4, 9)]
    for frame, label in zip(rig["frames"], raw):
        np.full(50, label, np.uint8).tofile(tmp_path / frame["labels"])
    cfg = DataConfig(train_infos=str(path), val_infos=str(path), workers=0, class_balanced=True)
    data = FrameDataset(cfg, GRID, "train", 0)
    np.testing.assert_allclose(data.shares, [1, 1, 1])
    np.full(50, raw[0], np.uint8).tofile(tmp_path / rig["frames"][1]["labels"])
    np.full(50, 99, np.uint8).tofile(tmp_path / rig["frames"][0]["labels"])
    with pytest.raises(DataError, match="holds label 99; expected 0 to 31"):
        assert FrameDataset(cfg, GRID, "train", 0).shares is not None


def test_without_boxes_and_labels_it_is_refused(tmp_path: Path) -> None:
    path = write_rig(tmp_path, (camera("front"),), (0, 0))
    cfg = DataConfig(train_infos=str(path), val_infos=str(path), workers=0, class_balanced=True)
    data = FrameDataset(cfg, GRID, "train", 0, require_labels=False)
    with pytest.raises(DataError, match="data.class_balanced needs boxes in all frames, or labels") as caught:
        make_loader(data, cfg, 0, 1, train=True, seed=0)
    assert "\n" not in str(caught.value)


def test_each_draw_of_a_frame_is_augmented_by_itself(street: Path) -> None:
    """The first draw is what the frame is without balanced classes."""
    augment = AugmentConfig(rotation=20.0)
    cfg = street_config(street, class_balanced=True, augment=augment)
    data, plain = (
        FrameDataset(cfg, GRID, "train", 3),
        FrameDataset(street_config(street, augment=augment), GRID, "train", 3),
    )
    first, second, again = data[4], data[4 + 6], data[4 + 6]
    assert first.token == second.token == plain[4].token
    assert torch.equal(first.photometric, plain[4].photometric) and np.array_equal(first.augmented, plain[4].augmented)
    assert torch.equal(second.photometric, again.photometric) and np.array_equal(second.augmented, again.augmented)
    assert not torch.equal(first.photometric, second.photometric)
    assert not np.array_equal(first.augmented, second.augmented)
    with pytest.raises(IndexError):
        plain[6]


def test_an_epoch_is_the_same_with_any_workers_and_taken_up_anywhere(street: Path) -> None:
    cfg = street_config(street, class_balanced=True, augment=AugmentConfig(rotation=20.0, image_flip=True))

    def read(workers: int, start: int) -> List[Any]:
        one = replace(cfg, workers=workers)
        loader = make_loader(FrameDataset(one, GRID, "train", 0), one, 0, 1, train=True, seed=5)
        assert isinstance(loader.sampler, TrainSampler)
        loader.sampler.set_epoch(2, start)
        return [(batch.tokens, batch.grid2img.tolist(), batch.photometric.tolist()) for batch in loader]

    whole = read(0, 0)
    assert len(whole) == 6 and len({tokens[0] for tokens, *_ in whole}) < 6, "some frames are drawn twice"
    assert read(1, 0) == whole and read(0, 4) == whole[4:]
    shares = FrameDataset(cfg, GRID, "train", 0).shares
    order = epoch_order(6, 5, 2, shares)
    assert [tokens[0] for tokens, *_ in whole] == [FrameDataset(cfg, GRID, "train", 0).tokens[i % 6] for i in order]
