"""Recompute activations in the backward pass instead of storing them (Chen et al., arXiv:1604.06174)."""

from __future__ import annotations

from typing import Any, Callable, get_args

import torch
from torch import Tensor
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

from tpvformer.config.sections import Recompute

MODES = get_args(Recompute)  # see TPVFormer.recompute


def checkpoint_all(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return function(*args); if enabled, the backward pass runs the whole function again."""
    if not enabled or not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False)
    return result


def checkpoint_before_matmul(enabled: bool, function: Callable[..., Tensor], *args: Any, draws: bool = False) -> Tensor:
    """Return function(*args); if enabled, the backward pass recomputes all but the final convolution or linear layer.

    ``function`` must end with that operation: its gradient needs only its inputs, not its result. ``draws``: whether
    the function uses random numbers.
    """
    if not enabled or not torch.is_grad_enabled() or not _selects():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=draws)
    return result


def checkpoint_except_sampling(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return function(*args) of an attention; if enabled, the backward pass recomputes all but the sampling.

    Linear layers and softmax are cheap to compute and large to store. The result of the sampling is stored.
    ``function`` must not use random numbers.
    """
    if not enabled or not torch.is_grad_enabled() or not _selects():
        return function(*args)
    result: Tensor = checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_keep_sampling
    )
    return result


def _selects() -> bool:
    """Return whether single results can be kept: from PyTorch 2.4 on, except under a compiler, which decides itself."""
    return hasattr(checkpointing, "create_selective_checkpoint_contexts") and not torch.compiler.is_compiling()


def _keep_sampling() -> Any:
    kept = torch.ops.tpvformer.anchored_attention.default

    def choose(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        policy = checkpointing.CheckpointPolicy
        return policy.MUST_SAVE if operator is kept else policy.PREFER_RECOMPUTE

    return checkpointing.create_selective_checkpoint_contexts(choose)
