"""Activations that are computed again in the backward pass instead of being kept (Chen et al., arXiv:1604.06174)."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

MODES = ("none", "cheap", "blocks")  # see TPVFormer.recompute


def checkpoint_all(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args); if enabled, the backward pass runs all of it once more."""
    if not enabled or not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False)
    return result


def checkpoint_before_matmul(enabled: bool, function: Callable[..., Tensor], *args: Any, draws: bool = False) -> Tensor:
    """function(*args) that ends with the one expensive operation, a convolution or a linear layer: if enabled, the
    backward pass repeats what stands before it, which is all that its gradient needs. ``draws``: random numbers."""
    if not enabled or not torch.is_grad_enabled() or not _selects():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=draws)
    return result


def checkpoint_except_sampling(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args), an attention; if enabled, the backward pass repeats its linear layers and its softmax, which are
    cheap and large, but not the sampling, whose result is kept. It must not draw random numbers."""
    if not enabled or not torch.is_grad_enabled() or not _selects():
        return function(*args)
    result: Tensor = checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_keep_sampling
    )
    return result


def _selects() -> bool:
    """Whether what is kept can be chosen: from PyTorch 2.4 on, and not under a compiler, which chooses by itself."""
    return hasattr(checkpointing, "create_selective_checkpoint_contexts") and not torch.compiler.is_compiling()


def _keep_sampling() -> Any:
    kept = torch.ops.tpvformer.anchored_attention.default

    def choose(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        policy = checkpointing.CheckpointPolicy
        return policy.MUST_SAVE if operator is kept else policy.PREFER_RECOMPUTE

    return checkpointing.create_selective_checkpoint_contexts(choose)
