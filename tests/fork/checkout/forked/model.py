"""A small model in mmcv 1.x's idiom: a registry, modules with init_cfg, DCNv2 in the backbone, deformable attention.

FORK_PLAIN computes both operations by grid_sample in place of mmcv's: what the others are compared with.
"""

import os

import torch
from mmcv.cnn import build_conv_layer
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmcv.runner import BaseModule, auto_fp16
from mmcv.utils import Registry
from torch import nn

SEGMENTORS = Registry("segmentor")
BACKBONES = Registry("backbone")
PLAIN = bool(os.environ.get("FORK_PLAIN"))
if PLAIN:
    import sampled


class PlainDCN(nn.Module):
    """A DCNv2 with the parameters of mmcv's."""

    def __init__(self, layer, stride):
        super().__init__()
        self.weight, self.bias, self.conv_offset = layer.weight, layer.bias, layer.conv_offset
        self.stride = stride

    def forward(self, x):
        predicted = self.conv_offset(x)
        third = predicted.shape[1] // 3
        offset, mask = predicted[:, : 2 * third], predicted[:, 2 * third :].sigmoid()
        sizes = ((self.stride, self.stride), (1, 1), (1, 1))
        out = sampled.convolution(x, offset, mask, self.weight, sizes, 1, 1)
        return out if self.bias is None else out + self.bias[:, None, None]


def dcn(c, o, stride):
    layer = build_conv_layer(dict(type="DCNv2", deform_groups=1), c, o, kernel_size=3, stride=stride, padding=1)
    return PlainDCN(layer, stride) if PLAIN else layer


@BACKBONES.register_module()
class Small(BaseModule):
    """Two maps, (N,16,16,24) and (N,16,8,12); channels-last inside, as people do it for speed."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.one, self.two = dcn(16, 16, 1), dcn(16, 16, 2)

    def init_weights(self):
        for layer in (self.one, self.two):
            nn.init.normal_(layer.conv_offset.weight, std=0.05)

    def forward(self, x):
        x = self.stem(x).relu().contiguous(memory_format=torch.channels_last)
        first = self.one(x).relu()
        return [first, self.two(first).relu()]


@BACKBONES.register_module()
class DetResNet(BaseModule):
    """A narrow ResNet-50 of mmdet with DCNv2 in its last two stages: two maps of 16 channels."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        from mmdet.models import build_backbone

        self.net = build_backbone(
            dict(
                type="ResNet",
                depth=50,
                base_channels=8,
                out_indices=(1, 2),
                frozen_stages=1,
                norm_cfg=dict(type="BN", requires_grad=False),
                norm_eval=True,
                zero_init_residual=False,
                dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
                stage_with_dcn=(False, False, True, True),
            )
        )
        self.narrow = nn.ModuleList([nn.Conv2d(c, 16, 1) for c in (64, 128)])

    def init_weights(self):
        self.net.init_weights()
        for module in self.net.modules():
            if hasattr(module, "conv_offset"):
                nn.init.normal_(module.conv_offset.weight, std=0.05)

    def forward(self, x):
        if PLAIN:  # after mmcv has drawn all weights
            for name, module in list(self.net.named_modules()):
                if hasattr(module, "conv_offset") and not isinstance(module, PlainDCN):
                    parent, _, last = name.rpartition(".")
                    setattr(self.net.get_submodule(parent), last, PlainDCN(module, module.stride[0]))
        return [narrow(x) for narrow, x in zip(self.narrow, self.net(x))]


class Attention(BaseModule):
    """Queries (B,Q,16) read the maps; ``on_card`` as a project that is run on CUDA alone, else as one that looks."""

    def __init__(self, on_card, init_cfg=None):
        super().__init__(init_cfg)
        self.on_card = on_card
        self.offsets, self.weights = nn.Linear(16, 2 * 2 * 4 * 2), nn.Linear(16, 2 * 2 * 4)
        self.value, self.output = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, query, tokens, shapes, starts):
        b, q, _ = query.shape
        value = self.value(tokens).view(b, -1, 2, 8)
        offsets = self.offsets(query).view(b, q, 2, 2, 4, 2)
        weights = self.weights(query).view(b, q, 2, 8).softmax(-1).view(b, q, 2, 2, 4)
        places = torch.linspace(0.1, 0.9, q, device=query.device)[None, :, None, None, None, None] + offsets * 0.1
        if PLAIN:
            read = sampled.attention(value, places, weights, [tuple(pair) for pair in shapes.tolist()])
        elif self.on_card or value.is_cuda:
            read = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)
        else:
            read = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
        return query + self.output(read)


@SEGMENTORS.register_module()
class ForkedFormer(BaseModule):
    def __init__(self, backbone, classes, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = BACKBONES.build(backbone)
        self.queries = nn.Embedding(12, 16)
        self.layers = nn.ModuleList([Attention(True), Attention(False)])
        self.head = nn.Linear(16, classes)
        self.fp16_enabled = False

    @auto_fp16(apply_to=("images",))
    def forward(self, images):
        """(B,N,3,h,w) -> logits (B,classes,Q)."""
        b, n = images.shape[:2]
        maps = [m.view(b, n, *m.shape[1:]).mean(1) for m in self.backbone(images.flatten(0, 1))]
        shapes = torch.tensor([m.shape[2:] for m in maps], device=images.device)
        starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        query = self.queries.weight[None].expand(b, -1, -1)
        for layer in self.layers:
            query = layer(query, tokens, shapes, starts)
        return self.head(query).transpose(1, 2)
