"""The order of an epoch, also of windows, whatever its length, the number of ranks and where it is taken up."""

from __future__ import annotations

import json
from typing import List, Optional, Tuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig_tools import camera, save, write_rig

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.balance import frame_shares
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.samplers import SceneSampler, TrainSampler, ValSampler, epoch_order


class Counted:
    """As much of a data set as a sampler looks at."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, -1

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def deal(
    length: int, world: int, seed: int, epoch: int, start: int, shares: Optional[np.ndarray] = None
) -> List[List[int]]:
    """What each rank reads."""
    hands = []
    for rank in range(world):
        data = Counted(length)
        sampler = TrainSampler(data, rank, world, seed, shares)  # type: ignore[arg-type]
        sampler.set_epoch(epoch, start)
        hands.append(list(sampler))
        assert len(hands[-1]) == len(sampler) and data.epoch == epoch
    return hands


lengths, worlds = st.integers(1, 300), st.integers(1, 40)
seeds, epochs = st.integers(0, 2**40), st.integers(0, 1000)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths, worlds, seeds, epochs, st.data())
def test_no_sample_is_lost_or_repeated(length: int, world: int, seed: int, epoch: int, more: st.DataObject) -> None:
    """Taken up at any sample, the ranks' k-th samples are the next ``world`` of the order; only a remainder smaller
    than a deal is left out."""
    start = more.draw(st.integers(0, length))
    order = epoch_order(length, seed, epoch)
    assert sorted(order.tolist()) == list(range(length))
    hands = deal(length, world, seed, epoch, start)
    assert len({len(hand) for hand in hands}) == 1
    dealt = [sample for row in zip(*hands) for sample in row]
    assert dealt == order[start : start + len(dealt)].tolist()
    assert length - start - len(dealt) < world


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 20), seeds, epochs, st.data())
def test_any_chain_of_worlds_sees_the_same_global_batches(
    batch: int, steps: int, seed: int, epoch: int, more: st.DataObject
) -> None:
    """A run that is taken up again and again, each time by a number of ranks that divides its global batch."""
    length = batch * steps + more.draw(st.integers(0, batch - 1))
    order, seen, done = epoch_order(length, seed, epoch), [], 0
    while done < steps:
        world = more.draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
        life = more.draw(st.integers(1, steps - done))
        hands, own = deal(length, world, seed, epoch, done * batch), batch // world
        for step in range(life):
            seen.append(sorted(s for hand in hands for s in hand[step * own : (step + 1) * own]))
        done += life
    assert seen == [sorted(order[i * batch : (i + 1) * batch].tolist()) for i in range(steps)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths, worlds)
def test_validation_sees_every_sample_once(length: int, world: int) -> None:
    read = [sample for rank in range(world) for sample in ValSampler(length, rank, world)]
    assert sorted(read) == list(range(length))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(30, 300), seeds, epochs)
def test_epochs_differ(length: int, seed: int, epoch: int) -> None:
    assert not np.array_equal(epoch_order(length, seed, epoch), epoch_order(length, seed, epoch + 1))


@st.composite
def frames_with_classes(draw: st.DrawFn) -> np.ndarray:
    """The shares of frames, each with some of up to eight classes."""
    classes = draw(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=120))
    return frame_shares([np.array(sorted(held), np.int64) for held in classes])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(frames_with_classes(), worlds, seeds, epochs, st.data())
def test_balanced_epochs_draw_each_frame_as_often_as_its_share_says(
    shares: np.ndarray, world: int, seed: int, epoch: int, more: st.DataObject
) -> None:
    """As many draws as frames, each share rounded down or up, each draw with a number of its own; dealt and taken up
    again as epochs without balanced classes are."""
    length = len(shares)
    start = more.draw(st.integers(0, length))
    order = epoch_order(length, seed, epoch, shares)
    frames, draws = order % length, order // length
    assert len(order) == length == len(set(order.tolist())) and shares.sum() == pytest.approx(length)
    counts = np.bincount(frames, minlength=length)
    assert (counts >= np.floor(shares - 1e-9)).all() and (counts <= np.ceil(shares + 1e-9)).all()
    for frame in np.flatnonzero(counts):
        assert sorted(draws[frames == frame]) == list(range(counts[frame]))
    hands = deal(length, world, seed, epoch, start, shares)
    assert len({len(hand) for hand in hands}) == 1
    dealt = [sample for row in zip(*hands) for sample in row]
    assert dealt == order[start : start + len(dealt)].tolist()
    assert length - start - len(dealt) < world


@settings(max_examples=30, deadline=None, derandomize=True)
@given(frames_with_classes(), seeds)
def test_over_many_epochs_the_shares_are_the_means(shares: np.ndarray, seed: int) -> None:
    length, epochs = len(shares), 300
    drawn = np.concatenate([epoch_order(length, seed, epoch, shares) % length for epoch in range(epochs)])
    mean = np.bincount(drawn, minlength=length) / epochs
    assert np.abs(mean - shares).max() < 5 * 0.5 / np.sqrt(epochs)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Nine frames of two drives, in turns."""
    path = write_rig(tmp_path_factory.mktemp("rig"), (camera("front"),), (0,) * 9, lidar2ego=np.eye(4).tolist())
    rig = json.loads(path.read_text())
    for i, frame in enumerate(rig["frames"]):
        frame.update(timestamp=0.25 * i, ego2global=np.eye(4).tolist())
    save(path, rig)
    return DataConfig(train_infos=str(path), val_infos=str(path), workers=0)


