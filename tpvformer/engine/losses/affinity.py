"""Compute the scene-class affinity losses of MonoScene (Cao and de Charette, CVPR 2022, arXiv:2112.00726, sec. 3.3.1).

For a class c of N labelled voxels with probabilities p and one-hot truth t::

    precision   sum p t / sum p                 share of the predicted c that is c
    recall      sum p t / sum t                 share of the true c that is predicted c
    specificity sum (1-p)(1-t) / sum (1-t)      share of the other voxels that is not predicted c
    loss        - log precision - log recall - log specificity

Unlike cross-entropy, each term is computed over the whole scene. The semantic loss is the mean over the classes
present, free space included. The geometric loss is that of the single class "occupied", with probability 1 - p(free). A
term whose denominator is zero is left out.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

_LEAST = 1e-7  # lower bound of a ratio, so that its logarithm is finite


def affinity(logits: Tensor, labels: Tensor, ignore: int, empty: int) -> Tensor:
    """Return the semantic plus the geometric loss of each sample, (B,).

    logits (B,K,N) float32, labels (B,N) int64. Voxels labelled ``ignore`` are not counted; ``empty`` is the class of
    free space. A sample without any label has loss 0.
    """
    hit, mass, seen = class_sums(logits.softmax(1), labels, ignore)
    total = seen.sum(1)
    each = _three_terms(hit, mass, seen, total[:, None])
    present = seen > 0
    semantic = (each * present).sum(1) / present.sum(1).clamp(min=1)
    # occupied against free: the sums of "occupied" follow from those of free space
    free_hit, free_mass, free = hit[:, empty], mass[:, empty], seen[:, empty]
    occupied_hit = total - free_mass - free + free_hit
    geometric = _three_terms(occupied_hit, total - free_mass, total - free, total)
    return semantic + geometric * (total > 0)


def class_sums(probability: Tensor, labels: Tensor, ignore: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Return sums over labelled voxels, (B,K) each: probability where the class is true, all probability, voxels."""
    valid = labels != ignore
    rows = torch.where(valid, labels, 0)
    weight = valid.to(probability.dtype)
    right = probability.gather(1, rows[:, None])[:, 0] * weight
    nothing = probability.new_zeros(probability.shape[:2])
    hit = nothing.scatter_add(1, rows, right)
    seen = nothing.scatter_add(1, rows, weight)
    mass = torch.einsum("bkn,bn->bk", probability, weight)
    return hit, mass, seen


def _three_terms(hit: Tensor, mass: Tensor, seen: Tensor, total: Tensor) -> Tensor:
    others = total - seen
    rest = others - mass + hit  # the sum of (1-p)(1-t)
    return _cost(hit, mass) + _cost(hit, seen) + _cost(rest, others)


def _cost(part: Tensor, whole: Tensor) -> Tensor:
    """Return -log(part / whole), and 0 where ``whole`` is 0."""
    ratio = part / whole.clamp(min=_LEAST)
    return torch.where(whole > 0, -ratio.clamp(_LEAST, 1).log(), 0.0)
