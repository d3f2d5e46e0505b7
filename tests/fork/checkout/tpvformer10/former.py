"""An edited model in a checkout's package: what it takes and gives is as in the reference, what it does is the tests'.

Voxels read the cameras' first map where lidar2img puts them, and a summary by deformable attention; points read voxels.
"""

import numpy as np
import torch
from forked.model import BACKBONES, Attention
from mmcv.runner import BaseModule, auto_fp16
from mmseg.models import SEGMENTORS
from torch import nn
from torch.nn import functional as F

GAIN = 1.0


@SEGMENTORS.register_module()
class EditedFormer(BaseModule):
    def __init__(
        self, img_backbone, tpv_aggregator, pc_range, use_grid_mask=False, train_cfg=None, test_cfg=None, init_cfg=None
    ):
        super().__init__(init_cfg)
        self.img_backbone = BACKBONES.build(img_backbone)
        self.size = tuple(tpv_aggregator[name] for name in ("tpv_w", "tpv_h", "tpv_z"))
        self.use_grid_mask = use_grid_mask
        low, high = np.array(pc_range, np.float).reshape(2, 3)
        cells = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in self.size), indexing="ij"), -1)
        self.register_buffer("centres", torch.from_numpy(low + cells * (high - low)).float().reshape(-1, 3))
        self.cams_embeds = nn.Parameter(torch.randn(6, 16) * 0.1)
        self.queries = nn.Embedding(12, 16)
        self.layers = nn.ModuleList([Attention(True), Attention(False)])
        self.head = nn.Linear(16, tpv_aggregator["nbr_classes"])
        self.fp16_enabled = False

    def mask(self, images):
        """Drop bands of rows; drawn by numpy, and made on a card as people wrote it."""
        if self.training and self.use_grid_mask and np.random.rand() < 0.7:  # noqa: NPY002
            kept = np.arange(images.shape[-2]) // 8 % 2 == np.random.randint(2)  # noqa: NPY002
            images = images * torch.from_numpy(kept).cuda()[:, None]
        return images

    @auto_fp16(apply_to=("img",))
    def forward(self, points=None, img_metas=None, img=None):
        b, n = img.shape[:2]
        maps = self.img_backbone(self.mask(img).view(b * n, *img.shape[2:]))
        maps = [m.view(b, n, *m.shape[1:]) + self.cams_embeds[:n, :, None, None] for m in maps]
        shapes = torch.tensor([m.shape[-2:] for m in maps], device=img.device)
        starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
        tokens = torch.cat([m.mean(1).flatten(2).transpose(1, 2) for m in maps], 1)
        query = self.queries.weight[None].expand(b, -1, -1)
        for layer in self.layers:
            query = layer(query, tokens, shapes, starts)
        features = self.sample(maps[0], img_metas) + query.mean(1, keepdim=True)
        voxels = GAIN * self.head(features).transpose(1, 2).reshape(b, -1, *self.size)
        if points is None:
            return voxels
        for axis, length in enumerate(self.size):  # in place
            points[..., axis] = points[..., axis] / length * 2 - 1
        places = points.flip(-1)[:, :, None, None]
        return voxels, F.grid_sample(voxels, places, align_corners=False)

    def sample(self, maps, img_metas):
        """(B,N,C,h,w) -> (B,XYZ,C): the mean over the cameras that see a voxel."""
        lidar2img = maps.new_tensor(np.asarray([meta["lidar2img"] for meta in img_metas]))
        height, width, _ = img_metas[0]["img_shape"][0]
        ones = self.centres.new_ones(len(self.centres), 1)
        seen = torch.cat((self.centres, ones), 1) @ lidar2img[:, :, :3].transpose(2, 3)  # (B,N,XYZ,3)
        depth = seen[..., 2:].clamp(min=1e-5)
        places = seen[..., :2] / depth / seen.new_tensor([width, height])
        visible = (seen[..., 2] > 1e-5) & ((places > 0) & (places < 1)).all(-1)
        read = F.grid_sample(maps.flatten(0, 1), places.flatten(0, 1)[:, None] * 2 - 1, align_corners=False)
        read = read[:, :, 0].view(*maps.shape[:3], -1) * visible[:, :, None]
        return (read.sum(1) / visible.sum(1).clamp(min=1)[:, None]).transpose(1, 2)
