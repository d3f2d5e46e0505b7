"""Batches whose samples have different numbers of points."""

from __future__ import annotations

import torch

from tpvformer.data.types import Batch

K = 5


def ragged_batch(seed: int = 0) -> Batch:
    """Two samples of 30 and 20 points in a 3x2x2 grid, padded; voxel labels by majority do not matter here."""
    torch.manual_seed(seed)
    cells = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (3, 2, 2)), indexing="ij"), -1).reshape(-1, 3)
    voxels, rows, labels = [], [], []
    for count, occupied in ((30, 7), (20, 4)):
        voxels.append(cells[torch.randperm(len(cells))[:occupied]])
        rows.append(torch.randint(0, occupied, (count,)))
        labels.append(torch.randint(0, K, (count,)))

    def pad(parts):
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    grid_index = pad([v[r] for v, r in zip(voxels, rows)])
    return Batch(
        tokens=["a", "b"],
        images=torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8),
        photometric=None,
        keep_rows=None,
        keep_columns=None,
        grid2img=torch.zeros(2, 1, 4, 4),
        grid_index=grid_index,
        point_labels=pad(labels),
        point_lengths=torch.tensor([30, 20]),
        voxel_labels=torch.randint(0, K, (2, 3, 2, 2), dtype=torch.uint8),
        voxel_coords=pad(voxels),
        voxel_lengths=torch.tensor([7, 4]),
        point2voxel=pad(rows),
    )
