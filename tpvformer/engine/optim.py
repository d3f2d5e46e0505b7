"""AdamW over two parameter groups: the backbone at its own rate, and the rest."""

from __future__ import annotations

from typing import Any, Dict, List

import torch
from torch import Tensor, nn

from tpvformer.config import OptimConfig

from .device import has_fused_adamw


def build_optimizer(model: nn.Module, cfg: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay on every trainable parameter, norms, biases and embeddings included.

    The reference keeps one group a tensor; parameters that share rate and decay are updated identically in one group.
    Group 0 is everything but ``model.backbone``. Frozen parameters are in no group.
    """
    backbone: List[Tensor] = []
    rest: List[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else rest).append(parameter)
    groups: List[Dict[str, Any]] = [{"params": rest}, {"params": backbone, "lr": cfg.lr * cfg.backbone_lr_mult}]
    fused = True if has_fused_adamw(device) else None
    return torch.optim.AdamW(
        groups, lr=cfg.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=cfg.weight_decay, fused=fused
    )


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients together to a 2-norm of at most ``max_norm``; returns the norm before, on the device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm)
