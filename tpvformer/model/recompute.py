"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils import checkpoint

MODES = ("none", "attention", "blocks")  # see TPVFormer.recompute


def whole(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args); if enabled, the backward pass runs it once more (Chen et al., arXiv:1604.06174)."""
    if not enabled or not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint.checkpoint(function, *args, use_reentrant=False)
    return result


def all_but_sampling(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args), an attention; if enabled, the backward pass repeats its linear layers and its softmax, which are
    cheap and large, but not the sampling, whose result is kept. It must not draw random numbers.

    PyTorch before 2.4 cannot choose what is kept; there everything is.
    """
    chooses = hasattr(checkpoint, "create_selective_checkpoint_contexts")
    if not enabled or not torch.is_grad_enabled() or not chooses:
        return function(*args)
    result: Tensor = checkpoint.checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_keep_sampling
    )
    return result


def _keep_sampling() -> Any:
    policy = checkpoint.CheckpointPolicy
    kept = torch.ops.tpvformer.anchored_attention.default

    def choose(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        return policy.MUST_SAVE if operator is kept else policy.PREFER_RECOMPUTE

    return checkpoint.create_selective_checkpoint_contexts(choose)
