"""The two-way table between our state-dict names and the reference's, and other names of the same tensors.

The reference registers head, backbone, neck and aggregator in this order, and so does this model: both lists agree
entry by entry. The reference's head also stores geometry that follows from the configuration (``derived_names``); this
model computes it.
"""

from __future__ import annotations

import re
from typing import Dict, Iterable, Iterator, List, Tuple

from tpvformer.config import BackboneConfig, ModelConfig

Pair = Tuple[str, str]  # (our name, the reference's name)

_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PLANES = ("hw", "zh", "wz")
_LATERALS = 3  # stages 2, 3 and 4 feed the neck

# The part of a plane-attention or image-attention name that differs: our name, the reference's.
_OUTPUT, _OFFSETS, _LOGITS, _VALUE = (
    ("output", "output_proj"),
    ("offsets", "sampling_offsets"),
    ("logits", "attention_weights"),
    ("value", "value_proj"),
)
_GEOMETRY = r"ref_3d_(hw|zh|wz)|ref_2d_(hw|zh|wz)|cross_view_ref_points"
_DERIVED = re.compile(rf"tpv_head\.(tpv_mask_hw|encoder\.({_GEOMETRY}))$")

# mmdetection3d's port (projects/TPVFormer) has the reference's head and its encoder as one module, ``encoder``.
_PORT_MARKS = ("decode_head.", "encoder.")
_PORT = (
    (re.compile(rf"encoder\.(?=layers\.|({_GEOMETRY})$)"), "tpv_head.encoder."),
    (re.compile(r"encoder\."), "tpv_head."),
    (re.compile(r"backbone\."), "img_backbone."),
    (re.compile(r"neck\."), "img_neck."),
    (re.compile(r"decode_head\."), "tpv_aggregator."),
)

# GaussRender (valeoai) trains the reference's tpv04 model; its head and aggregator lack "tpv_" in their names
_GAUSSRENDER_MARK = "head.tpv_embedding_"
_GAUSSRENDER = re.compile(r"(?=(head|aggregator)\.)")
_RENDERER = "tpv_aggregator.renderer_prep."  # a layer that its loss on rendered images alone uses


def key_table(model: ModelConfig) -> Dict[str, str]:
    """Map our name of every stored tensor to the reference's, in state-dict order; a bijection.

    The reference always has three planes. It has no name for the embedding of heights of a model with hw alone.
    """
    pairs = list(_head(model)) + list(_backbone(model.backbone)) + list(_neck(model)) + list(_aggregator())
    return dict(pairs)


def derived_names(model: ModelConfig) -> List[str]:
    """Return the reference's names of the geometry that it stores for this model, in its order."""
    names = [f"tpv_head.encoder.ref_3d_{p}" for p in _PLANES]
    if model.view_attn == "cross_view":
        return names + ["tpv_head.encoder.cross_view_ref_points"]
    return ["tpv_head.tpv_mask_hw"] + names + [f"tpv_head.encoder.ref_2d_{p}" for p in _PLANES]


def is_derived(reference_name: str) -> bool:
    """Tell whether some version of the reference stores computed geometry under this name."""
    return _DERIVED.match(reference_name) is not None


def is_port(names: Iterable[str]) -> bool:
    """Tell whether these are names of mmdetection3d's TPVFormer: with a ``decode_head.`` and an ``encoder.``."""
    names = list(names)
    return all(any(name.startswith(mark) for name in names) for mark in _PORT_MARKS)


def is_gaussrender(names: Iterable[str]) -> bool:
    """Tell whether these are names of GaussRender's TPVFormer: the planes of the reference under ``head.``."""
    return any(name.startswith(_GAUSSRENDER_MARK) for name in names)


def is_whole(names: Iterable[str]) -> bool:
    """Tell whether these are names of a whole TPVFormer of the reference, of mmdetection3d or of GaussRender."""
    names = list(names)
    marks = ("tpv_head.", "tpv_aggregator.")
    return is_port(names) or is_gaussrender(names) or any(name.startswith(marks) for name in names)


def is_renderer(reference_name: str) -> bool:
    """Tell whether GaussRender's loss alone uses the tensor."""
    return reference_name.startswith(_RENDERER)


def reference_names(names: Iterable[str]) -> Dict[str, str]:
    """Map each of a file's names to the reference's name of the same tensor.

    Accepted: the reference's names; those of mmdetection3d's port, which differ in four prefixes (checked with the 922
    names of its model); those of GaussRender, which differ in two (checked with the list in its log); those of the
    first versions of mmdetection, where a deformable convolution's offset branch is a sibling of the convolution.
    """
    names = list(names)
    if is_gaussrender(names):
        return {name: _GAUSSRENDER.sub("tpv_", name, count=1) if _GAUSSRENDER.match(name) else name for name in names}
    port = is_port(names)
    return {name: modern_name(_unported(name) if port else name) for name in names}


