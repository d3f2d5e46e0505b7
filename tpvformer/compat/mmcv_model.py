"""Conversion of the reference's ``model`` dictionary to our ModelConfig, with the reference's defaults."""

from __future__ import annotations

from typing import Dict, Tuple

from tpvformer.compat.mmcv_node import Node
from tpvformer.config import BackboneConfig, GridConfig, ModelConfig
from tpvformer.config.sections import Layer, ViewAttention

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_ORDERS: Dict[Tuple[str, ...], Layer] = {
    ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"): "self_cross",
    ("self_attn", "norm", "ffn", "norm"): "self",
}
_POSITION_TYPES: Dict[str, ViewAttention] = {
    "CustomPositionalEncoding": "cross_view",
    "LearnedPositionalEncoding": "hw",
}
_GRID = {"tpv_h": "h", "tpv_w": "w", "tpv_z": "z"}
_FIELDS = (
    *("num_classes", "num_cams", "num_levels", "dim", "ffn_dim", "decoder_dim", "image_heads", "plane_heads"),
    "plane_points",
)
_CROSS_VIEW_FIELDS = ("plane_anchors", "plane_init_anchors", "plane_init_mode")
_DROPOUT = 0.1


def read_model(model: Node) -> ModelConfig:
    """Convert ``model`` except its ``use_grid_mask``, which belongs to the data section here."""
    facts = model.facts
    model.expect("type", "TPVFormer")
    backbone = _backbone(model.child("img_backbone"))
    _aggregator(model.child("tpv_aggregator"))
    view_attn, layers = _head(model.child("tpv_head"))
    _neck(model.child("img_neck"), backbone)
    return ModelConfig(
        grid=GridConfig(
            *(facts.whole(axis) for axis in ("w", "h", "z", "scale_w", "scale_h", "scale_z")),
            pc_range=tuple(float(edge) for edge in facts.list("pc_range", 6)),
        ),
        backbone=backbone,
        planes=("hw", "zh", "wz"),
        view_attn=view_attn,
        layers=layers,
        dropout=_DROPOUT,
        image_head=False,
        detection=None,
        history=None,
        position_dims=facts.list("position_dims", 3 if view_attn == "cross_view" else 2),
        pillar_anchors=facts.list("pillar_anchors", 3),
        image_points=facts.list("image_points", 3),
        **{name: facts.whole(name) for name in _FIELDS + (_CROSS_VIEW_FIELDS if view_attn == "cross_view" else ())},
    )


def _backbone(node: Node) -> BackboneConfig:
    node.expect("type", "ResNet")
    depth = node.take("depth")
    if depth not in _BLOCKS:
        node.refuse("depth", depth, f"one of {sorted(_BLOCKS)}")
    node.expect("num_stages", 4)
    node.expect("out_indices", (1, 2, 3))
    node.expect("style", "caffe")
    frozen = node.number("frozen_stages", -1)
    if frozen not in (-1, 1, 2, 3, 4):
        node.refuse("frozen_stages", frozen, "-1 (nothing frozen) or 1 to 4 (the stem and that many stages)")
    dcn = node.child("dcn")
    dcn.expect("type", "DCNv2")
    dcn.expect("deform_groups", 1)
    dcn.expect("fallback_on_stride", False)
    dcn.done()
    norm = node.child("norm_cfg")
    norm.expect("type", "BN2d", "BN")
    learns = norm.take("requires_grad", True)
    norm.done()
    fixed = node.take("norm_eval", False)
    if fixed == learns:
        node.refuse("norm_eval", fixed, "frozen statistics together with frozen scales, or neither")
    stages = tuple(index for index, on in enumerate(node.take("stage_with_dcn"), start=1) if on)
    node.done()
    return BackboneConfig(
        blocks=_BLOCKS[depth], dcn_stages=stages, frozen_stages=max(frozen, 0), norm="batch" if learns else "frozen"
    )


def _neck(node: Node, backbone: BackboneConfig) -> None:
    node.expect("type", "FPN")
    node.expect("in_channels", backbone.out_channels)
    node.note(out_channels="dim", num_outs="num_levels")
    node.expect("start_level", 0)
    node.expect("add_extra_convs", "on_output")
    node.expect("relu_before_extra_convs", True, False)  # without effect: there is one extra level
    node.done()


def _aggregator(node: Node) -> None:
    node.expect("type", "TPVAggregator")
    node.note(**_GRID, nbr_classes="num_classes", in_dims="dim", hidden_dims="decoder_dim", out_dims="dim")
    node.note(1, scale_h="scale_h", scale_w="scale_w", scale_z="scale_z")
    node.done()


