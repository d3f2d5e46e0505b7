"""Divide a model's weights into the optimiser's groups, each with its learning rate."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any, Dict, List, Sequence, Tuple

from torch import Tensor, nn

from tpvformer.config import OptimConfig
from tpvformer.config.parts import multiples
from tpvformer.errors import ConfigError

_STAGE = re.compile(r"backbone\.layer(\d+)\.")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_STAGES = 4  # of the backbone, after its stem


def groups_of(model: nn.Module, cfg: OptimConfig) -> List[Dict[str, Any]]:
    """Return the groups of the trainable parameters: those outside ``model.backbone``, then those of the backbone.

    Both are divided further where ``optim.lr_mults`` or ``optim.layer_decay`` give their parts other rates. The order
    of all parameters, one group after the other, does not depend on the rates, so that a run can be resumed with
    others. ``initial_lr`` is the rate that the schedule scales. Raises ConfigError for a rate of a part that does not
    learn.
    """
    named = [(_as_ours(name), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    _check_parts(cfg, [name for name, _ in named])
    layers = sum(1 for _ in getattr(getattr(model, "encoder", None), "layers", ()))
    groups: List[Dict[str, Any]] = []
    for of_backbone in (False, True):
        members = [(name, p) for name, p in named if name.startswith("backbone.") is of_backbone]
        groups += _runs([(base_rate(name, cfg, layers), p) for name, p in members]) or [_group(cfg, of_backbone)]
    return groups


def _as_ours(name: str) -> str:
    """Return a parameter's name with the backbone named as in this package, where it has the reference's name.

    The reference gives a rate of its own to every parameter whose name contains ``img_backbone``.
    """
    before, found, after = name.partition("img_backbone")
    return f"backbone{after}" if found else before


def base_rate(name: str, cfg: OptimConfig, layers: int) -> float:
    """Return the full learning rate of the parameter ``name`` of a model with ``layers`` layers in its encoder."""
    return cfg.lr * cfg.part_mults.get(name.split(".")[0], 1.0) * cfg.layer_decay ** depth(name, layers)


def depth(name: str, layers: int) -> int:
    """Return how many stages or layers follow that of the parameter ``name`` in the backbone or encoder.

    Before the first one are the stem, and the queries and embeddings of the encoder. It is 0 in other parts.
    """
    part = name.split(".")[0]
    if part == "backbone":
        stage = _STAGE.match(name)
        return _STAGES - int(stage[1]) if stage else _STAGES
    if part == "encoder":
        layer = _LAYER.match(name)
        return layers - 1 - int(layer[1]) if layer else layers
    return 0


def _runs(members: Sequence[Tuple[float, Tensor]]) -> List[Dict[str, Any]]:
    """Return a group for each run of parameters with the same rate."""
    found = groupby(members, key=lambda member: member[0])
    return [{"params": [p for _, p in run], "lr": rate, "initial_lr": rate} for rate, run in found]


def _group(cfg: OptimConfig, of_backbone: bool) -> Dict[str, Any]:
    """Return a group without parameters: those of the model are frozen."""
    rate = cfg.lr * (cfg.backbone_lr_mult if of_backbone else 1.0)
    return {"params": [], "lr": rate, "initial_lr": rate}


def _check_parts(cfg: OptimConfig, names: Sequence[str]) -> None:
    learning = {name.split(".")[0] for name in names}
    for part in multiples(cfg.lr_mults):
        if part not in learning:
            raise ConfigError(
                f"optim.lr_mults gives {part} a learning rate, but no weight of that part learns in this model; leave "
                "it out, or look at train.freeze and at the model section"
            )
