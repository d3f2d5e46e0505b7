import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..cnn import CONV_LAYERS
from ..utils import ext_loader

ext_module = ext_loader.load_ext("_ext", ["modulated_deform_conv_forward", "modulated_deform_conv_backward"])


class ModulatedDeformConv2dFunction(Function):
    @staticmethod
    def forward(ctx, x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
        ctx.with_bias = bias is not None
        bias = bias if ctx.with_bias else x.new_empty(0)
        ctx.named = {
            "kernel_h": weight.size(2),
            "kernel_w": weight.size(3),
            "stride_h": stride,
            "stride_w": stride,
            "pad_h": padding,
            "pad_w": padding,
            "dilation_h": dilation,
            "dilation_w": dilation,
            "group": groups,
            "deformable_group": deform_groups,
            "with_bias": ctx.with_bias,
        }
        ctx.save_for_backward(x, offset, mask, weight, bias)
        out = x.new_empty([x.size(0), weight.size(0), *offset.shape[2:]])
        scratch = x.new_empty(0), x.new_empty(0)
        ext_module.modulated_deform_conv_forward(
            x, weight, bias, scratch[0], offset, mask, out, scratch[1], **ctx.named
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        x, offset, mask, weight, bias = ctx.saved_tensors
        scratch = x.new_empty(0), x.new_empty(0)
        grads = [torch.zeros_like(tensor) for tensor in (x, weight, bias, offset, mask)]
        ext_module.modulated_deform_conv_backward(
            x, weight, bias, scratch[0], offset, mask, scratch[1], *grads, slope.contiguous(), **ctx.named
        )
        by_bias = grads[2] if ctx.with_bias else None
        return (grads[0], grads[3], grads[4], grads[1], by_bias, None, None, None, None, None)


modulated_deform_conv2d = ModulatedDeformConv2dFunction.apply


@CONV_LAYERS.register_module("DCNv2")
class ModulatedDeformConv2dPack(nn.Module):
    def __init__(self, c, o, kernel_size, stride=1, padding=0, dilation=1, groups=1, deform_groups=1, bias=True):
        super().__init__()
        self.sizes = (stride, padding, dilation, groups, deform_groups)
        self.weight = nn.Parameter(torch.empty(o, c // groups, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(o)) if bias else None
        taps = 3 * deform_groups * kernel_size**2
        self.conv_offset = nn.Conv2d(c, taps, kernel_size, stride, padding, dilation)
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def forward(self, x):
        first, second, mask = self.conv_offset(x).chunk(3, dim=1)
        offset = torch.cat((first, second), dim=1)
        return modulated_deform_conv2d(x, offset, mask.sigmoid(), self.weight, self.bias, *self.sizes)
