"""Name the parts of a model, and parse the setting that gives each its own learning rate."""

from __future__ import annotations

import difflib
import math
from typing import Dict, Literal, get_args

from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import short

# modules of the model, named as in its state dict
Part = Literal["backbone", "neck", "encoder", "aggregator", "image_head", "detection", "history", "detection_history"]


def multiples(text: str) -> Dict[str, float]:
    """Return the multiple of ``optim.lr`` of each part in a text such as "encoder:0.5,detection:2".

    Raises ConfigError for a name that is no part, a part that is named twice, and a number that is not above 0.
    """
    found: Dict[str, float] = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        name, _, number = (word.strip() for word in entry.partition(":"))
        if name not in get_args(Part):
            near = difflib.get_close_matches(name, get_args(Part), 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(get_args(Part))}"
            raise ConfigError(f"optim.lr_mults has {short(name)}, which is no part of the model; {hint}")
        if name in found:
            raise ConfigError(f"optim.lr_mults has {name} twice; give each part one number")
        found[name] = _above_zero(number, name)
    return found


def _above_zero(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e3:
        raise ConfigError(
            f"optim.lr_mults gives {name} {short(text)}; expected a number above 0 and up to 1000, as in "
            "encoder:0.5,detection:2 (train.freeze stops a part)"
        )
    return value
