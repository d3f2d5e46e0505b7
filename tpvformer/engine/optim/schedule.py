"""The reference's learning rate: linear warm-up, then a cosine counted from step 0, both in optimiser steps."""

from __future__ import annotations

import math

import torch

from tpvformer.config import OptimConfig


def learning_rate(t: int, base: float, total: int, cfg: OptimConfig) -> float:
    """The curve at ``t`` of ``total`` steps for a group whose full rate is ``base``.

    The warm-up is laid over the cosine, not put before it: at its end the rate falls onto the cosine at ``t``. Both
    groups share the first and the last rate. From ``total`` on it stays at the last rate (the reference would restart,
    a point no run reaches).
    """
    if t < cfg.warmup_steps:
        return cfg.warmup_lr + t * (base - cfg.warmup_lr) / cfg.warmup_steps
    if t >= total:
        return cfg.min_lr
    return cfg.min_lr + 0.5 * (base - cfg.min_lr) * (1 + math.cos(math.pi * t / total))


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, total: int, cfg: OptimConfig) -> None:
    """Give the groups of ``build_optimizer`` (rest, backbone) their rates for step ``step``, counted from 0.

    The reference advances its schedule after each step with the counter of that step, so step k runs at the curve's
    k-1, and steps 0 and 1 both run at its start.
    """
    for group, base in zip(optimizer.param_groups, (cfg.lr, cfg.lr * cfg.backbone_lr_mult)):
        group["lr"] = learning_rate(max(step - 1, 0), base, total, cfg)
