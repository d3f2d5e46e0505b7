"""Compute means over confusion matrices, for many matrices at once, as the bootstrap needs.

A confusion matrix is (..., K, K) [target, predicted], integers in int64 or float64 (exact to 2^53). Results are
float64, in percent, and NaN where nothing can be scored.
"""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
from torch import Tensor


def class_iou(confusion: Tensor, classes: Sequence[int]) -> Tensor:
    """Return (..., C): correct / (ground truth + predicted - correct); NaN for a class without ground truth."""
    chosen = list(classes)
    matrix = confusion.double()
    correct = matrix.diagonal(dim1=-2, dim2=-1)[..., chosen]
    seen, guessed = matrix.sum(-1)[..., chosen], matrix.sum(-2)[..., chosen]
    return ratio(correct, seen, guessed)


def ratio(correct: Tensor, seen: Tensor, guessed: Tensor) -> Tensor:
    """Return the intersection over union in percent from counts of one shape; NaN where ``seen`` is 0."""
    iou = 100.0 * correct.double() / (seen + guessed - correct)
    return torch.where(seen > 0, iou, torch.nan)


def mean_of_present(iou: Tensor) -> Tensor:
    """Return the mean over the last axis, without NaN."""
    return iou.nanmean(-1)


def mean_reference(iou: Tensor) -> Tensor:
    """Return the mean over the last axis, with 100 % for a class without ground truth: the published code's rule."""
    return torch.where(iou.isnan(), 100.0, iou).mean(-1)


def sc_iou(confusion: Tensor, empty: int) -> Tensor:
    """Return the IoU (...) of "occupied" against "empty", whatever the class: scene completion.

    A class that is predicted but has no labels (the ignored one) counts as occupied.
    """
    return ratio(*_occupied(confusion, empty))


def sc_precision(confusion: Tensor, empty: int) -> Tensor:
    """Return the percentage (...) of the voxels predicted as occupied that are occupied; NaN if none is predicted."""
    both, _, guessed = _occupied(confusion, empty)
    return 100.0 * both / guessed


def sc_recall(confusion: Tensor, empty: int) -> Tensor:
    """Return the percentage (...) of the occupied voxels that are predicted as occupied; NaN if none is occupied."""
    both, seen, _ = _occupied(confusion, empty)
    return 100.0 * both / seen


def _occupied(confusion: Tensor, empty: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Count voxels: occupied and predicted as occupied; occupied; predicted as occupied."""
    matrix = confusion.double()
    both = matrix.sum((-2, -1)) - matrix[..., empty, :].sum(-1) - matrix[..., :, empty].sum(-1)
    both = both + matrix[..., empty, empty]
    seen = matrix.sum((-2, -1)) - matrix[..., empty, :].sum(-1)
    guessed = matrix.sum((-2, -1)) - matrix[..., :, empty].sum(-1)
    return both, seen, guessed
