"""Drop-in for mmcv 1.7.2's ``mmcv/ops/modulated_deform_conv.py``: DCNv2 with the kernels of tpvformer.

Where tpvformer is installed, its operation is used on every device: a fused kernel on an NPU, Triton's on CUDA, Numba's
on a CPU, and plain PyTorch where those are not available. Where tpvformer is not installed, or where a stride, padding
or dilation differs between height and width, mmcv's compiled operation is used, on an NPU torch_npu's.

Shapes: x (N,C,H,W); offset (N,2*G*k*k,ho,wo), (dy,dx) a tap; mask (N,G*k*k,ho,wo) in [0,1]; weight (O,C/groups,k,k).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmcv.cnn import CONV_LAYERS
from mmcv.utils import IS_MLU_AVAILABLE, deprecated_api_warning, ext_loader, print_log
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair, _single

Size = Union[int, Tuple[int, int]]


@functools.lru_cache(None)
def _tpvformer_ops() -> Any:
    """Return the module ``tpvformer.ops``; None where tpvformer is not installed."""
    if importlib.util.find_spec("tpvformer") is None:
        return None
    from tpvformer import ops

    return ops


@functools.lru_cache(None)
def _compiled() -> Any:
    """Return mmcv's extension. Raises ModuleNotFoundError or AssertionError where mmcv was built without it."""
    return ext_loader.load_ext("_ext", ["modulated_deform_conv_forward", "modulated_deform_conv_backward"])


def _served(stride: Size, padding: Size, dilation: Size) -> bool:
    """Tell whether tpvformer's operation, which has one number for height and width, supports these sizes."""
    square = all(len(set(_pair(size))) == 1 for size in (stride, padding, dilation))
    return square and _tpvformer_ops() is not None


def _ours(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Optional[Tensor], sizes: Sequence[Any]
) -> Tensor:
    """Call tpvformer's operation; like mmcv's it computes in the type of ``offset``, which autocast may have chosen."""
    stride, padding, dilation = (_pair(size)[0] for size in sizes[:3])
    x, mask, weight = (tensor.type_as(offset) for tensor in (x, mask, weight))
    bias = None if bias is None else bias.type_as(offset)
    return _tpvformer_ops().modulated_deform_conv2d(
        x, offset, mask, weight, bias, stride, padding, dilation, sizes[3], sizes[4]
    )


