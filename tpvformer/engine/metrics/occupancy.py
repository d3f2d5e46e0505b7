"""Means over confusion matrices, for any number of matrices at a time, so that resampled ones cost no more.

A confusion matrix is (..., K, K) [target, predicted], whole numbers in int64 or float64 (exact to 2^53). Results are
float64, in percent; NaN where there is nothing to score.
"""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
from torch import Tensor


def class_iou(confusion: Tensor, classes: Sequence[int]) -> Tensor:
    """(..., C): correct / (in the ground truth + predicted - correct); NaN for a class that the ground truth lacks."""
    chosen = list(classes)
    matrix = confusion.double()
    correct = matrix.diagonal(dim1=-2, dim2=-1)[..., chosen]
    seen, guessed = matrix.sum(-1)[..., chosen], matrix.sum(-2)[..., chosen]
    return ratio(correct, seen, guessed)


def ratio(correct: Tensor, seen: Tensor, guessed: Tensor) -> Tensor:
    """Intersection over union in percent from counts of one shape; NaN where nothing was there to be found."""
    iou = 100.0 * correct.double() / (seen + guessed - correct)
    return torch.where(seen > 0, iou, torch.nan)


def mean_of_present(iou: Tensor) -> Tensor:
    """Mean over the last axis of what is not NaN."""
    return iou.nanmean(-1)


def mean_reference(iou: Tensor) -> Tensor:
    """Mean over the last axis in which a class without ground truth counts 100 %: the published code's rule."""
    return torch.where(iou.isnan(), 100.0, iou).mean(-1)


def sc_iou(confusion: Tensor, empty: int) -> Tensor:
    """Scene completion: IoU of "occupied by anything" against "empty", whatever the class, (...).

    A class that is predicted but never taught (the ignored one) counts as occupied.
    """
    return ratio(*_occupied(confusion, empty))


def sc_precision(confusion: Tensor, empty: int) -> Tensor:
    """Percent of what is predicted as occupied that is so, (...); NaN where nothing is predicted."""
    both, _, guessed = _occupied(confusion, empty)
    return 100.0 * both / guessed


def sc_recall(confusion: Tensor, empty: int) -> Tensor:
    """Percent of what is occupied that is predicted so, (...); NaN where nothing is."""
    both, seen, _ = _occupied(confusion, empty)
    return 100.0 * both / seen


def _occupied(confusion: Tensor, empty: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Voxels that are occupied and predicted so, that are occupied, that are predicted so."""
    matrix = confusion.double()
    both = matrix.sum((-2, -1)) - matrix[..., empty, :].sum(-1) - matrix[..., :, empty].sum(-1)
    both = both + matrix[..., empty, empty]
    seen = matrix.sum((-2, -1)) - matrix[..., empty, :].sum(-1)
    guessed = matrix.sum((-2, -1)) - matrix[..., :, empty].sum(-1)
    return both, seen, guessed
