"""Define a Caffe-style bottleneck ResNet with modulated deformable 3x3 convolutions.

He et al. 2016; DCNv2, arXiv:1811.11168. "Caffe style": the stride of a stage is in its first 1x1 convolution, so every
3x3 has stride 1.

Legend: images (M,3,H,W) with M = batch * cameras -> stages 2, 3, 4 at strides 8, 16, 32.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import BackboneConfig
from tpvformer.model.activation_checkpoint import checkpoint_all, checkpoint_before_matmul
from tpvformer.model.together import Weights, prepare
from tpvformer.ops import (
    add_relu,
    bias_relu,
    fuses_bias,
    max_pool,
    modulated_deform_conv2d,
    raw_deform_conv2d,
    takes_raw,
)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Normalise with the running statistics only; the affine parameters are frozen."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self._constants: Optional[Tuple[Tensor, Tensor]] = None  # during a forward pass; see _fold_together
        for p in self.parameters():
            p.requires_grad_(False)
        self.train(False)

    def constants(self) -> Tuple[Tensor, Tensor]:
        """Return scale and shift (C,) float32 with norm(x) = x * scale + shift."""
        return self._constants or _scale_and_shift(self)

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        super().train(False)
        return self


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.BatchNorm2d, recompute: bool = False) -> Tensor:
    """Return norm(conv(x)) for a convolution without bias.

    A norm with constant statistics is folded into the convolution: weights w * s and bias b - mean * s with s = gamma /
    sqrt(var + eps). This saves a pass over the activations and their copy for the backward pass. With ``recompute`` the
    backward pass folds again.
    """
    if norm.training:
        y: Tensor = norm(conv(x))
        return y
    # not for deformable convolutions, whose backward pass would repeat all of the forward pass
    return checkpoint_before_matmul(recompute and isinstance(conv, nn.Conv2d), _folded, x, conv, norm)


def conv_norm_relu(
    x: Tensor, conv: nn.Module, norm: nn.BatchNorm2d, recompute: bool = False, shortcut: Optional[Tensor] = None
) -> Tensor:
    """Return relu(norm(conv(x)) + shortcut).

    Where there is a kernel for it, one pass adds the folded norm's bias and the shortcut and applies the ReLU.
    """
    if isinstance(norm, FrozenBatchNorm2d) and not norm.weight.requires_grad and not recompute and fuses_bias(x):
        assert isinstance(conv, (nn.Conv2d, ModulatedDeformConv3x3))
        scale, shift = norm.constants()
        weight = _ScaledWeight.apply(conv.weight, scale.view(-1, 1, 1, 1), _product_type(x))
        if isinstance(conv, nn.Conv2d):
            return bias_relu(F.conv2d(x, weight, None, conv.stride, conv.padding), shift, shortcut)
        return bias_relu(conv(x, weight), shift, shortcut)
    y = conv_norm(x, conv, norm, recompute)
    if shortcut is not None:
        return add_relu(y, shortcut)
    # the deformable convolution returns a view, for whose change in place autograd would copy gradients twice
    return F.relu(y, inplace=isinstance(conv, nn.Conv2d))


def _product_type(x: Tensor) -> torch.dtype:
    """Return the type in which convolutions of x compute. Kernels that need it exist from PyTorch 2.4 on only."""
    device = x.device.type
    newer = hasattr(torch, "get_autocast_dtype")
    return torch.get_autocast_dtype(device) if newer and torch.is_autocast_enabled(device) else x.dtype


class _ScaledWeight(torch.autograd.Function):
    """weight (O,...) float32 times scale (O,1,...), rounded to ``kind``: one kernel each way instead of two."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(scale)
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=kind))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return grads[0] * scale, None, None


def _scale_and_shift(norm: nn.BatchNorm2d) -> Tuple[Tensor, Tensor]:
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _fold_together(norms: List[FrozenBatchNorm2d]) -> None:
    """Set the constants of all norms by a few operations on lists; each alone would take five small kernels."""
    if not norms or not hasattr(torch, "_foreach_rsqrt"):
        return
    lists: Any = ([n.weight, n.bias, n.running_mean, n.running_var] for n in norms)
    weights, biases, means, variances = (list(tensors) for tensors in zip(*lists))
    scales = torch._foreach_mul(weights, torch._foreach_rsqrt(torch._foreach_add(variances, norms[0].eps)))
    shifts = torch._foreach_sub(biases, torch._foreach_mul(means, scales))
    for norm, scale, shift in zip(norms, scales, shifts):
        norm._constants = (scale, shift)


def _folded(x: Tensor, conv: nn.Module, norm: nn.BatchNorm2d) -> Tensor:
    assert isinstance(conv, (nn.Conv2d, ModulatedDeformConv3x3))
    scale, bias = _scale_and_shift(norm)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    if isinstance(conv, nn.Conv2d):
        return F.conv2d(x, weight, bias, conv.stride, conv.padding)
    y: Tensor = conv(x, weight, bias)
    return y


