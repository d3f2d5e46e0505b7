"""Order the samples over epochs and ranks.

The same seed gives the same global batches, whatever the number of ranks they are spread over. An epoch reads every
sample once, or, with balanced classes, as many samples, each as often as its share says (balance.py).
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence

import numpy as np
from torch.utils.data import Sampler

from tpvformer.data.balance import draw_frames
from tpvformer.data.dataset import FrameDataset


class TrainSampler(Sampler[int]):
    """Shuffle each epoch and assign samples to the ranks in turn, so that the union of the ranks' k-th batches is the
    k-th batch of a single rank with the same global batch. The remainder is left out.

    ``shares`` (samples,): how often an epoch draws each sample on average; None: once each.
    """

    def __init__(
        self, dataset: FrameDataset, rank: int, world_size: int, seed: int, shares: Optional[np.ndarray] = None
    ) -> None:
        self._dataset, self._rank, self._world_size, self._seed = dataset, rank, world_size, seed
        self._epoch, self._start = 0, 0
        self._shares = shares

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch, which selects the order of the samples and their augmentations.

        The first ``start`` samples of the order, counted over all ranks, are skipped. The samples that follow are
        assigned to the present ranks, whatever the number of ranks before.
        """
        self._epoch, self._start = epoch, start
        self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return max(0, len(self._dataset) - self._start) // self._world_size

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(len(self._dataset), self._seed, self._epoch, self._shares)[self._start :]
        return iter(order[self._rank :: self._world_size][: len(self)].tolist())


def epoch_order(samples: int, seed: int, epoch: int, shares: Optional[np.ndarray] = None) -> np.ndarray:
    """Return the order of all samples in an epoch, (samples,) int64; with ``shares`` as ``draw_frames`` does."""
    rng = np.random.RandomState([seed % 2**32, epoch])
    return rng.permutation(samples) if shares is None else draw_frames(shares, rng)


class ValSampler(Sampler[int]):
    """Yield every sample exactly once over all ranks, in order; some ranks get one sample less than others."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self._mine = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)


class SceneSampler(Sampler[int]):
    """Yield every sample exactly once over all ranks, each scene on one rank and in the order of time.

    ``drives`` holds the samples of each scene in that order (``FrameDataset.drives``). The longest scenes are dealt
    first, each to the rank with the fewest samples; a rank reads its scenes in the order of ``drives``. Ranks may have
    unequal numbers of samples, and none where there are fewer scenes than ranks: ``least`` is the smallest number.
    """

    def __init__(self, drives: Sequence[Sequence[int]], rank: int, world_size: int) -> None:
        hands: List[List[int]] = [[] for _ in range(world_size)]
        counts = [0] * world_size
        for scene in sorted(range(len(drives)), key=lambda scene: -len(drives[scene])):
            poorest = counts.index(min(counts))
            hands[poorest].append(scene)
            counts[poorest] += len(drives[scene])
        self.least = min(counts)
        self._mine = [sample for scene in sorted(hands[rank]) for sample in drives[scene]]

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)
