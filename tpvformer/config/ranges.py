"""Define the range of every configuration field in one table, and check sections against it.

A configuration may come from an untrusted checkpoint. Numbers outside of these ranges give no valid model, exhaust
memory, or make kernels access memory outside their arrays.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union, get_args, get_origin

from tpvformer.config.words import plain, types_of
from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import has_unseen, short

MOST_VOXELS = 2**24
MOST_WEIGHTS = 2**29
MOST_SAMPLES = 2**28  # places at which one layer's attention reads for one sample
_MANY = 10**9
_LONGEST = 4096  # characters of a text, entries of a list


class Range(NamedTuple):
    """Hold the bounds of a number or of each number in a list. ``above``: the lower one is excluded; ``length`` of a
    list."""

    low: float
    high: float
    length: Tuple[int, int] = (0, _LONGEST)
    above: bool = False
    below: bool = False


RANGES: Dict[str, Range] = {
    **{f"model.grid.{name}": Range(1, 2048) for name in ("w", "h", "z")},
    **{f"model.grid.scale_{name}": Range(1, 64) for name in ("w", "h", "z")},
    "model.grid.pc_range": Range(-1e5, 1e5, (6, 6)),
    "model.backbone.blocks": Range(1, 128, (4, 4)),
    "model.backbone.base_width": Range(1, 256),
    "model.backbone.dcn_stages": Range(1, 4, (0, 4)),
    "model.backbone.frozen_stages": Range(0, 1),
    "model.backbone.bn3_init": Range(-1e3, 1e3),
    "model.num_classes": Range(2, 255),
    "model.num_cams": Range(1, 64),
    "model.num_levels": Range(3, 8),
    "model.dim": Range(1, 1024),
    "model.ffn_dim": Range(1, 16384),
    "model.decoder_dim": Range(1, 16384),
    "model.image_heads": Range(1, 64),
    "model.plane_heads": Range(1, 64),
    "model.position_dims": Range(1, 1024, (2, 3)),
    "model.layers": Range(0, 0, (1, 64)),
    "model.pillar_anchors": Range(1, 512, (3, 3)),
    "model.image_points": Range(1, 512, (3, 3)),
    "model.plane_points": Range(1, 512),
    "model.plane_anchors": Range(1, 512),
    "model.plane_init_anchors": Range(1, 512),
    "model.plane_init_mode": Range(0, 1),
    "model.plane_own_logit": Range(-1e4, 1e4),
    "model.dropout": Range(0, 1, below=True),
    "model.detection.scale": Range(1, 8),
    "model.detection.channels": Range(1, 1024),
    "model.detection.group_channels": Range(1, 1024),
    "model.detection.blocks": Range(0, 64),
    "model.detection.min_score": Range(0, 1, below=True),
    "model.history.frames": Range(1, 3),
    "model.history.max_seconds": Range(0, 60, above=True),
    "data.classes.names": Range(0, 0, (0, 254)),
    "data.classes.colors": Range(0, 0, (0, 254)),
    "data.classes.ignored": Range(0, 253),
    "data.classes.empty": Range(0, 253),
    "data.classes.raw": Range(0, 255, (0, 4096)),
    "data.classes.voxels": Range(0, 255, (0, 256)),
    "data.ignore_label": Range(0, 255),
    "data.fill_label": Range(0, 255),
    "data.image_scale": Range(0, 16, above=True),
    "data.augment.rotation": Range(0, 180),
    "data.augment.scale": Range(0.25, 4, (2, 2)),
    "data.augment.image_resize": Range(0.25, 4, (2, 2)),
    "data.batch_size": Range(1, 4096),
    "data.workers": Range(0, 256),
    "loss.class_weights": Range(0, 1e9, (0, 255)),
    "loss.image": Range(0, 1e6),
    "loss.segmentation": Range(0, 1e6),
    "loss.detection": Range(0, 1e6),
    "loss.render": Range(0, 1e6),
    "loss.render_rays": Range(1, 1 << 14),
    "loss.render_samples": Range(1, 1024),
    **{f"loss.{name}_weight": Range(0, 1e6) for name in ("ce", "lovasz")},
    "loss.focal": Range(0, 100),
    "loss.label_smoothing": Range(0, 1, below=True),
    "optim.lr": Range(0, 1e3, above=True),
    "optim.weight_decay": Range(0, 1e3),
    "optim.backbone_lr_mult": Range(0, 1e3),
    "optim.clip_norm": Range(0, 1e12, above=True),
    "optim.warmup_steps": Range(0, _MANY),
    "optim.warmup_lr": Range(0, 1e3),
    "optim.min_lr": Range(0, 1e3),
    "optim.layer_decay": Range(0, 1, above=True),
    "train.epochs": Range(1, 10**6),
    "train.print_every": Range(1, _MANY),
    "train.accumulate": Range(1, 10**6),
    "train.seed": Range(-(2**63), 2**64 - 1),
    "train.drop_past": Range(0, 1),
    "train.ema": Range(0, 1, below=True),
    "train.patience": Range(0, _MANY),
    "train.freeze": Range(0, 0, (0, 7)),
    "train.save_every_steps": Range(0, _MANY),
    "train.save_every_minutes": Range(0, _MANY),
    "train.keep_checkpoints": Range(1, _MANY),
    "train.max_skipped": Range(0, _MANY),
    "train.hang_minutes": Range(0, _MANY),
    "train.writers": Range(0, 0, (0, 8)),
}
_EXPECTED = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}


def check_section(section: str, value: Any) -> None:
    """Raise ConfigError for the first field of a section whose value is of another type or outside of its range."""
    for name, kind in types_of(type(value)).items():
        _check_field(f"{section}.{name}", getattr(value, name), kind)


def _check_field(name: str, value: Any, kind: Any) -> None:
    bounds, kind = RANGES.get(name), plain(kind)
    if get_origin(kind) is Union:  # Optional[...]
        if value is not None:
            _check_field(name, value, get_args(kind)[0])
    elif get_origin(kind) is tuple:
        _check_list(name, value, plain(get_args(kind)[0]), bounds)
    elif kind in _EXPECTED:
        _check_value(name, value, value, kind, bounds)
    elif type(value) is not kind:
        raise ConfigError(f"{name} is {short(value)}; expected a {kind.__name__}")


def _check_list(name: str, value: Any, kind: Any, bounds: Optional[Range]) -> None:
    least, most = (0, _LONGEST) if bounds is None else bounds.length
    words = _EXPECTED[kind].split(" ", 1)[1] + "s"
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {short(value)}; expected a list of {words}")
    for entry in value:
        _check_value(name, entry, value, kind, bounds)
    if not least <= len(value) <= most:
        count = str(least) if least == most else f"{least} to {most}"
        raise ConfigError(f"{name} is {short(value)}; expected {count} {words}")


def _check_value(name: str, value: Any, whole: Any, kind: Any, bounds: Optional[Range]) -> None:
    """``whole`` is what the message shows: a value, or the list that it stands in."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = {
        int: number and isinstance(value, numbers.Integral),
        float: number and (isinstance(value, numbers.Integral) or math.isfinite(value)),
        str: isinstance(value, str),
        bool: isinstance(value, bool),
    }[kind]
    if not fits:
        raise ConfigError(f"{name} is {short(whole)}; expected {_EXPECTED[kind]}")
    if kind is str:
        if len(value) > _LONGEST or has_unseen(value):
            raise ConfigError(f"{name} is {short(value)}; expected a text of one line that can be printed")
    elif kind is not bool and bounds is not None:
        _check_number(name, value, whole, bounds)