class ModulatedDeformConv3x3(nn.Module):
    """Apply a 3x3 DCNv2 that predicts its 18 offsets (dy,dx for each tap) and 9 mask logits with ``conv_offset``.

    If kernels take them as they are, ``conv_offset`` predicts 32 channels, the last 5 without use: rows of 27 numbers
    are not aligned. ``keep``: the backward pass gets the sampled columns instead of sampling again.
    """

    PREDICTED = 32

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.keep = False
        self._prepared: Optional[Weights] = None  # during a forward pass; see _fold_together
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.conv_offset = nn.Conv2d(in_channels, 27, 3, padding=1)
        bound = 1 / math.sqrt(in_channels * 9)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        """Return (M,O,H,W); ``weight`` and ``bias`` replace the layer's own, with the following norm folded in."""
        weight = self.weight if weight is None else weight
        if takes_raw(x):
            own = self._prepared or prepare([self.parts()], _product_type(x), self.PREDICTED)[0]
            raw = F.conv2d(x, own["weight"], own["bias"], padding=1)
            y = raw_deform_conv2d(x, raw, weight.to(raw.dtype), 1, self.keep)
            return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
        offset, mask = self.conv_offset(x).float().split([18, 9], dim=1)  # geometry stays fp32 under autocast
        bias = None if bias is None else bias.to(x.dtype)
        return modulated_deform_conv2d(x, offset, mask.sigmoid(), weight.to(x.dtype), bias, padding=1)

    def parts(self) -> Dict[str, List[Tensor]]:
        """Return the parameters of ``conv_offset`` for ``together.prepare``."""
        assert self.conv_offset.bias is not None
        return {"weight": [self.conv_offset.weight], "bias": [self.conv_offset.bias]}

    def column_bytes(self, pixels: int, kind: torch.dtype) -> int:
        """Return the memory of the columns that ``keep`` keeps, for inputs of so many pixels in all."""
        return pixels * self.weight[0].numel() * kind.itemsize


class Bottleneck(nn.Module):
    """Apply 1x1 (strided), 3x3 and 1x1 convolutions with a shortcut; width w inside, 4w out."""

    def __init__(self, in_channels: int, width: int, stride: int, cfg: BackboneConfig, deformable: bool) -> None:
        super().__init__()
        self.recompute = "none"  # see TPVFormer.recompute
        norm = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}[cfg.norm]
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn1 = norm(width)
        self.conv2: nn.Module = (
            ModulatedDeformConv3x3(width, width) if deformable else nn.Conv2d(width, width, 3, padding=1, bias=False)
        )
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        nn.init.constant_(self.bn3.weight, cfg.bn3_init)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        # a norm in training mode would update its statistics twice
        return checkpoint_all(self.recompute == "blocks" and not self.bn1.training, self._block, x)

    def _block(self, x: Tensor) -> Tensor:
        shortcut, light = x, self.recompute == "cheap"
        if self.downsample is not None:
            conv, norm = self.downsample
            assert isinstance(norm, nn.BatchNorm2d)
            shortcut = conv_norm(x, conv, norm, light)
        x = conv_norm_relu(x, self.conv1, self.bn1, light)
        x = conv_norm_relu(x, self.conv2, self.bn2, light)
        return conv_norm_relu(x, self.conv3, self.bn3, light, shortcut)


class ResNet(nn.Module):
    """Map images (M,3,H,W) to three maps with ``cfg.out_channels`` channels at strides 8, 16, 32."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.column_budget = 0  # bytes that the columns of deformable convolutions may take until the backward pass
        norm = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}[cfg.norm]
        self.conv1 = nn.Conv2d(3, cfg.base_width, 7, 2, 3, bias=False)
        self.bn1 = norm(cfg.base_width)
        channels = cfg.base_width
        for stage, blocks in enumerate(cfg.blocks, start=1):
            width = cfg.base_width * 2 ** (stage - 1)
            layers: List[nn.Module] = []
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layers.append(Bottleneck(channels, width, stride, cfg, deformable=stage in cfg.dcn_stages))
                channels = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self._frozen_modules():
            for p in module.parameters():
                p.requires_grad_(False)
        self.train(self.training)

    def _frozen_modules(self) -> List[nn.Module]:
        """Return the stem and the first ``frozen_stages`` stages; nothing if frozen_stages is 0."""
        if self.cfg.frozen_stages < 1:
            return []
        return [self.conv1, self.bn1] + [getattr(self, f"layer{s}") for s in range(1, self.cfg.frozen_stages + 1)]

    def train(self, mode: bool = True) -> "ResNet":
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()  # batch norms of a frozen stage must not update their statistics
        return self

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        if not torch.compiler.is_compiling():  # eager code ran with the same shapes before
            self._choose_columns(images)
        if not fuses_bias(images):
            return self._maps(images)
        modules = list(self.modules())
        norms = [m for m in modules if isinstance(m, FrozenBatchNorm2d) and not m.weight.requires_grad]
        deformable = [m for m in modules if isinstance(m, ModulatedDeformConv3x3)]
        try:
            _fold_together(norms)
            if deformable:
                parts = [layer.parts() for layer in deformable]
                prepared = prepare(parts, _product_type(images), ModulatedDeformConv3x3.PREDICTED)
                for layer, weights in zip(deformable, prepared):
                    layer._prepared = weights
            return self._maps(images)
        finally:
            for norm in norms:
                norm._constants = None
            for layer in deformable:
                layer._prepared = None

    def _choose_columns(self, images: Tensor) -> None:
        """Let deformable convolutions keep their columns if all of them fit into ``column_budget``."""
        needed, layers = 0, []
        for number in self.cfg.dcn_stages:
            stride = 2 ** (number + 1)
            pixels = len(images) * -(-images.shape[2] // stride) * -(-images.shape[3] // stride)
            for layer in getattr(self, f"layer{number}").modules():
                if isinstance(layer, ModulatedDeformConv3x3):
                    layers.append(layer)
                    needed += layer.column_bytes(pixels, _product_type(images))
        for layer in layers:
            layer.keep = needed <= self.column_budget

    def _maps(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        x = conv_norm_relu(images, self.conv1, self.bn1)
        x = self.layer1(max_pool(x))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)
