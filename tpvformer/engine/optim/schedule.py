"""Compute the reference's learning rate: linear warm-up and a cosine counted from step 0, both in optimiser steps."""

from __future__ import annotations

import math

import torch

from tpvformer.config import OptimConfig


def learning_rate(t: int, base: float, total: int, cfg: OptimConfig) -> float:
    """Return the learning rate at step ``t`` of ``total`` for a group with full rate ``base``.

    The warm-up overlaps the cosine: at its end the rate drops to the cosine's value at ``t``. All groups share the
    first and the last rate. From ``total`` on the rate stays at the last value; the reference would restart there, but
    no run reaches that step.
    """
    if t < cfg.warmup_steps:
        return cfg.warmup_lr + t * (base - cfg.warmup_lr) / cfg.warmup_steps
    if t >= total:
        return cfg.min_lr
    return cfg.min_lr + 0.5 * (base - cfg.min_lr) * (1 + math.cos(math.pi * t / total))


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, total: int, cfg: OptimConfig) -> None:
    """Set the rates of the groups of ``build_optimizer`` for step ``step``, counted from 0.

    The reference advances its schedule after each step with the counter of that step. Step k therefore uses the rate of
    k - 1, and steps 0 and 1 both use the first rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate_at(step, group["initial_lr"], total, cfg)


def rate_at(step: int, base: float, total: int, cfg: OptimConfig) -> float:
    """Return the rate that ``set_learning_rates`` gives a group with full rate ``base``."""
    return learning_rate(max(step - 1, 0), base, total, cfg)
