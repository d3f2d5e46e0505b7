"""mmcv's own functions and layers of both operations where tpvformer.compat.mmcv_ext stands in for what is compiled."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import torch
from report import main, outcome
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import sampled  # noqa: E402 - the suite's own helper, found by the line above

SHAPES = ((7, 9), (4, 5), (1, 1))


def results(run: Callable[..., Tensor], given: Sequence[Tensor], kind: torch.dtype = torch.float32) -> List[Tensor]:
    """The output and the gradient of every tensor."""
    leaves = [tensor.detach().to(kind).requires_grad_() for tensor in given]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]


def gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


def attention() -> Dict[str, float]:
    from mmcv.ops import MultiScaleDeformableAttention
    from mmcv.ops import multi_scale_deform_attn as module

    from tpvformer import ops

    theirs = module.multi_scale_deformable_attn_pytorch
    import tpvformer.compat.mmcv_ext  # noqa: F401 - after mmcv: what was imported of it is changed

    assert module.multi_scale_deformable_attn_pytorch is not theirs
    torch.manual_seed(0)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 63, 83])
    given = torch.randn(2, 84, 4, 8), torch.rand(2, 11, 4, 3, 5, 2) * 1.2 - 0.1, torch.rand(2, 11, 4, 3, 5)
    wanted = results(lambda v, x, w: sampled.attention(v, x, w, SHAPES), given, torch.float64)
    apply = module.MultiScaleDeformableAttnFunction.apply
    ways = {
        "apply": lambda v, x, w: apply(v, shapes, starts, x, w, 64),
        "plain": lambda v, x, w: module.multi_scale_deformable_attn_pytorch(v, shapes, x, w),
        "ours": lambda v, x, w: ops.ms_deform_attn(v, SHAPES, x, w),
    }
    found = {name: gap(results(way, given), wanted) for name, way in ways.items()}
    layer = MultiScaleDeformableAttention(32, 4, 3, dropout=0.0, batch_first=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    more = {"reference_points": torch.rand(2, 11, 3, 2), "spatial_shapes": shapes, "level_start_index": starts}

    def run(query: Tensor, value: Tensor) -> Tensor:
        return layer(query, value=value, **more)

    inputs = torch.randn(2, 11, 32), torch.randn(2, 84, 32)
    mine = results(run, inputs)
    module.multi_scale_deformable_attn_pytorch = theirs
    found["layer"] = gap(mine, results(run, inputs))
    module.multi_scale_deformable_attn_pytorch = ways["plain"]
    return found


def convolution() -> Dict[str, float]:
    from mmcv.ops import ModulatedDeformConv2d, modulated_deform_conv2d
    from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction

    found: Dict[str, float] = {}
    for name, (stride, groups, deform) in {"plain": (1, 1, 1), "strided": (2, 1, 1), "grouped": (1, 2, 4)}.items():
        torch.manual_seed(0)
        side = (11 - 1) // stride + 1
        given = [
            torch.randn(2, 16, 11, 11),
            torch.randn(2, 18 * deform, side, side),
            torch.rand(2, 9 * deform, side, side),
            torch.randn(8, 16 // groups, 3, 3),
            torch.randn(8),
        ]
        sizes = ((stride, stride), (1, 1), (1, 1))
        wanted = results(
            lambda x, o, m, w, b, sizes=sizes, groups=groups, deform=deform: (
                sampled.convolution(x, o, m, w, sizes, groups, deform) + b[:, None, None]
            ),
            given,
            torch.float64,
        )
        layer = ModulatedDeformConv2d(16, 8, 3, stride, 1, 1, groups, deform)
        numbers = (stride, 1, 1, groups, deform)

        def by_layer(x: Tensor, o: Tensor, m: Tensor, w: Tensor, b: Tensor, layer: nn.Module = layer) -> Tensor:
            return torch.func.functional_call(layer, {"weight": w, "bias": b}, (x, o, m))

        for way, run in (
            ("function", lambda *g, n=numbers: modulated_deform_conv2d(*g, *n)),
            ("apply", lambda *g, n=numbers: ModulatedDeformConv2dFunction.apply(*g, *n)),
            ("layer", by_layer),
        ):
            found[f"{name} by {way}"] = gap(results(run, given), wanted)
        last = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in given]
        found[f"{name}, channels last"] = gap(
            results(lambda *g, n=numbers: modulated_deform_conv2d(*g, *n), last), wanted
        )
    return found


def extension() -> Dict[str, Any]:
    """The largest relative differences; what stands in mmcv's report of the environment; another operation."""
    warnings.simplefilter("ignore")
    result: Dict[str, Any] = {"attention": attention(), "convolution": convolution()}
    from mmcv.ops import get_compiler_version, nms
    from mmcv.utils.ext_loader import check_ops_exist

    result["other"] = outcome(lambda: nms(torch.rand(3, 4), torch.rand(3), 0.5))
    return {**result, "compiler": get_compiler_version(), "exists": check_ops_exist()}


if __name__ == "__main__":
    main({"extension": extension})
