"""The configuration of weights that come without one, inferred from their shapes and a published configuration.

Shapes do not tell the range of the grid, the scale factors of its planes, and the number of image attention's heads.
Those come from the published configuration that agrees with the shapes, or else from the first one that can be resized.
"""

from __future__ import annotations

import dataclasses
import warnings
from itertools import count, takewhile
from typing import Any, Dict, List, Mapping, Optional, Tuple

from torch import Tensor

from tpvformer.compat.config_file import load_config
from tpvformer.compat.keys import is_gaussrender, reference_names
from tpvformer.config import BackboneConfig, Config, ModelConfig
from tpvformer.errors import CheckpointError, ConfigError

PUBLISHED = ("tpv_lidarseg", "tpv_lidarseg_dim64", "tpv_lidarseg_dim96", "tpv04_occupancy")
_PLANES = ("hw", "zh", "wz")


def infer_config(tensors: Mapping[str, Tensor], source: str) -> Config:
    """Return the published configuration that agrees with weights under the reference's or its port's names.

    Where none agrees, the first one of the same view attention that can be resized is, with a warning. Raises
    CheckpointError where they are no such weights, and where that configuration has another number of classes, so that
    the classes' names are unknown.
    """
    shapes = _Shapes(tensors, source)
    if is_gaussrender(tensors):
        return _of_gaussrender(shapes, source)
    family = "cross_view" if shapes.has("tpv_head.positional_encoding.h_embed.weight") else "hw"
    bases = [base for base in map(load_config, PUBLISHED) if base.model.view_attn == family]
    fitting: List[Tuple[Config, ModelConfig]] = []
    misfit: Optional[Exception] = None  # the error of the last configuration that did not fit
    for base in bases:
        try:
            model = _resized(base.model, shapes)
        except (ConfigError, ZeroDivisionError) as err:
            misfit = err
            continue
        if model == base.model:
            return base
        fitting.append((base, model))
    if not fitting:
        raise CheckpointError(f"{source}: its shapes make no model ({misfit}); give its configuration") from misfit
    base, model = fitting[0]
    names = base.data.label_classes.names
    if model.num_classes != len(names):
        raise CheckpointError(
            f"{source}: has {model.num_classes} classes, whose names are not known ({base.name} has {len(names)}); "
            "give its configuration"
        )
    warnings.warn(
        f"{source}: of no published size; image attention with {model.image_heads} heads and a grid over "
        f"{base.model.grid.pc_range} m are assumed, which shapes do not say; give the configuration if they differ",
        stacklevel=3,
    )
    return dataclasses.replace(base, name="inferred", model=model)


def _of_gaussrender(shapes: _Shapes, source: str) -> Config:
    """Return the configuration of GaussRender's weights, by their number of classes: 18 of Occ3D, 17 of SurroundOcc.

    Raises CheckpointError for another number, or shapes that are not those of its configuration.
    """
    classes = shapes.rows("tpv_aggregator.classifier")
    if classes not in (17, 18):
        raise CheckpointError(
            f"{source}: has {classes} classes; expected GaussRender's 18 of Occ3D or 17 of SurroundOcc, so give its "
            "configuration"
        )
    base = load_config("tpv_occ3d" if classes == 18 else "tpv_surroundocc")
    if classes == 17:  # free space comes first, as in SurroundOcc's code
        base = dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, num_classes=17),
            data=dataclasses.replace(base.data, label_map="surroundocc", fill_label=0, ignore_label=255),
        )
    try:
        model = _resized(base.model, shapes)
    except (ConfigError, ZeroDivisionError) as err:
        raise CheckpointError(f"{source}: its shapes make no model ({err}); give its configuration") from err
    if model != base.model:
        raise CheckpointError(
            f"{source}: its shapes are not those of GaussRender's configuration; give its own (--py-config, config=)"
        )
    return base


