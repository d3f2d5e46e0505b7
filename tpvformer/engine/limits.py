"""What a model asks of its device's kernels, held against their limits when it is built, not at its first step."""

from __future__ import annotations

import os
from typing import List

import torch

from tpvformer import ops
from tpvformer.config import ConfigError
from tpvformer.model import TPVFormer
from tpvformer.model.backbone import ModulatedDeformConv3x3


def check_kernels(model: TPVFormer, device: torch.device) -> List[str]:
    """Remarks on the operations of ``model`` that the kernels of ``device`` do not take; plain PyTorch serves those.

    Raises ConfigError instead where TPVFORMER_OPS insists on the kernels.
    """
    forced = os.environ.get("TPVFORMER_OPS")
    if forced == "reference":
        return []
    cfg = model.config
    attentions = [(cfg.plane_heads, cfg.dim // cfg.plane_heads, 3 if cfg.view_attn == "cross_view" else 1)]
    if "self_cross" in cfg.layers:
        attentions.append((cfg.image_heads, cfg.dim // cfg.image_heads, cfg.num_levels))
    convolutions = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, ModulatedDeformConv3x3)]
    problems = ops.beyond_kernels(device, attentions, convolutions)
    if problems and forced is not None:
        raise ConfigError(f"TPVFORMER_OPS={forced} was asked for, but {problems[0]}; unset it, or change the model")
    return [f"{problem} by the device's kernel: plain PyTorch does it, more slowly" for problem in problems]
