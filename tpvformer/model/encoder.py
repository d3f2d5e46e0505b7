"""Encode images into planes: learned plane queries attend to the planes and to the images, layer by layer.

Legend: B batch, N cameras, Q = HW + ZH + WZ queries in the order hw, zh, wz, C channels, S image tokens of all levels.
If ``cfg.planes`` is hw alone, Q = HW.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import GridConfig, ModelConfig
from tpvformer.model.activation_checkpoint import checkpoint_all, checkpoint_before_matmul
from tpvformer.model.dropout import Dropout
from tpvformer.model.grid import own_plane_points, pillar_points
from tpvformer.model.history import HWPast
from tpvformer.model.history_attention import LayerPast
from tpvformer.model.image_attention import ImageCrossAttention, join
from tpvformer.model.plane_attention import CrossViewAttention, HWAttention
from tpvformer.model.projection import Projection, project
from tpvformer.model.together import Weights, is_plain, linear_parts, prepare
from tpvformer.ops import LevelShapes, takes_packed

Past = Union[LayerPast, HWPast, None]  # what a layer reads of past frames


class CrossViewPosition(nn.Module):
    """Return the positional encoding (Q,C): [h | w | z] of learned tables, with zeros for the axis across the plane."""

    def __init__(self, grid: GridConfig, dims: Sequence[int]) -> None:
        super().__init__()
        self.grid = grid
        self.h = nn.Parameter(torch.empty(grid.h, dims[0]))
        self.w = nn.Parameter(torch.empty(grid.w, dims[1]))
        self.z = nn.Parameter(torch.empty(grid.z, dims[2]))

    def forward(self) -> Tensor:
        h, w, z = self.h, self.w, self.z
        n_h, n_w, n_z = len(h), len(w), len(z)

        def plane(rows: int, cols: int, parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([p.expand(rows, cols, -1) for p in parts], -1).flatten(0, 1)

        none_h, none_w, none_z = (torch.zeros_like(t[:1, None]) for t in (h, w, z))
        return torch.cat(
            [
                plane(n_h, n_w, [h[:, None], w[None], none_z]),
                plane(n_z, n_h, [h[None], none_w, z[:, None]]),
                plane(n_w, n_z, [none_h, w[:, None], z[None]]),
            ]
        )


class HWPosition(nn.Module):
    """Return the positional encoding (HW,C) of plane hw: [column | row] from learned tables."""

    def __init__(self, grid: GridConfig, dims: Sequence[int]) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.empty(grid.h, dims[0]))
        self.col = nn.Parameter(torch.empty(grid.w, dims[1]))

    def forward(self) -> Tensor:
        rows, cols = len(self.row), len(self.col)
        encoding = [self.col[None].expand(rows, cols, -1), self.row[:, None].expand(rows, cols, -1)]
        return torch.cat(encoding, -1).flatten(0, 1)


class FFN(nn.Module):
    """Add a two-layer perceptron to its input."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = Dropout(dropout)
        self.recompute = False  # the hidden units
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(checkpoint_before_matmul(self.recompute, self._perceptron, x, draws=True))

    def _perceptron(self, x: Tensor) -> Tensor:
        # dropout and ReLU commute; in this order the backward passes of ReLU and linear2 share one stored result
        hidden: Tensor = F.relu(self.dropout(self.linear1(x)), inplace=True)
        return self.linear2(hidden)

    def parts(self) -> Dict[str, List[Tensor]]:
        """Return the parameters to ``together.prepare``."""
        return {**linear_parts("1", self.linear1), **linear_parts("2", self.linear2)}

    def run_in(self, x: Tensor, weights: Weights) -> Tensor:
        """Return the same as ``forward``, with products in the type of ``weights``, those of ``parts``."""
        hidden = F.linear(x.to(weights["1.weight"].dtype), weights["1.weight"], weights["1.bias"])
        hidden = F.relu(self.dropout(hidden), inplace=True)
        return x + self.dropout(F.linear(hidden, weights["2.weight"], weights["2.bias"]))