def _resized(base: ModelConfig, shapes: _Shapes) -> ModelConfig:
    """Return ``base`` with every field that the shapes determine."""
    head, first = "tpv_head.", "tpv_head.encoder.layers.0.attentions."
    levels, dim = shapes.of(f"{head}level_embeds")
    position = f"{head}positional_encoding."
    made: Dict[str, Any] = {}
    if base.view_attn == "cross_view":
        (h, at_h), (w, at_w), (z, at_z) = (shapes.of(f"{position}{axis}_embed.weight") for axis in "hwz")
        made["position_dims"] = (at_h, at_w, at_z)
        offsets, logits = (shapes.rows(f"{first}0.{part}.0") for part in ("sampling_offsets", "attention_weights"))
        # a head has 3 * points * 2 rows of offsets and 3 * (points + 1) of weights
        heads = image_heads = (logits - offsets // 2) // 3
        points = offsets // (6 * heads)
        # geometry may be left out of a file: then as published
        anchors = shapes.of_stored(f"{head}encoder.cross_view_ref_points", 2, base.plane_anchors)
        made.update(plane_points=points, plane_anchors=anchors)
    else:
        (h, at_h), (w, at_w) = (shapes.of(f"{position}{axis}_embed.weight") for axis in ("row", "col"))
        made["position_dims"] = (at_h, at_w)
        heads, image_heads = base.plane_heads, base.image_heads
        made["plane_points"] = shapes.rows(f"{first}0.attention_weights") // (2 * heads)
        z = shapes.of(f"{head}tpv_embedding_zh.weight")[0] // h
    layers = _layers(shapes)
    crossed = f"{head}encoder.layers.{layers.index('self_cross') if 'self_cross' in layers else 0}.attentions.1."
    rows = [shapes.rows(f"{crossed}deformable_attention.attention_weights.{plane}") for plane in range(3)]
    pillars = [
        shapes.of_stored(f"{head}encoder.ref_3d_{plane}", 1, published)
        for plane, published in zip(_PLANES, base.pillar_anchors)
    ]
    return dataclasses.replace(
        base,
        grid=dataclasses.replace(base.grid, h=h, w=w, z=z),
        backbone=_backbone(base.backbone, shapes),
        num_classes=shapes.rows("tpv_aggregator.classifier"),
        num_cams=shapes.of(f"{head}cams_embeds")[0],
        num_levels=levels,
        dim=dim,
        ffn_dim=shapes.rows(f"{head}encoder.layers.0.ffns.0.layers.0.0"),
        decoder_dim=shapes.rows("tpv_aggregator.decoder.0"),
        image_heads=image_heads,
        plane_heads=heads,
        layers=layers,
        pillar_anchors=tuple(pillars),
        image_points=tuple(n // (levels * image_heads) for n in rows),
        **made,
    )


def _layers(shapes: _Shapes) -> Tuple[str, ...]:
    prefix = "tpv_head.encoder.layers."
    there = takewhile(lambda i: shapes.has(f"{prefix}{i}.norms.0.weight"), count())
    return tuple("self_cross" if shapes.has(f"{prefix}{i}.norms.2.weight") else "self" for i in there)


def _backbone(base: BackboneConfig, shapes: _Shapes) -> BackboneConfig:
    def conv(stage: int, block: int) -> str:
        return f"img_backbone.layer{stage}.{block}.conv2."

    def length(stage: int) -> int:
        return sum(1 for _ in takewhile(lambda i: shapes.has(f"{conv(stage, i)}weight"), count()))

    return dataclasses.replace(
        base,
        blocks=tuple(length(stage) for stage in range(1, 5)),
        base_width=shapes.rows("img_backbone.conv1"),
        dcn_stages=tuple(s for s in range(1, 5) if shapes.has(f"{conv(s, 0)}conv_offset.weight")),
    )


class _Shapes:
    """The shapes of a file's tensors, by the reference's names."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self._shapes = {known: tuple(tensors[name].shape) for name, known in reference_names(tensors).items()}
        self._source = source

    def has(self, name: str) -> bool:
        return name in self._shapes

    def of(self, name: str) -> Tuple[int, ...]:
        if name not in self._shapes:
            raise CheckpointError(
                f"{self._source}: has no {name}, by which its configuration could be told; expected a run's "
                "checkpoint, a folder of save_pretrained, or the reference's weights; else give the configuration "
                "(--py-config, config=)"
            )
        return self._shapes[name]

    def of_stored(self, name: str, axis: int, otherwise: int) -> int:
        return self._shapes[name][axis] if name in self._shapes else otherwise

    def rows(self, layer: str) -> int:
        return self.of(f"{layer}.weight")[0]