def _check_number(name: str, value: Any, whole: Any, bounds: Range) -> None:
    entries = "numbers " if value is not whole else ""
    if value < bounds.low or (bounds.above and value == bounds.low):
        if bounds.above or (entries and bounds.low == 1):
            text = f"{entries}above {0 if bounds.low == 1 else bounds.low:g}"
        elif bounds.low == 0:
            text = f"{entries}at least 0" if isinstance(value, float) else f"{entries}0 or more"
        else:
            text = f"{entries}{bounds.low:g} or more"
        raise ConfigError(f"{name} is {short(whole)}; expected {text}")
    if value > bounds.high or (bounds.below and value == bounds.high):
        text = f"below {bounds.high:g}" if bounds.below else f"{bounds.high:g} at most"
        raise ConfigError(f"{name} is {short(whole)}; expected {entries}{text}")


def check_grid(grid: Any) -> None:
    """What the fields of a GridConfig have to be together. Raises ConfigError."""
    low, high = grid.pc_range[:3], grid.pc_range[3:]
    if not all(b - a >= 0.01 for a, b in zip(low, high)):
        raise ConfigError(
            f"model.grid.pc_range is {short(grid.pc_range)}; expected x0, y0, z0, x1, y1, z1 in metres, each of the "
            "last three 0.01 or more above its first"
        )
    x, y, z = grid.shape
    if x * y * z > MOST_VOXELS:
        raise ConfigError(
            f"model.grid makes {x} x {y} x {z} voxels; expected {MOST_VOXELS} at most, by w, h, z or scale"
        )


def check_model_size(model: Any) -> None:
    """Raise ConfigError for a model whose weights or whose attention would take all memory."""
    backbone, dim = model.backbone, model.dim
    weights = sum(count * 20 * (backbone.base_width * 2**stage) ** 2 for stage, count in enumerate(backbone.blocks))
    image = model.image_heads * model.num_levels * max(model.image_points)
    plane = model.plane_heads * 3 * (model.plane_points + 1)
    layer = dim * (9 * (image + plane) + 2 * model.ffn_dim + 8 * dim)
    weights += len(model.layers) * layer + model.grid.num_queries * dim + dim * model.decoder_dim * 2
    if weights > MOST_WEIGHTS:
        raise ConfigError(f"model has some {weights:.1e} weights; expected {MOST_WEIGHTS:.1e} at most")
    samples = model.grid.num_queries * max(image, plane, model.num_cams * max(model.pillar_anchors))
    if samples > MOST_SAMPLES:
        raise ConfigError(
            f"model: an attention layer reads at {samples:.1e} places; expected {MOST_SAMPLES:.1e} at most, by fewer "
            "cells, heads or points"
        )
