"""Order of samples over epochs, ranks and workers."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import List

import programs
import pytest
import torch
from tiny_nuscenes import write_tiny
from torch.utils.data import DataLoader

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.images.preprocess import network_images
from tpvformer.data.loader import make_loader
from tpvformer.data.samplers import TrainSampler, epoch_order
from tpvformer.data.types import Batch

POINTS = (9, 8, 7, 6, 5, 4, 3)
GRID = GridConfig(w=6, h=5, z=4)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> DataConfig:
    return write_tiny(tmp_path_factory.mktemp("set"), POINTS, cameras=("CAM_FRONT", "CAM_BACK"))


def begin(loader: DataLoader, epoch: int) -> None:
    assert isinstance(loader.sampler, TrainSampler)
    loader.sampler.set_epoch(epoch)


def epochs(cfg: DataConfig, count: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> List[List[Batch]]:
    loader = make_loader(FrameDataset(cfg, GRID, "train", seed), cfg, rank, world_size, train=True, seed=seed)
    out = []
    for epoch in range(count):
        begin(loader, epoch)
        out.append(list(loader))
    return out


def order(batches: List[Batch]) -> List[str]:
    return [token for batch in batches for token in batch.tokens]


def same(ours: Batch, theirs: Batch) -> bool:
    """Whether the network is shown the same, and asked the same."""
    pictures = (network_images(batch, DataConfig()) for batch in (ours, theirs))
    return torch.equal(*pictures) and torch.equal(ours.voxel_labels, theirs.voxel_labels)


def test_workers_change_nothing(cfg):
    alone = epochs(cfg, 3)
    for workers in (1, 2):
        for ours, theirs in zip(alone, epochs(replace(cfg, workers=workers), 3)):
            assert order(ours) == order(theirs)
            assert all(same(a, b) for a, b in zip(ours, theirs))


def test_epochs_and_seeds_differ_and_repeat(cfg):
    first, second = epochs(cfg, 2)
    again, _ = epochs(cfg, 2)
    other = epochs(cfg, 1, seed=1)[0]
    assert sorted(order(first)) == sorted(order(second)) == [f"sample{i}" for i in range(len(POINTS))]
    assert order(first) == order(again)
    assert order(first) != order(second)
    assert order(first) != order(other)
    assert all(same(a, b) for a, b in zip(first, again))


def test_augmentation_is_drawn_anew_each_epoch(cfg):
    data = FrameDataset(cfg, GRID, "train", 0)
    data.set_epoch(0)
    before = data[3]
    data.set_epoch(1)
    assert torch.equal(before.images, data[3].images)
    for other in (data[3], FrameDataset(cfg, GRID, "train", 1)[3]):
        assert not torch.equal(before.photometric, other.photometric)


def test_pictures_lie_in_memory_that_training_can_read(cfg):
    busy = replace(cfg, workers=1)
    loader = make_loader(FrameDataset(busy, GRID, "train", 0), busy, 0, 1, train=True, seed=0)
    assert next(iter(loader)).images.is_shared()
    assert not FrameDataset(cfg, GRID, "train", 0)[0].images.is_shared()


def test_an_epoch_left_early_does_not_leak_into_the_next(cfg):
    busy = replace(cfg, workers=1)
    loader = make_loader(FrameDataset(busy, GRID, "train", 0), busy, 0, 1, train=True, seed=0)
    begin(loader, 0)
    next(iter(loader))
    begin(loader, 1)
    left, expected = list(loader), epochs(cfg, 2)[1]
    assert order(left) == order(expected)
    assert all(same(a, b) for a, b in zip(left, expected))


def test_ranks_share_each_global_batch(cfg):
    whole = epochs(replace(cfg, batch_size=2), 1)[0]
    parts = [epochs(cfg, 1, rank=rank, world_size=2)[0] for rank in range(2)]
    assert [sorted(batch.tokens) for batch in whole] == [
        sorted(a.tokens + b.tokens) for a, b in zip(parts[0], parts[1])
    ]
    assert len(parts[0]) == len(parts[1]) == 3


@pytest.mark.parametrize("ranks_before, ranks_after", [(1, 2), (2, 1), (3, 2), (2, 4)])
def test_an_epoch_goes_on_where_it_was_left_on_any_number_of_ranks(cfg, ranks_before, ranks_after):
    def dealt(ranks: int, start: int, count: int) -> List[int]:
        """What the ranks read next, in turns."""
        data = FrameDataset(cfg, GRID, "train", 0)
        samplers = [TrainSampler(data, rank, ranks, seed=5) for rank in range(ranks)]
        for sampler in samplers:
            sampler.set_epoch(3, start)
        return [index for turn in zip(*samplers) for index in turn][:count]

    done = dealt(ranks_before, 0, ranks_before)
    rest = dealt(ranks_after, len(done), len(POINTS))
    assert done + rest == epoch_order(len(POINTS), 5, 3).tolist()[: len(done) + len(rest)]
    assert len(done) + len(rest) > len(POINTS) - ranks_after  # what is left out does not fill one deal


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_validation_sees_every_sample_once(cfg, world_size, batch_size):
    one = replace(cfg, batch_size=batch_size)
    data = FrameDataset(one, GRID, "val", 0)
    loaders = [make_loader(data, one, rank, world_size, train=False, seed=0) for rank in range(world_size)]
    seen = [token for loader in loaders for token in order(list(loader))]
    assert sorted(seen) == sorted(data.tokens)


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are handed over on Linux and macOS")
def test_a_worker_says_nothing_of_a_training_process_that_has_ended():
    """It handed a tensor over when the training process ended: its thread once printed a traceback."""
    program = """if True:
        import sys, threading, time
        from multiprocessing import connection, resource_sharer
        from tpvformer.data.loader import start_worker
        start_worker(0)
        address, _ = resource_sharer.DupFd(0)._id
        connection.Client(address).close()  # without the answer that the worker's thread waits for
        time.sleep(1)
        crashed = threading.Thread(target=lambda: sys.excepthook(ValueError, ValueError("a real one"), None))
        crashed.start()
        crashed.join()
    """
    done = programs.run([sys.executable, "-c", program], check=True)
    assert done.stderr == "ValueError: a real one\n" and done.stdout == ""