class EncoderLayer(nn.Module):
    """Apply view attention, image cross-attention ("self_cross" layers) and FFN; post-norm, shared by the planes."""

    def __init__(self, cfg: ModelConfig, kind: str) -> None:
        super().__init__()
        self.plane_attn = {"cross_view": CrossViewAttention, "hw": HWAttention}[cfg.view_attn](cfg)
        self.image_attn = ImageCrossAttention(cfg) if kind == "self_cross" else None
        self.ffn = FFN(cfg.dim, cfg.ffn_dim, cfg.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(cfg.dim) for _ in range(3 if kind == "self_cross" else 2))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        plane_anchors: Tensor,
        tokens: Tensor,
        level_shapes: LevelShapes,
        projections: Sequence[Projection],
        past: Past = None,
    ) -> Tensor:
        out = self.plane_attn(x, position, plane_anchors, *((past,) if isinstance(past, HWPast) else ()))
        if isinstance(past, LayerPast):
            out = out + past.attention.read(x, position, past.frames)
        x = self.norms[0](out)
        if self.image_attn is not None:
            x = self.norms[1](self.image_attn(x, tokens, level_shapes, projections))
        return self.norms[-1](self.ffn(x))

    def parts(self, past: Past = None) -> List[Dict[str, List[Tensor]]]:
        """Return the parameters of the sub-layers, for ``together.prepare``; those of the past come last."""
        assert isinstance(self.plane_attn, CrossViewAttention) and not isinstance(past, HWPast)
        found = [self.plane_attn.parts(), self.ffn.parts()]
        found += [] if self.image_attn is None else [self.image_attn.parts()]
        return found if past is None else [*found, past.attention.parts()]

    def run_packed(
        self,
        x: Tensor,
        position: Tensor,
        plane_anchors: Tensor,
        tokens: Tensor,
        level_shapes: LevelShapes,
        projections: Sequence[Projection],
        weights: Sequence[Weights],
        past: Past = None,
    ) -> Tensor:
        """Return the same as ``forward``, with products in the type of ``weights``; see the sub-layers' functions."""
        assert isinstance(self.plane_attn, CrossViewAttention) and not isinstance(past, HWPast)
        out = self.plane_attn.attend_packed(x, position, plane_anchors, weights[0])
        if past is not None:
            out = out + past.attention.read_packed(x, position, past.frames, weights[-1])
        x = self.norms[0](out)
        if self.image_attn is not None:
            x = self.norms[1](self.image_attn.attend_packed(x, tokens, level_shapes, projections, weights[2]))
        return self.norms[-1](self.ffn.run_in(x, weights[1]))


