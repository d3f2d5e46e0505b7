"""Samples and batches with past frames, of a synthetic street with four frames a scene."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.images.preprocess import network_images
from tpvformer.data.loader import collate, make_loader
from tpvformer.data.samplers import SceneSampler, TrainSampler
from tpvformer.data.street.rig import pose
from tpvformer.data.street.write import write_dataset
from tpvformer.data.types import Batch, PastSample, Sample
from tpvformer.data.worker_count import seconds_to_read
from tpvformer.data.worker_limits import _size
from tpvformer.errors import ConfigError, DataError
from tpvformer.untrusted.pickle import load_pickle

VERSION = "v1.0-mini"
GRID = GridConfig(w=6, h=5, z=4)
FRAMES = 4
DRAWS = ("photometric", "keep_rows", "keep_columns", "grid2img")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of each split, which no test changes."""
    folder = tmp_path_factory.mktemp("street") / "set"
    write_dataset(folder, 4, (64, 36), 5, FRAMES, workers=1)
    return folder


@pytest.fixture(scope="module")
def cfg(street: Path) -> DataConfig:
    files = {f"{split}_infos": str(street / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}
    return DataConfig(root=str(street), version=VERSION, workers=0, grid_mask=True, mirror=True, **files)


def dataset(cfg: DataConfig, split: str = "train", seed: int = 3, **more: Any) -> FrameDataset:
    return FrameDataset(cfg, GRID, split, seed, **more)


def assert_same(ours: Any, theirs: Any) -> None:
    """The same values in all fields, bit by bit, apart from ``past``."""
    for field in dataclasses.fields(ours):
        a, b = (getattr(held, field.name) for held in (ours, theirs))
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        elif field.name != "past":
            assert a == b, field.name


def assert_same_past(ours: Sample, theirs: Sample) -> None:
    assert len(ours.past) == len(theirs.past)
    for a, b in zip(ours.past, theirs.past):
        assert_same(a, b)


def scene_ends(data: FrameDataset) -> List[int]:
    return [drive[0] for drive in data.drives]


def test_the_street_has_windows(cfg):
    data = dataset(cfg, past=3)
    assert len(data) == 2 * FRAMES and len(data.drives) == 2
    assert [len(w) for w in data.windows] == [0, 1, 2, 3] * 2
    assert dataset(cfg).windows == [()] * 8
    steps = np.diff([data.timestamps[i] for i in data.drives[0]])
    np.testing.assert_allclose(steps, 0.5, atol=1e-6)


@pytest.mark.parametrize("past", [1, 3])
def test_the_present_is_what_it_is_without_a_past(cfg, past):
    plain, windows = dataset(cfg), dataset(cfg, past=past, drop_past=0.3)
    for epoch in (0, 1):
        for data in (plain, windows):
            data.set_epoch(epoch)
        for i in range(len(plain)):
            ours, theirs = windows[i], plain[i]
            assert theirs.past == () and len(ours.past) == past
            assert_same(ours, theirs)


def test_the_past_is_drawn_anew_each_epoch_and_is_the_same_again(cfg):
    data, again = dataset(cfg, past=2, drop_past=0.3), dataset(cfg, past=2, drop_past=0.3)
    data.set_epoch(1)
    first = [data[i] for i in range(len(data))]
    again.set_epoch(1)
    for i in reversed(range(len(data))):
        assert_same_past(again[i], first[i])
    data.set_epoch(2)
    assert not torch.equal(data[3].past[0].photometric, first[3].past[0].photometric)
    other = dataset(cfg, seed=4, past=2)
    other.set_epoch(1)
    assert not torch.equal(other[3].past[0].photometric, first[3].past[0].photometric)


def test_the_newest_past_does_not_depend_on_how_many_there_are(cfg):
    one, three = dataset(cfg, past=1), dataset(cfg, past=3)
    for i in range(len(one)):
        assert_same(one[i].past[0], three[i].past[0])


def test_each_past_frame_has_draws_of_its_own(cfg):
    sample = dataset(cfg, past=3)[3]
    draws = [sample.photometric, *(past.photometric for past in sample.past)]
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])
    plain = dataset(replace(cfg, mirror=False), past=3)
    assert torch.equal(plain[3].past[0].images, plain.load_frame(plain.windows[3][0]).images)