def _head(node: Node) -> Tuple[ViewAttention, Tuple[Layer, ...]]:
    """(view_attn, layers)."""
    node.expect("type", "TPVFormerHead")
    node.note(**_GRID, pc_range="pc_range", embed_dims="dim")
    node.note(4, num_feature_levels="num_levels")
    node.note(6, num_cams="num_cams")
    view_attn = _position(node.child("positional_encoding"))
    layers = _encoder(node.child("encoder"), view_attn)
    node.done()
    return view_attn, layers


def _position(node: Node) -> ViewAttention:
    kind = node.take("type")
    if kind not in _POSITION_TYPES:
        node.refuse("type", kind, " or ".join(_POSITION_TYPES))
    view_attn = _POSITION_TYPES[kind]
    if view_attn == "cross_view":
        node.note(num_feats="position_dims", h="h", w="w", z="z")
    else:
        node.note(row_num_embed="h", col_num_embed="w")
        width = node.number("num_feats")  # channels of a row's embedding and of a column's
        node.facts.put("position_dims", (width, width), node.at("num_feats"))
    node.done()
    return view_attn


def _encoder(node: Node, view_attn: ViewAttention) -> Tuple[Layer, ...]:
    node.expect("type", "TPVFormerEncoder")
    node.note(**_GRID, pc_range="pc_range", num_points_in_pillar="pillar_anchors")
    node.expect("return_intermediate", False)
    count = node.number("num_layers")
    if view_attn == "cross_view":
        anchors = node.number("num_points_in_pillar_cross_view", (16, 16, 16))
        if not isinstance(anchors, tuple) or len(set(anchors)) != 1:
            node.refuse("num_points_in_pillar_cross_view", anchors, "the same number three times")
        node.facts.put("plane_anchors", anchors[0], node.at("num_points_in_pillar_cross_view"))
    layers = node.children("transformerlayers")
    if isinstance(node.take("transformerlayers"), dict):
        layers = layers * count
    if len(layers) != count:
        node.refuse("num_layers", count, f"{len(layers)}, the number of transformerlayers")
    kinds = tuple(_layer(layer, view_attn) for layer in layers)
    node.done()
    return kinds


def _layer(node: Node, view_attn: ViewAttention) -> Layer:
    node.expect("type", "TPVFormerLayer")
    node.note(**_GRID, feedforward_channels="ffn_dim")
    node.expect("ffn_dropout", _DROPOUT)
    order = node.take("operation_order")
    if order not in _ORDERS:
        node.refuse("operation_order", order, " or ".join(repr(known) for known in _ORDERS))
    attentions = node.children("attn_cfgs")
    wanted = 2 if _ORDERS[order] == "self_cross" else 1
    if len(attentions) != wanted:
        node.refuse("attn_cfgs", f"a list of {len(attentions)}", f"{wanted} for this operation_order")
    _plane_attention(attentions[0], view_attn)
    for image in attentions[1:]:
        _image_attention(image)
    node.done()
    return _ORDERS[order]


def _plane_attention(node: Node, view_attn: ViewAttention) -> None:
    node.expect("type", "TPVCrossViewHybridAttention")
    node.note(**_GRID, embed_dims="dim")
    node.expect("batch_first", True, False)  # the layer sets it; it names a tensor order, not a number
    node.expect("dropout", _DROPOUT)
    node.note(8, num_heads="plane_heads")
    if view_attn == "cross_view":
        node.note(num_points="plane_points", num_anchors="plane_init_anchors")
        node.note(0, init_mode="plane_init_mode")
    else:
        node.note(4, num_points="plane_points")
        node.expect("num_levels", 1)
    node.done()


def _image_attention(node: Node) -> None:
    node.expect("type", "TPVImageCrossAttention")
    node.note(**_GRID, pc_range="pc_range", embed_dims="dim")
    node.note(6, num_cams="num_cams")
    node.expect("batch_first", True, False)
    node.expect("dropout", _DROPOUT)
    inner = node.child("deformable_attention")
    inner.expect("type", "TPVMSDeformableAttention3D")
    inner.note(**_GRID, embed_dims="dim", num_points="image_points", num_z_anchors="pillar_anchors")
    inner.note(8, num_heads="image_heads")
    inner.note(4, num_levels="num_levels")
    inner.expect("floor_sampling_offset", False)
    inner.expect("batch_first", True, False)
    inner.done()
    node.done()