class ModulatedDeformConv2dFunction(Function):
    """The operation as one autograd node, for ONNX export and for the backward pass of mmcv's compiled operation.

    ``apply(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)``.
    """

    @staticmethod
    def symbolic(
        g: Any,
        input: Any,
        offset: Any,
        mask: Any,
        weight: Any,
        bias: Any,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
        deform_groups: int,
    ) -> Any:
        """Export mmcv's own ONNX operator, for runtimes that have it."""
        given = [value for value in (input, offset, mask, weight, bias) if value is not None]
        sizes = {"stride_i": stride, "padding_i": padding, "dilation_i": dilation}
        return g.op("mmcv::MMCVModulatedDeformConv2d", *given, **sizes, groups_i=groups, deform_groups_i=deform_groups)

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        offset: Tensor,
        mask: Tensor,
        weight: Tensor,
        bias: Optional[Tensor] = None,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
    ) -> Tensor:
        """Return (N,O,ho,wo) in the type of ``offset``. Raises ValueError for an input without batch or too small."""
        if input is not None and input.dim() != 4:
            raise ValueError(f"x has {input.dim()} dimensions; expected 4, (batch, channels, height, width)")
        ctx.stride, ctx.padding, ctx.dilation = _pair(stride), _pair(padding), _pair(dilation)
        ctx.groups, ctx.deform_groups, ctx.with_bias = groups, deform_groups, bias is not None
        ctx.device = input.device.type
        ctx.types = [tensor.dtype for tensor in (input, offset, mask, weight)] + [bias.dtype if ctx.with_bias else None]
        size = ModulatedDeformConv2dFunction._output_size(ctx, input, weight)
        ctx.ours = _served(stride, padding, dilation)
        if ctx.ours:
            ctx.save_for_backward(input, offset, mask, weight, *([bias] if ctx.with_bias else []))
            return _ours(input, offset, mask, weight, bias, (stride, padding, dilation, groups, deform_groups))
        input, weight = input.type_as(offset), weight.type_as(offset)
        bias = bias.type_as(offset) if ctx.with_bias else input.new_empty(0)
        mask = mask.type_as(offset)
        if ctx.device == "npu":
            return ModulatedDeformConv2dFunction._npu_forward(ctx, input, offset, mask, weight, bias)
        ctx.save_for_backward(input, offset, mask, weight, bias)
        out = input.new_empty(size)
        scratch = input.new_empty(0), input.new_empty(0)
        _compiled().modulated_deform_conv_forward(
            input, weight, bias, scratch[0], offset, mask, out, scratch[1], **_named(ctx, weight)
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        """Return the gradients of x, offset, mask, weight and bias, and None for the five numbers."""
        if ctx.ours:
            return _recomputed(ctx, grad_output)
        if ctx.device == "npu":
            return ModulatedDeformConv2dFunction._npu_backward(ctx, grad_output)
        input, offset, mask, weight, bias = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (input, weight, bias, offset, mask)]
        scratch = input.new_empty(0), input.new_empty(0)
        _compiled().modulated_deform_conv_backward(
            *(input, weight, bias, scratch[0], offset, mask, scratch[1]),
            *grads,
            grad_output.contiguous(),
            **_named(ctx, weight),
        )
        by_input, by_weight, by_bias, by_offset, by_mask = grads
        found = [by_input, by_offset, by_mask, by_weight, by_bias if ctx.with_bias else None]
        return (*_typed(ctx, found), None, None, None, None, None)

    @staticmethod
    def _output_size(ctx: Any, input: Tensor, weight: Tensor) -> Tuple[int, ...]:
        size = [input.shape[0], weight.shape[0]]
        for axis in (0, 1):
            reach = ctx.dilation[axis] * (weight.shape[2 + axis] - 1) + 1
            size.append((input.shape[2 + axis] + 2 * ctx.padding[axis] - reach) // ctx.stride[axis] + 1)
        if min(size) < 1:
            raise ValueError(f"the convolution's result would have the shape {tuple(size)}; its input is too small")
        return tuple(size)

    # ---- torch_npu's own operation, which mmcv's DeformConv2d uses through the next two

    @staticmethod
    def _calculate_sort_index(kernel_h: int, kernel_w: int, deformable_group: int) -> Tuple[Tensor, Tensor]:
        """Return int32 channel orders on the NPU: from (dy,dx) pairs to torch_npu's "all dx, then all dy", and back."""
        taps = kernel_h * kernel_w * deformable_group
        pairs = torch.arange(2 * taps, dtype=torch.int32).view(taps, 2)
        to_planes = pairs.flip(1).t().reshape(-1)
        to_pairs = torch.argsort(to_planes).to(torch.int32)
        return to_planes.npu(), to_pairs.npu()

    @staticmethod
    def _npu_forward(
        ctx: Any, input_tensor: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Optional[Tensor]
    ) -> Tensor:
        """``ctx`` has stride, padding, dilation (pairs), groups and deform_groups; receives what backward reads."""
        to_planes, to_pairs = ModulatedDeformConv2dFunction._calculate_sort_index(
            weight.shape[2], weight.shape[3], ctx.deform_groups
        )
        planes = torch.cat([offset.index_select(1, to_planes), mask], dim=1)
        bias = None if bias is None or bias.numel() == 0 else bias  # DeformConv2d, which has none, gives an empty one
        out, sampled = torch.npu_deformable_conv2d(input_tensor, weight, planes, bias, **_npu_named(ctx, weight))
        ctx.save_for_backward(input_tensor, weight, sampled, planes, to_pairs)
        return out

    @staticmethod
    def _npu_backward(ctx: Any, grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        input_tensor, weight, sampled, planes, to_pairs = ctx.saved_tensors
        by_input, by_weight, by_planes, by_bias = torch.npu_deformable_conv2dbk(
            input_tensor, grad_output, sampled, weight, planes, **_npu_named(ctx, weight)
        )
        split = to_pairs.shape[0]
        by_offset, by_mask = by_planes[:, :split].index_select(1, to_pairs), by_planes[:, split:]
        found = [by_input, by_offset, by_mask, by_weight, by_bias if ctx.with_bias else None]
        return (*_typed(ctx, found), None, None, None, None, None)


def _typed(ctx: Any, grads: Sequence[Optional[Tensor]]) -> List[Optional[Tensor]]:
    """Convert each gradient to the type of its tensor."""
    return [grad if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.types)]


def _named(ctx: Any, weight: Tensor) -> Dict[str, Any]:
    """Return the numbers by the names of mmcv's compiled operation."""
    named = {}
    values = ("kernel", weight.shape[2:]), ("stride", ctx.stride), ("pad", ctx.padding), ("dilation", ctx.dilation)
    for name, (height, width) in values:
        named.update({f"{name}_h": height, f"{name}_w": width})
    return {**named, "group": ctx.groups, "deformable_group": ctx.deform_groups, "with_bias": ctx.with_bias}


def _npu_named(ctx: Any, weight: Tensor) -> Dict[str, Any]:
    """Return the numbers by torch_npu's names; padding is top, bottom, left and right."""
    return {
        "kernel_size": list(weight.shape[2:]),
        "stride": [1, 1, *ctx.stride],
        "padding": [ctx.padding[0], ctx.padding[0], ctx.padding[1], ctx.padding[1]],
        "dilation": [1, 1, *ctx.dilation],
        "groups": ctx.groups,
        "deformable_groups": ctx.deform_groups,
        "modulated": True,
    }


def _recomputed(ctx: Any, grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
    """Return the gradients by running tpvformer's operation again, for direct callers of ``Function.apply``."""
    leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, ctx.needs_input_grad)]
    bias = leaves[4] if ctx.with_bias else None
    sizes = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.deform_groups)
    with torch.enable_grad():
        out = _ours(leaves[0], leaves[1], leaves[2], leaves[3], bias, sizes)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad_output))
    grads = [next(found) if leaf.requires_grad else None for leaf in leaves]
    return (*grads, *[None] * (10 - len(grads)))


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve with taps moved by ``offset`` and scaled by ``mask``; returns (N,O,ho,wo) in the type of ``offset``."""
    if _served(stride, padding, dilation) and input.dim() == 4 and not torch.onnx.is_in_onnx_export():
        return _ours(input, offset, mask, weight, bias, (stride, padding, dilation, groups, deform_groups))
    return ModulatedDeformConv2dFunction.apply(
        input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
    )


class ModulatedDeformConv2d(nn.Module):
    """DCNv2 whose offsets and mask are given. ``forward(x, offset, mask)``."""

    @deprecated_api_warning({"deformable_groups": "deform_groups"}, cls_name="ModulatedDeformConv2d")
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: Union[bool, str] = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups, self.deform_groups = groups, deform_groups
        self.transposed, self.output_padding = False, _single(0)  # ConvModule reads them of every convolution
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw weights uniformly within +-1/sqrt(fan-in) and set the bias to 0."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """See ``modulated_deform_conv2d``."""
        sizes = (self.stride, self.padding, self.dilation, self.groups, self.deform_groups)
        return modulated_deform_conv2d(x, offset, mask, self.weight, self.bias, *sizes)


@CONV_LAYERS.register_module("DCNv2")
class ModulatedDeformConv2dPack(ModulatedDeformConv2d):
    """DCNv2 that predicts its own offsets and mask with ``conv_offset``, an ordinary convolution of the same shape.

    The first two thirds of its channels are offsets, the rest are mask logits. State dicts before version 2 store that
    convolution beside this layer, as ``<layer>_offset``.
    """

    _version = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset = nn.Conv2d(
            self.in_channels, 3 * self.deform_groups * taps, self.kernel_size, self.stride, self.padding, self.dilation
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as the parent class does; offsets start at 0 and the mask at 1/2."""
        super().init_weights()
        if hasattr(self, "conv_offset"):
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,O,ho,wo)."""
        predicted = self.conv_offset(x)
        third = predicted.shape[1] // 3
        offset, mask = predicted.split([2 * third, third], dim=1)
        return super().forward(x, offset, mask.sigmoid())

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, local_metadata: Dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:
            moved = []
            for name in ("weight", "bias"):
                old, new = f"{prefix[:-1]}_offset.{name}", f"{prefix}conv_offset.{name}"
                if new not in state_dict and old in state_dict:
                    state_dict[new] = state_dict.pop(old)
                    moved.append(old)
            if moved:
                print_log(f"{', '.join(moved)} read as part of {prefix[:-1]} (DCNv2 version 2)", logger="root")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)


if IS_MLU_AVAILABLE:
    # plain PyTorch works on that device too
    ModulatedDeformConv2dPack_MLU = ModulatedDeformConv2dPack
