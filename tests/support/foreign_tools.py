"""Names and shapes that other programs' models have, read off those models."""

from __future__ import annotations

import functools
import json
from typing import Any, Dict, Mapping

import torch
from engine_tools import ROOT
from torch import Tensor

from tpvformer.compat.keys import reference_names

FOREIGN = ROOT / "tests/golden_data/foreign"


def recorded(name: str) -> Dict[str, Tensor]:
    """Tensors of a file's real names and shapes, which take no memory; norms with the statistics of a folded one."""
    shapes = json.loads((FOREIGN / f"{name}.json").read_text())["keys"]
    return {key: torch.tensor(1.0 if key.endswith("var") else 0.0).expand(shape) for key, shape in shapes.items()}


@functools.lru_cache(maxsize=None)
def _names_of_the_port() -> Dict[str, str]:
    return {known: name for name, known in reference_names(recorded("mmdet3d_keys")).items()}


def port_names(reference: Mapping[str, Any]) -> Dict[str, Any]:
    """A model's weights under the names that mmdetection3d's port has for them; KeyError for one that it lacks."""
    return {_names_of_the_port()[name]: value for name, value in reference.items()}