def shown(data: FrameDataset, index: int) -> Tuple:
    """What the network is shown of a sample: the frames, and what was drawn for them."""
    sample = data[index]
    frames = [sample, *sample.past]
    draws = [None if f.photometric is None else f.photometric.flatten().tolist() for f in frames]
    return [f.token for f in frames], [bool(past.valid) for past in sample.past], draws


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 9), seeds, st.integers(1, 3), st.sampled_from([0.0, 0.4]))
def test_windows_are_the_same_on_any_number_of_ranks_and_from_any_sample_on(
    windows: DataConfig, world: int, start: int, epoch: int, seed: int, past: int, drop: float
) -> None:
    """The union of the ranks' k-th samples, with what was drawn for them, is the next deal of one rank's epoch."""

    def opened() -> FrameDataset:
        grid = GridConfig(w=6, h=5, z=4)
        return FrameDataset(windows, grid, "train", seed, require_labels=False, past=past, drop_past=drop)

    data = opened()
    data.set_epoch(epoch)
    whole = [shown(data, int(i)) for i in epoch_order(len(data), seed, epoch)]
    ranks = []
    for rank in range(world):
        own = opened()
        sampler = TrainSampler(own, rank, world, seed)
        sampler.set_epoch(epoch, start)
        ranks.append([shown(own, i) for i in sampler])
    dealt = [sample for row in zip(*ranks) for sample in row]
    assert dealt == whole[start : start + len(dealt)] and len(data) - start - len(dealt) < world


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 3))
def test_validation_reads_the_same_windows_on_any_number_of_ranks(windows: DataConfig, world: int, past: int) -> None:
    data = FrameDataset(windows, GridConfig(w=6, h=5, z=4), "val", 0, require_labels=False, past=past)
    for samplers in (
        [ValSampler(len(data), rank, world) for rank in range(world)],
        [SceneSampler(data.drives, rank, world) for rank in range(world)],
    ):
        read = {i: shown(data, i) for sampler in samplers for i in sampler}
        assert sorted(read) == list(range(len(data)))
        for i, (tokens, valid, _) in read.items():
            assert tokens[1:] == [f"frame{i - 2 * k if i >= 2 * k else i}" for k in range(1, past + 1)]
            assert valid == [i >= 2 * k for k in range(1, past + 1)]