class TPVEncoder(nn.Module):
    """Encode image features and calibration into plane features (B,Q,C)."""

    pc_range: Tensor
    plane_anchors: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.recompute = False  # whole layers
        grid = cfg.grid
        self.level_embed = nn.Parameter(torch.randn(cfg.num_levels, cfg.dim))
        self.camera_embed = nn.Parameter(torch.randn(cfg.num_cams, cfg.dim))
        position = {"cross_view": CrossViewPosition, "hw": HWPosition}[cfg.view_attn]
        self.position = position(grid, cfg.position_dims)
        self.layers = nn.ModuleList(EncoderLayer(cfg, kind) for kind in cfg.layers)
        self.plane_queries = nn.ParameterDict()  # filled one by one, because a ParameterDict sorts the keys of a dict
        for name, n in zip(cfg.planes, grid.plane_sizes):
            self.plane_queries[name] = nn.Parameter(torch.empty(n, cfg.dim))
        for p in (*self.position.parameters(), *self.plane_queries.values()):
            nn.init.xavier_uniform_(p)
        # Geometry follows from the configuration: it moves with the module but is not in the state dict.
        self.register_buffer("pc_range", torch.tensor(grid.pc_range), persistent=False)
        attention = {"cross_view": CrossViewAttention, "hw": HWAttention}[cfg.view_attn]
        self.register_buffer("plane_anchors", attention.geometry(cfg), persistent=False)
        for plane, name in enumerate(cfg.planes):
            points = pillar_points(grid, plane, cfg.pillar_anchors[plane])
            self.register_buffer(f"pillar_{name}", points, persistent=False)

    def tokens(self, features: Sequence[Tensor], camera_slots: Optional[Tensor] = None) -> Tuple[Tensor, LevelShapes]:
        """Return tokens (B,N,S,C), with camera and level embeddings, of maps (B,N,C,h_l,w_l), and the level shapes.

        camera_slots (B,N): the embedding of each camera; None: the first N in order.
        """
        shapes = tuple((int(f.shape[3]), int(f.shape[4])) for f in features)
        levels: List[Tensor] = []
        embed = self.camera_embed
        camera = (embed[: features[0].shape[1]] if camera_slots is None else embed[camera_slots]).unsqueeze(-2)
        for feature, level in zip(features, self.level_embed):
            levels.append(feature.flatten(3).transpose(2, 3) + camera + level)
        return torch.cat(levels, 2), shapes

    def project(self, lidar2img: Tensor, image_size: Tuple[int, int]) -> List[Projection]:
        """Project the planes' pillars; calibration (B,N,4,4), image size (H,W) in pixels."""
        pillars = (getattr(self, f"pillar_{name}") for name in self.cfg.planes)
        return [project(points, self.pc_range, lidar2img, image_size) for points in pillars]

    def forward(
        self,
        features: Sequence[Tensor],
        lidar2img: Tensor,
        image_size: Tuple[int, int],
        camera_slots: Optional[Tensor] = None,
        rows: Optional[Sequence[Tensor]] = None,
        product_type: Optional[torch.dtype] = None,
        pasts: Optional[Sequence[Past]] = None,
    ) -> Tensor:
        """Return (B,Q,C) float32 of maps (B,N,C,h_l,w_l), calibration (B,N,4,4) and the images' (H,W) in pixels.

        ``pasts``: what each layer reads of past frames (``TPVFormer.pasts``); None: nothing.
        ``product_type`` is the type of values, offsets, logits and products where kernels take it; geometry, sums,
        norms and what is added up from layer to layer stay float32. None: that of the maps.
        """
        tokens, level_shapes = self.tokens(features, camera_slots)
        heads = tokens.unflatten(-1, (self.cfg.image_heads, -1))
        projections = self.project(lidar2img, image_size)
        if rows is not None:  # empty for a plane without a list
            projections = [p._replace(rows=r if r.shape[2] else None) for p, r in zip(projections, rows)]
        first = self.layers[0]
        assert isinstance(first, EncoderLayer)
        keeps = isinstance(first.plane_attn, CrossViewAttention) and not first.plane_attn.recompute
        pasts = [None] * len(self.layers) if pasts is None else pasts
        readers = [past.attention for past in pasts if isinstance(past, LayerPast)]
        packs = keeps and takes_packed(heads) and all(map(is_plain, (self.layers, *readers)))
        if packs:
            projections = join(projections, self.cfg)
        projections = [projection.seen_by(heads) for projection in projections]
        position = self.position()
        x = torch.cat([self.plane_queries[name] for name in self.cfg.planes]).expand(tokens.shape[0], -1, -1)
        common = (position, self.plane_anchors, tokens, level_shapes, projections)
        if not packs:
            for layer, past in zip(self.layers, pasts):
                x = checkpoint_all(self.recompute, layer, x, *common, past)
            return x
        kind = product_type or tokens.dtype
        common = (position, self.plane_anchors, tokens.to(kind), level_shapes, projections)
        layers = [layer for layer in self.layers if isinstance(layer, EncoderLayer)]
        parts = [layer.parts(past) for layer, past in zip(layers, pasts)]
        weights = prepare([part for own in parts for part in own], kind)
        for layer, own, past in zip(layers, parts, pasts):
            x = checkpoint_all(self.recompute, layer.run_packed, x, *common, weights[: len(own)], past)
            del weights[: len(own)]
        return x

    def reference_buffers(self) -> Dict[str, Tensor]:
        """Return the geometry buffers of reference checkpoints, recomputed, by the last part of their names."""
        grid = self.cfg.grid
        buffers: Dict[str, Tensor] = {}
        if self.cfg.view_attn == "hw":
            buffers["tpv_mask_hw"] = torch.zeros(1, grid.h, grid.w)
        for name in self.cfg.planes:
            buffers[f"ref_3d_{name}"] = getattr(self, f"pillar_{name}").transpose(0, 1)[None]
        if self.cfg.view_attn == "hw":
            for plane, name in enumerate(self.cfg.planes):
                buffers[f"ref_2d_{name}"] = own_plane_points(grid, plane)[None, :, None]
        else:
            buffers["cross_view_ref_points"] = self.plane_anchors
        return buffers
