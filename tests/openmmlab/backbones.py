"""mmdet's backbones on ResNet's parts: seeded weights, modes, outputs and gradients."""

from __future__ import annotations

import logging
from typing import Any, Dict, List

import torch
from report import DCN, main
from torch import Tensor

_CONTEXT = {"type": "ContextBlock", "ratio": 0.25}
_PLUGINS = [
    {"cfg": dict(_CONTEXT), "stages": (False, True, True, False), "position": "after_conv3"},
    {"cfg": {**_CONTEXT, "postfix": "x"}, "position": "after_conv1"},
]
_HALF = {"dcn": DCN, "stage_with_dcn": (False, False, True, True)}
_HR = {
    f"stage{n}": {
        "num_modules": 1,
        "num_branches": n,
        "block": "BOTTLENECK" if n == 1 else "BASIC",
        "num_blocks": (1,) * n,
        "num_channels": tuple(8 * 2**i for i in range(n)),
    }
    for n in range(1, 5)
}
PLAIN: Dict[str, Dict[str, Any]] = {
    "depth 18": {"type": "ResNet", "depth": 18, "frozen_stages": 0, "norm_eval": False},
    "caffe": {"type": "ResNet", "depth": 50, "frozen_stages": 1, "style": "caffe"},
    "group norm": {"type": "ResNet", "depth": 50, "norm_cfg": {"type": "GN", "num_groups": 4}},
    "dilated": {"type": "ResNet", "depth": 50, "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    "recomputed": {"type": "ResNet", "depth": 50, "with_cp": True, "zero_init_residual": False},
    "plugins": {"type": "ResNet", "depth": 50, "plugins": _PLUGINS},
    "V1d": {"type": "ResNetV1d", "depth": 50, "out_indices": (0, 3), "frozen_stages": 2},
    "ResNeXt": {"type": "ResNeXt", "depth": 50, "groups": 32, "base_width": 4},
    "Res2Net": {"type": "Res2Net", "depth": 50, "scales": 4, "base_width": 26},
    "ResNeSt": {"type": "ResNeSt", "depth": 50},
    "RegNet": {"type": "RegNet", "arch": "regnetx_400mf"},
    "DetectoRS": {"type": "DetectoRS_ResNet", "depth": 50, "conv_cfg": {"type": "ConvAWS"}, "output_img": True},
    "DetectoRS ResNeXt": {"type": "DetectoRS_ResNeXt", "depth": 50, "groups": 32, "base_width": 4},
    "Hourglass": {
        "type": "HourglassNet",
        "downsample_times": 3,
        "num_stacks": 1,
        "stage_channels": [32, 32, 48, 64],
        "stage_blocks": [1, 1, 1, 1],
        "feat_channel": 32,
    },
    "HRNet": {"type": "HRNet", "extra": _HR},
}
DEFORMABLE: Dict[str, Dict[str, Any]] = {
    "DCN": {"type": "ResNet", "depth": 50, **_HALF},
    "DCN, fallback": {"type": "ResNet", "depth": 50, **_HALF, "dcn": {**DCN, "fallback_on_stride": True}},
    "DCN ResNeXt": {"type": "ResNeXt", "depth": 50, "groups": 32, "base_width": 4, **_HALF},
    "DCN Res2Net": {"type": "Res2Net", "depth": 50, "scales": 4, "base_width": 26, **_HALF},
}


def _mark(value: Tensor) -> List[float]:
    """Enough of a tensor to see another one: its sum with signs that alternate, the sum of its sizes, its length."""
    flat = value.detach().double().flatten()
    return [float(flat[::2].sum() - flat[1::2].sum()), float(flat.abs().sum()), flat.numel()]


def backbones() -> Dict[str, Any]:
    """{network: {what: its mark, or a list of flags}}."""
    from mmdet.models import build_backbone

    logging.disable(logging.CRITICAL)  # init_weights logs every parameter
    found: Dict[str, Any] = {}
    for name, cfg in {**PLAIN, **DEFORMABLE}.items():
        torch.manual_seed(0)
        model = build_backbone({**cfg, **({"dcn": dict(cfg["dcn"])} if "dcn" in cfg else {})})
        model.init_weights()
        marks: Dict[str, Any] = {f"weight {key}": _mark(value) for key, value in model.state_dict().items()}
        model.train()
        marks["training"] = [part.training for part in model.modules()]
        marks["trainable"] = [p.requires_grad for p in model.parameters()]
        if name in PLAIN:
            torch.manual_seed(1)
            maps = model(torch.rand(2, 3, 64, 64))
            flat = [m for entry in maps for m in (entry if isinstance(entry, (list, tuple)) else [entry])]
            torch.stack([m.double().pow(2).mean() for m in flat if m.requires_grad]).sum().backward()
            marks.update({f"map {index}": _mark(m) for index, m in enumerate(flat)})
            marks.update({f"grad {key}": _mark(p.grad) for key, p in model.named_parameters() if p.grad is not None})
        found[name] = marks
    return found


if __name__ == "__main__":
    main({"backbones": backbones})
