"""Compute cross-entropy with a focusing factor and a smoothed target, for voxels and for points.

With the probabilities p of a row over K classes, its true class y, class weights w (1 where there are none), the
focusing parameter g (``loss.focal``) and the smoothing s (``loss.label_smoothing``)::

    target  q_k = (1 - s) [k = y] + s / K                 Szegedy et al., arXiv:1512.00567, sec. 7
    row     - sum_k w_k q_k (1 - p_k)^g log p_k           with s = 0: - w_y (1 - p_y)^g log p_y, the focal loss of
                                                          Lin et al., arXiv:1708.02002, eq. 4
    loss    (sum of the rows) / (sum of w_y of the rows)

With g = s = 0 this is plain cross-entropy, which ``losses.cross_entropy`` computes.

Shapes: B samples, K classes, N rows.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-7  # lower bound of 1 - p: for g < 1 the slope of (1 - p)^g at p = 1 is infinite


def soft_entropy(
    logits: Tensor, labels: Tensor, ignore: int, focal: float, smoothing: float, weights: Optional[Tensor] = None
) -> Tensor:
    """Return the mean (B,) over each sample's rows whose label is not ``ignore``; 0 without such rows.

    logits (B,K,N) float32, labels (B,N) int64, ``weights`` (K,).
    """
    each = costs(logits, focal)
    valid = labels != ignore
    rows = torch.where(valid, labels, 0)
    if weights is not None:
        each = each * weights[:, None]
    loss = each.gather(1, rows[:, None])[:, 0]
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing * each.mean(1)
    total = (valid.float() if weights is None else weights[rows] * valid).sum(1)
    return torch.where(valid, loss, 0.0).sum(1) / torch.where(total > 0, total, 1.0)


def soft_entropy_of_counts(logits: Tensor, counts: Tensor, focal: float, smoothing: float) -> Tensor:
    """Return the mean (B,) over the points of each sample; 0 without points.

    logits (B,K,N) float32 of each voxel; counts (B,K,N), the labelled points of each class in it.
    """
    target = (1 - smoothing) * counts + smoothing * counts.mean(1, keepdim=True) if smoothing else counts
    return (costs(logits, focal) * target).sum((1, 2)) / counts.sum((1, 2)).clamp(min=1)


def costs(logits: Tensor, focal: float) -> Tensor:
    """Return -(1 - p_k)^g log p_k of every class, (B,K,N)."""
    log = F.log_softmax(logits, 1)
    return -log * (-torch.expm1(log)).clamp(min=_LEAST) ** focal if focal else -log
