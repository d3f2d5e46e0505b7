import torch
from torch.autograd.function import Function, once_differentiable

from ..utils import ext_loader

ext_module = ext_loader.load_ext("_ext", ["ms_deform_attn_backward", "ms_deform_attn_forward"])


class MultiScaleDeformableAttnFunction(Function):
    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        ctx.step = im2col_step
        out = ext_module.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=im2col_step)
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        given = ctx.saved_tensors
        grads = [torch.zeros_like(given[place]) for place in (0, 3, 4)]
        ext_module.ms_deform_attn_backward(*given, slope.contiguous(), *grads, im2col_step=ctx.step)
        return grads[0], None, None, grads[1], grads[2], None


def multi_scale_deformable_attn_pytorch(value, shapes, locations, weights):
    raise RuntimeError("mmcv's own attention in plain PyTorch, which is slow")