def test_validation_draws_nothing(cfg):
    data = dataset(cfg, "val", past=2, drop_past=1.0)
    for sample in (data[i] for i in range(len(data))):
        for past in sample.past:
            assert past.photometric is None and past.keep_rows is None and past.keep_columns is None
    assert [bool(past.valid) for past in data[2].past] == [True, True]
    now, before = data[3], data[2]
    assert torch.equal(now.past[0].images, before.images) and torch.equal(now.past[0].grid2img, before.grid2img)
    assert now.past[0].token == before.token and now.past[0].image_shape == before.image_shape


def test_shuffled_poses_are_the_motions_of_others(cfg):
    data, again, other, plain = (dataset(cfg, "val", past=2) for _ in range(4))
    count, metres = data.shuffle_poses()
    assert again.shuffle_poses() == (count, metres) and count == 2 * (FRAMES - 1) and metres > 0.1
    other.shuffle_poses(seed=1)
    steps = {i: plain[i].past[0].motion for i, window in enumerate(plain.windows) if window}
    givers = []
    for i in range(len(data)):
        ours, theirs = data[i], plain[i]
        assert_same(ours, theirs)
        assert_same_past(again[i], ours)
        chain = torch.eye(4)
        for a, b in zip(ours.past, theirs.past):
            for name in ("images", "grid2img", "seconds", "gap", "valid"):
                assert torch.equal(getattr(a, name), getattr(b, name))
            chain = a.motion @ chain
            assert not a.valid or torch.allclose(chain, a.now2past, atol=1e-4)
        if i in steps:
            givers.append([k for k, step in steps.items() if torch.equal(step, ours.past[0].motion)][0])
            assert data.scenes[givers[-1]] != data.scenes[i]
    assert sorted(givers) == sorted(steps), "each motion is given once"
    assert any(not torch.equal(other[i].past[0].motion, data[i].past[0].motion) for i in steps)


def test_poses_that_cannot_be_shuffled(cfg):
    with pytest.raises(ConfigError, match="no past is read; expected a model with model.history"):
        dataset(cfg, "val").shuffle_poses()
    short = dataset(cfg, "val", past=1)
    short.limit_past(0.0)
    with pytest.raises(DataError, match="0 of its 8 frames have a past that is read"):
        short.shuffle_poses()


def test_at_the_start_of_a_scene_the_present_stands_for_the_past(cfg):
    data = dataset(cfg, past=2)
    for start in scene_ends(data):
        sample = data[start]
        for past in sample.past:
            assert not past.valid and past.seconds == past.gap == 0 and past.token == sample.token
            assert torch.equal(past.now2past, torch.eye(4)) and torch.equal(past.motion, torch.eye(4))
            assert past.images is sample.images  # nothing is read or copied
            for name in DRAWS:
                assert torch.equal(getattr(past, name), getattr(sample, name))
    second = data[data.drives[0][1]]
    assert [bool(past.valid) for past in second.past] == [True, False]


def test_the_past_is_dropped_as_often_as_asked_for(cfg):
    never, always = dataset(cfg, past=1), dataset(cfg, past=1, drop_past=1.0)
    assert not any(always[i].past[0].valid for i in range(len(always)))
    with_past = [i for i, window in enumerate(never.windows) if window]
    assert all(never[i].past[0].valid for i in with_past)
    half = dataset(cfg, past=2, drop_past=0.5)
    kept = []
    for epoch in range(20):
        half.set_epoch(epoch)
        pair = [half[i].past for i in (2, 6)]
        assert all(a.valid == b.valid for a, b in pair)  # all of a window or none of it
        kept += [bool(a.valid) for a, _ in pair]
    assert 0.3 < np.mean(kept) < 0.7
    never.set_epoch(1)
    some = dataset(cfg, past=1, drop_past=0.5)
    some.set_epoch(1)
    both = [i for i in with_past if some[i].past[0].valid]
    assert both and all(torch.equal(some[i].past[0].photometric, never[i].past[0].photometric) for i in both)


def camera_of(info: Dict[str, Any], name: str) -> np.ndarray:
    """Global metres to pixels, homogeneous, by the poses of the camera itself."""
    shot = info["cams"][name]
    ego, mount = (pose(shot[f"{k}_translation"], shot[f"{k}_rotation"]) for k in ("ego2global", "sensor2ego"))
    pixels = np.eye(4)
    pixels[:3, :3] = shot["cam_intrinsic"]
    return pixels @ np.linalg.inv(ego @ mount)


