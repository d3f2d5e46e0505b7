"""The order of an epoch, whatever its length, the number of ranks and where it is taken up."""

from __future__ import annotations

from typing import List

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpvformer.data.samplers import TrainSampler, ValSampler, epoch_order


class Counted:
    """As much of a data set as a sampler looks at."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, -1

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def deal(length: int, world: int, seed: int, epoch: int, start: int) -> List[List[int]]:
    """What each rank reads."""
    hands = []
    for rank in range(world):
        data = Counted(length)
        sampler = TrainSampler(data, rank, world, seed)  # type: ignore[arg-type]
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
