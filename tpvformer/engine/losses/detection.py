"""Compute the losses of 3-D boxes: focal loss of the heatmaps, L1 of a box's values at its centre's cell.

Source: CenterPoint (arXiv:2006.11275), the focal loss of CornerNet (arXiv:1808.01244).

Shapes: B samples, N boxes (padded), Y, X cells of the map.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpvformer.config.detection import BOX_VALUES
from tpvformer.data.detection.boxes import GROUP_OF
from tpvformer.engine.distributed.collectives import all_reduce_sum

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model.detection import DetectionMaps

EDGE = 1e-4  # probabilities stay this far from 0 and 1
BOX_WEIGHT = 0.25  # of the L1 loss beside the focal loss
VELOCITY_WEIGHT = 0.2  # of the two velocities beside the eight other values


def detection_losses(maps: DetectionMaps, batch: Batch, together: bool) -> Tensor:
    """Return the loss of each sample, (B,) float32, whose mean is the loss of the batch.

    A loss is a sum over cells and boxes, divided by a number of boxes: by the sample's own, or, with ``together``, by
    the mean over the samples of this batch in all processes, so that every box weighs the same. All processes must
    then call this at the same time. A velocity that is NaN is not learned.
    """
    assert batch.heatmaps is not None, "the losses read boxes, so the data set must be asked for them"
    sums = focal(maps.heatmaps.float(), batch.heatmaps) + BOX_WEIGHT * box_l1(maps.values.float(), batch)
    boxes = (batch.heatmaps == 1).flatten(1).sum(1).float()
    if together:
        boxes = all_reduce_sum(boxes.sum()) / all_reduce_sum(torch.full_like(boxes[0], len(boxes)))
    return sums / boxes.clamp(min=1)


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the focal loss of each sample, (B,), of heatmaps (B,C,Y,X)."""
    p = logits.sigmoid().clamp(EDGE, 1 - EDGE)
    at_centres = -p.log() * (1 - p) ** 2
    elsewhere = -(1 - p).log() * p**2 * (1 - targets) ** 4
    return torch.where(targets == 1, at_centres, elsewhere).flatten(1).sum(1)


def box_l1(values: Tensor, batch: Batch) -> Tensor:
    """Return the weighted L1 of each sample's boxes, (B,), from the values (B,6,10,Y,X) of the groups."""
    assert batch.box_cells is not None and batch.box_labels is not None and batch.box_values is not None
    cells = values.shape[3] * values.shape[4]
    real = batch.box_labels >= 0
    groups = _groups(values.device)[batch.box_labels.clamp(min=0)]
    first = groups * (BOX_VALUES * cells) + batch.box_cells
    index = first[..., None] + torch.arange(BOX_VALUES, device=values.device) * cells  # (B,N,10)
    found = values.flatten(1).gather(1, index.flatten(1)).view(index.shape)
    known = real[..., None] & ~batch.box_values.isnan()
    error = torch.where(known, found - torch.where(known, batch.box_values, 0), 0).abs()
    return error[..., :-2].sum((1, 2)) + VELOCITY_WEIGHT * error[..., -2:].sum((1, 2))


@lru_cache(maxsize=4)  # a copy from the host may synchronise with the device
def _groups(device: torch.device) -> Tensor:
    return torch.tensor(GROUP_OF, device=device)