@pytest.mark.parametrize("frame", ["lidar", "ego"])
def test_a_point_of_the_world_is_where_each_past_camera_saw_it(cfg, frame):
    """now2past and the past's grid2img lead from the present grid to the pixels that the tables' poses give."""
    data = FrameDataset(cfg, replace(GRID, frame=frame), "val", 0, past=3)
    infos = {info["token"]: info for info in load_pickle(cfg.val_infos)["infos"]}
    points = np.concatenate([np.random.RandomState(0).uniform(-30, 30, (20, 3)), np.ones((20, 1))], 1)
    for index in (3, 7):
        world = points @ data.grid2global(index).T
        sample = data[index]
        chain = np.eye(4)
        for k, past in enumerate(sample.past):
            assert past.seconds == pytest.approx(0.5 * (k + 1), abs=1e-5) and past.gap == pytest.approx(0.5, abs=1e-5)
            chain = past.motion.double().numpy() @ chain
            np.testing.assert_allclose(chain, past.now2past, atol=1e-4)
            there = points @ past.now2past.double().numpy().T
            for n, name in enumerate(infos[past.token]["cams"]):
                expected = world @ camera_of(infos[past.token], name).T
                found = there @ past.grid2img[n].double().numpy().T
                ahead = expected[:, 2] > 2
                assert ahead.any()
                pixels = [m[ahead, :2] / m[ahead, 2:3] for m in (expected, found)]
                np.testing.assert_allclose(pixels[1], pixels[0], atol=0.02, rtol=1e-3)


# Batches


def batch_of(data: FrameDataset, rows: Tuple[int, ...], **more: Any) -> Batch:
    return collate([data[i] for i in rows], 0, **more)


def test_batches_hold_one_past_of_every_sample(cfg):
    data = dataset(cfg, past=2)
    rows = (0, 1, 3)
    batch, samples = batch_of(data, rows), [data[i] for i in rows]
    assert [p.valid.tolist() for p in batch.past] == [[False, True, True], [False, False, True]]
    for k, past in enumerate(batch.past):
        assert past.tokens == [sample.past[k].token for sample in samples]
        assert past.images.shape == batch.images.shape and past.photometric.shape == batch.photometric.shape
        for name in (*DRAWS, "images", "now2past", "motion", "seconds", "gap", "valid"):
            expected = [getattr(sample.past[k], name) for sample in samples]
            assert torch.equal(getattr(past, name), torch.stack(expected)), name
        assert network_images(past, cfg).shape == network_images(batch, cfg).shape
    assert batch.past[0].now2past.dtype == batch.past[0].gap.dtype == torch.float32
    assert batch_of(dataset(cfg), rows).past == []


def test_the_network_is_shown_the_past_as_it_was_shown_then(cfg):
    data = dataset(cfg, "val", past=1)
    now, before = batch_of(data, (3,)), batch_of(data, (2,))
    assert torch.equal(network_images(now.past[0], cfg), network_images(before, cfg))


def test_batches_are_moved_whole(cfg):
    batch = batch_of(dataset(cfg, past=2), (1, 2))
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in moved.tensors())
    assert len(moved.tensors()) == len(batch.tensors()) > 2 * 8
    assert [p.tokens for p in moved.past] == [p.tokens for p in batch.past]
    own = len(dataclasses.replace(batch, past=[]).tensors())
    assert len(batch.tensors()) == own + sum(
        isinstance(value, torch.Tensor) for past in batch.past for value in vars(past).values()
    )
    assert torch.equal(batch.to("cpu").past[1].now2past, batch.past[1].now2past)


def test_visible_queries_are_listed_for_the_past_too(cfg):
    asked = []

    def list_rows(grid2img: torch.Tensor, shape: Tuple[int, int]) -> Tuple[torch.Tensor, List[int]]:
        asked.append((grid2img, shape))
        return torch.full((1,), len(asked)), [len(asked)]

    batch = batch_of(dataset(cfg, past=2), (1, 2), list_rows=list_rows)
    assert [batch.row_counts, *(past.row_counts for past in batch.past)] == [[1], [2], [3]]
    assert torch.equal(asked[2][0], batch.past[1].grid2img) and len({shape for _, shape in asked}) == 1


def test_other_shapes_in_the_past_are_named(cfg):
    data = dataset(cfg, past=1)
    samples = [data[1], data[2]]
    past: PastSample = replace(samples[1].past[0], images=samples[1].past[0].images[:, :8])
    samples[1].past = (past,)
    with pytest.raises(DataError, match=f"{samples[0].past[0].token} and {past.token} have images of shapes"):
        collate(samples, 0)


