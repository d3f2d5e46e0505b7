"""Scene-class affinity losses of MonoScene (Cao and de Charette, CVPR 2022, arXiv:2112.00726, section 3.3.1).

For a class c of N labelled voxels with probabilities p and one-hot truth t::

    precision   sum p t / sum p                 of what is said to be c, how much is
    recall      sum p t / sum t                 of what is c, how much is said to be
    specificity sum (1-p)(1-t) / sum (1-t)      of what is not c, how much is not said to be
    loss        - log precision - log recall - log specificity

Unlike cross-entropy, each sees the whole scene at once. The semantic loss is the mean over the classes present, free
space included; the geometric one is that of the single class "occupied by anything", whose probability is that of not
being free. A term without a denominator is left out.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

_LEAST = 1e-7  # a ratio counts as this at least, so that its logarithm is finite


def affinity(logits: Tensor, labels: Tensor, ignore: int, empty: int) -> Tensor:
    """Semantic plus geometric loss of each sample, (B,).

    logits (B,K,N) float32, labels (B,N) int64, of which ``ignore`` counts nowhere; ``empty`` is the class of free
    space. A sample without any label has loss 0.
    """
    hit, mass, seen = class_sums(logits.softmax(1), labels, ignore)
    total = seen.sum(1)
    each = _three_terms(hit, mass, seen, total[:, None])
    present = seen > 0
    semantic = (each * present).sum(1) / present.sum(1).clamp(min=1)
    # occupied against free: the complements of what is counted for free space
    free_hit, free_mass, free = hit[:, empty], mass[:, empty], seen[:, empty]
    occupied_hit = total - free_mass - free + free_hit
    geometric = _three_terms(occupied_hit, total - free_mass, total - free, total)
    return semantic + geometric * (total > 0)


def class_sums(probability: Tensor, labels: Tensor, ignore: int) -> Tuple[Tensor, Tensor, Tensor]:
    """(B,K) each, over labelled voxels: probability given to the class where it is true and everywhere, and voxels."""
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
    """- log(part / whole), 0 where there is no whole."""
    ratio = part / whole.clamp(min=_LEAST)
    return torch.where(whole > 0, -ratio.clamp(_LEAST, 1).log(), 0.0)
