"""mmcv's runner and hooks: a deformable ResNet of mmdet, clipping, accumulation, mixed precision, other optimizers."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, Dict, List

import torch
from report import DCN, Student, batches, main, outcome, quiet, train
from torch import nn


def runner() -> Dict[str, Any]:
    """Twenty steps of EpochBasedRunner on ResNet-50 with DCNv2 in stages 3 and 4, gradients clipped."""
    from mmcv.runner.hooks.optimizer import OptimizerHook

    model = Student(depth=50, dcn=dict(DCN), stage_with_dcn=(False, False, True, True))
    before = model.backbone.layer3[1].conv2.conv_offset.weight.detach().clone()
    result = train(model, batches(20), OptimizerHook(grad_clip={"max_norm": 0.5}))
    after = model.backbone.layer3[1].conv2.conv_offset.weight.detach()
    return {
        **result,
        "offsets_moved": bool((before != after).any()),
        "conv": type(model.backbone.layer3[1].conv2).__name__,
    }


def deform() -> Dict[str, Any]:
    """mmcv's DCNv2 and our operation, forward and backward, in every way it can be called."""
    from mmcv.cnn import build_conv_layer
    from mmcv.ops import modulated_deform_conv2d
    from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
    from mmcv.runner.checkpoint import load_state_dict  # PyTorch's own shows a layer nothing but what is its own

    from tpvformer import ops

    torch.manual_seed(0)
    gaps: Dict[str, float] = {}
    cases = {
        "plain": (1, 1, 1, 1, 1),
        "strided": (2, 1, 1, 1, 1),
        "dilated": (1, 2, 2, 1, 1),
        "grouped": (1, 1, 1, 2, 2),
    }
    for name, sizes in cases.items():
        stride, padding, dilation, groups, deform_groups = sizes
        side = (9 + 2 * padding - dilation * 2 - 1) // stride + 1
        tensors = [
            torch.randn(2, 8, 9, 9),
            torch.randn(2, 18 * deform_groups, side, side),
            torch.rand(2, 9 * deform_groups, side, side),
            torch.randn(4, 8 // groups, 3, 3),
            torch.randn(4),
        ]
        results = []
        for call in (ops.modulated_deform_conv2d, modulated_deform_conv2d, ModulatedDeformConv2dFunction.apply):
            leaves = [t.clone().requires_grad_() for t in tensors]
            out = call(*leaves, *sizes)
            results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
        for way, other in zip(("function", "apply"), results[1:]):
            gaps[f"{name} by {way}"] = max(float((a - b).abs().max()) for a, b in zip(results[0], other))
    layer = build_conv_layer({"type": "DCNv2", "deform_groups": 2}, 8, 4, 3, stride=(2, 2), padding=1, bias=True)
    nn.init.normal_(layer.conv_offset.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    offset, mask = layer.conv_offset(x).split([36, 18], 1)
    wanted = ops.modulated_deform_conv2d(x, offset, mask.sigmoid(), layer.weight, layer.bias, 2, 1, 1, 1, 2)
    gaps["layer with bias"] = float((layer(x) - wanted).abs().max())
    old = {f"conv2.{key}": value for key, value in layer.state_dict().items()}
    for entry in ("weight", "bias"):
        old[f"conv2_offset.{entry}"] = old.pop(f"conv2.conv_offset.{entry}")
    fresh = nn.ModuleDict(
        {"conv2": build_conv_layer({"type": "DCNv2", "deform_groups": 2}, 8, 4, 3, stride=2, padding=1)}
    )
    load_state_dict(fresh, old, strict=False, logger=quiet("lane"))
    gaps["file of version 1"] = float((fresh["conv2"](x) - wanted).abs().max())
    too_small = outcome(lambda: layer(torch.zeros(1, 8, 0, 0)))
    return {"gaps": gaps, "too_small": too_small}


class _Fused(torch.optim.SGD):
    """An optimizer that clips by itself and whose gradients must never be dropped, as torch_npu's fused ones."""

    calls: List[Any] = []

    def clip_grad_norm_fused_(self, max_norm: float, norm_type: float = 2) -> torch.Tensor:
        self.calls.append([max_norm, norm_type])
        return nn.utils.clip_grad_norm_(
            [p for group in self.param_groups for p in group["params"]], max_norm, norm_type
        )

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none=False)


class _Runner:
    """As much of a runner as the hooks look at."""

    def __init__(self, model: nn.Module, optimizer: Any, steps: int) -> None:
        self.model, self.optimizer, self.meta, self.max_iters, self._max_iters = model, optimizer, {}, steps, steps
        self.iter, self.logged, self.log_buffer, self.logger = 0, [], self, self
        self.update = lambda values, count: self.logged.append(values["grad_norm"])
        self.warning = lambda text: None
        self.log = lambda level, msg: self.logged.append(msg)

    def run(self, hook: Any, losses: List[Any]) -> "_Runner":
        """The hook after each of the losses, computed when it is due."""
        hook.before_run(self)
        for self.iter, loss in enumerate(losses):
            self.outputs = {"loss": loss(self.model), "num_samples": 1}
            hook.after_train_iter(self)
        return self


def hooks() -> Dict[str, Any]:
    """Weights after a few steps under each hook, with an ordinary and with a fused optimizer."""
    from mmcv.runner.hooks import HOOKS
    from mmcv.runner.hooks import optimizer as module

    data = [b["img"].mean((2, 3)) for b in batches(5)]
    losses = [lambda model, x=x: model(x).pow(2).mean() for x in data]
    clip = {"max_norm": 0.1}
    made = {
        "OptimizerHook": {},
        "GradientCumulativeOptimizerHook": {"cumulative_iters": 2},
        "Fp16OptimizerHook": {"loss_scale": 4.0},
        "GradientCumulativeFp16OptimizerHook": {"cumulative_iters": 2, "loss_scale": "dynamic"},
    }
    result: Dict[str, Any] = {}
    for name, options in made.items():
        for optimizer in (torch.optim.SGD, torch.optim.AdamW, _Fused):
            _Fused.calls = []
            torch.manual_seed(0)
            model = nn.Linear(3, 2)
            hook = HOOKS.build({"type": name, "grad_clip": dict(clip), **options})
            done = _Runner(model, optimizer(model.parameters(), lr=0.1), 5).run(hook, losses)
            result[f"{name} {optimizer.__name__}"] = {
                "weights": [p.detach().flatten().tolist() for p in model.parameters()],
                "norms": done.logged,
                "fused": len(_Fused.calls),
                "kept": all(p.grad is not None for p in model.parameters()),
                "meta": sorted(done.meta),
            }
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    hook = module.OptimizerHook(detect_anomalous_params=True)
    done = _Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), 1).run(
        hook, [lambda m: m["used"](data[0]).sum()]
    )
    result["idle"] = done.logged
    result["names"] = [
        n for n in ("GradScaler", "wrap_fp16_model", "allreduce_grads", "LossScaler") if hasattr(module, n)
    ]
    return result


def without() -> Dict[str, Any]:
    """The same files where tpvformer is not installed: mmcv's compiled operation is asked for."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "tpvformer" else find(name, *rest)  # type: ignore
    deformable = Student(depth=50, dcn=dict(DCN), stage_with_dcn=(False, False, True, True)).eval()
    plain = train(Student(depth=18), batches(2), {"type": "OptimizerHook"})
    error = outcome(lambda: deformable(torch.zeros(1, 3, 32, 32)))
    return {"deformable": error, "plain": plain["loss"], "imported": "tpvformer.ops" in sys.modules}


if __name__ == "__main__":
    main({"runner": runner, "deform": deform, "hooks": hooks, "without": without})