def test_shared_memory_is_counted_with_the_past(cfg):
    plain, one, three = (_size(dataset(cfg, past=past)) for past in (0, 1, 3))
    images = dataset(cfg)[0].images.nbytes
    assert one - plain > images and three - plain == 3 * (one - plain)


def test_samples_with_a_past_are_timed(cfg, monkeypatch):
    data, asked = dataset(cfg, past=2), []
    monkeypatch.setattr(data, "sample", lambda index, augment: asked.append(index))
    assert seconds_to_read(data) is not None
    assert asked == [2, 3, 6] and [len(data.windows[i]) for i in asked] == [2, 2, 2]
    plain, asked = dataset(cfg), []
    monkeypatch.setattr(plain, "sample", lambda index, augment: asked.append(index))
    assert seconds_to_read(plain) is not None and asked == [0, 1, 2]


# Loaders


def epoch_of(cfg: DataConfig, epoch: int, rank: int = 0, world: int = 1, start: int = 0) -> List[Batch]:
    loader = make_loader(dataset(cfg, past=2, drop_past=0.3), cfg, rank, world, train=True, seed=3)
    assert isinstance(loader.sampler, TrainSampler)
    loader.sampler.set_epoch(epoch, start)
    return list(loader)


def assert_same_batches(ours: List[Batch], theirs: List[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        assert_same(a, b)
        for p, q in zip(a.past, b.past):
            assert_same(p, q)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(cfg, workers):
    two = replace(cfg, batch_size=2)
    assert_same_batches(epoch_of(replace(two, workers=workers), 1), epoch_of(two, 1))


def test_an_epoch_of_windows_goes_on_where_it_was_left(cfg):
    two = replace(cfg, batch_size=2)
    whole = epoch_of(two, 1)
    assert_same_batches(epoch_of(two, 1, start=4), whole[2:])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_windows_of_each_global_batch(cfg, world):
    whole = epoch_of(replace(cfg, batch_size=world), 1)
    parts = [epoch_of(cfg, 1, rank, world) for rank in range(world)]
    for k, batch in enumerate(whole):
        ours = [part[k] for part in parts]
        assert [b.tokens[0] for b in ours] == batch.tokens
        for p, past in enumerate(batch.past):
            for name in ("images", "now2past", "valid", *DRAWS):
                assert torch.equal(torch.cat([getattr(b.past[p], name) for b in ours]), getattr(past, name))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_by_scene_sees_every_sample_once_in_order(cfg, world):
    data = dataset(cfg, "val", past=1)
    seen, place = [], {token: i for i, token in enumerate(data.tokens)}
    for rank in range(world):
        loader = make_loader(data, cfg, rank, world, train=False, seed=0, by_scene=True)
        assert isinstance(loader.sampler, SceneSampler)
        mine = [place[token] for batch in loader for token in batch.tokens]
        assert len(mine) == len(loader.sampler) >= loader.sampler.least
        times = [(data.scenes[i], data.timestamps[i]) for i in mine]
        changes = sum(a[0] != b[0] for a, b in zip(times, times[1:]))
        assert changes == max(0, len({scene for scene, _ in times}) - 1)
        assert all(a[1] < b[1] for a, b in zip(times, times[1:]) if a[0] == b[0])
        seen += mine
    assert sorted(seen) == list(range(len(data)))


def test_the_image_cache_serves_the_past(cfg, tmp_path, monkeypatch):
    cached = replace(cfg, image_cache=str(tmp_path / "cache"))
    data, plain = dataset(cached, past=2), dataset(cfg, past=2)
    for i in range(len(data)):
        assert_same_past(data[i], plain[i])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == len(data)  # a file for each frame, now or past

    def decoded(*_: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("tpvformer.data.images.cache.read_pictures", decoded)
    assert_same_past(data[3], plain[3])


def test_a_past_that_cannot_be_read(cfg, street, tmp_path):
    root = Path(shutil.copytree(street, tmp_path / "set"))
    files = {f"{split}_infos": str(root / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}
    broken = replace(cfg, root=str(root), **files)
    data = dataset(broken, "val", past=1)
    first = data.drives[0][0]
    info = load_pickle(broken.val_infos)["infos"][first]
    (root / info["cams"]["CAM_BACK"]["data_path"]).unlink()
    with pytest.raises(DataError, match=f"sample {info['token']}: .*CAM_BACK.* is missing"):
        data[data.drives[0][1]]
    assert data[data.drives[0][2]].past[0].valid
    train = dataset(replace(broken, train_infos=broken.val_infos, on_bad_sample="skip"), past=1)
    assert info["token"] in train[data.drives[0][1]].replaced