def modern_name(name: str) -> str:
    """Rename the offset branch of mmdetection's first deformable convolutions from a sibling to a child."""
    return name.replace(".conv2_offset.", ".conv2.conv_offset.")


def _unported(name: str) -> str:
    for prefix, reference in _PORT:
        if prefix.match(name):
            return prefix.sub(reference, name, count=1)
    return name


def reference_order(model: ModelConfig) -> List[str]:
    """Return every name of the reference's state dict in its order, with the stored geometry."""
    order: List[str] = []
    waiting = derived_names(model)
    mask = [name for name in waiting if name.endswith("tpv_mask_hw")]
    geometry = [name for name in waiting if name not in mask]
    for name in key_table(model).values():
        if mask and name.startswith("tpv_head.positional_encoding."):  # a module's own buffers precede its children
            order, mask = order + mask, []
        if geometry and name.startswith(("tpv_head.encoder.layers.", "tpv_head.tpv_embedding_")):
            order, geometry = order + geometry, []
        order.append(name)
    return order


def _linear(ours: str, reference: str) -> Iterator[Pair]:
    for entry in ("weight", "bias"):
        yield f"{ours}.{entry}", f"{reference}.{entry}"


def _head(model: ModelConfig) -> Iterator[Pair]:
    yield "encoder.level_embed", "tpv_head.level_embeds"
    yield "encoder.camera_embed", "tpv_head.cams_embeds"
    for axis in ("h", "w", "z") if model.view_attn == "cross_view" else ("row", "col"):
        yield f"encoder.position.{axis}", f"tpv_head.positional_encoding.{axis}_embed.weight"
    for index, kind in enumerate(model.layers):
        yield from _layer(f"encoder.layers.{index}", f"tpv_head.encoder.layers.{index}", kind, model.view_attn)
    for plane in _PLANES:
        yield f"encoder.plane_queries.{plane}", f"tpv_head.tpv_embedding_{plane}.weight"


def _layer(ours: str, reference: str, kind: str, view_attn: str) -> Iterator[Pair]:
    if view_attn == "cross_view":  # one linear a plane
        for mine, theirs in (_OUTPUT, _OFFSETS, _LOGITS, _VALUE):
            for plane in range(3):
                yield from _linear(f"{ours}.plane_attn.{mine}.{plane}", f"{reference}.attentions.0.{theirs}.{plane}")
    else:
        for mine, theirs in (_OFFSETS, _LOGITS, _VALUE, _OUTPUT):
            yield from _linear(f"{ours}.plane_attn.{mine}", f"{reference}.attentions.0.{theirs}")
    if kind == "self_cross":
        inner = f"{reference}.attentions.1.deformable_attention"
        for mine, theirs in (_OFFSETS, _LOGITS):
            for plane in range(3):
                yield from _linear(f"{ours}.image_attn.{mine}.{plane}", f"{inner}.{theirs}.{plane}")
        yield from _linear(f"{ours}.image_attn.{_VALUE[0]}", f"{inner}.{_VALUE[1]}")
        yield from _linear(f"{ours}.image_attn.{_OUTPUT[0]}", f"{reference}.attentions.1.{_OUTPUT[1]}")
    yield from _linear(f"{ours}.ffn.linear1", f"{reference}.ffns.0.layers.0.0")
    yield from _linear(f"{ours}.ffn.linear2", f"{reference}.ffns.0.layers.1")
    for norm in range(3 if kind == "self_cross" else 2):
        yield from _linear(f"{ours}.norms.{norm}", f"{reference}.norms.{norm}")


def _backbone(backbone: BackboneConfig) -> Iterator[Pair]:
    for name in _backbone_names(backbone):
        yield f"backbone.{name}", f"img_backbone.{name}"


def _backbone_names(backbone: BackboneConfig) -> Iterator[str]:
    yield "conv1.weight"
    yield from (f"bn1.{entry}" for entry in _NORM_ENTRIES)
    for stage, blocks in enumerate(backbone.blocks, start=1):
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            for part in (1, 2, 3):
                yield f"{block}.conv{part}.weight"
                if part == 2 and stage in backbone.dcn_stages:
                    yield f"{block}.conv2.conv_offset.weight"
                    yield f"{block}.conv2.conv_offset.bias"
                yield from (f"{block}.bn{part}.{entry}" for entry in _NORM_ENTRIES)
            if index == 0:
                yield f"{block}.downsample.0.weight"
                yield from (f"{block}.downsample.1.{entry}" for entry in _NORM_ENTRIES)


def _neck(model: ModelConfig) -> Iterator[Pair]:
    for index in range(_LATERALS):
        yield from _linear(f"neck.lateral.{index}", f"img_neck.lateral_convs.{index}.conv")
    for index in range(model.num_levels):
        yield from _linear(f"neck.output.{index}", f"img_neck.fpn_convs.{index}.conv")


def _aggregator() -> Iterator[Pair]:
    for name in ("decoder.0", "decoder.2", "classifier"):
        yield from _linear(f"aggregator.{name}", f"tpv_aggregator.{name}")
