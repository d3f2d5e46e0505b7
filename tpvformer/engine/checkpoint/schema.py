"""Check the content of a run's checkpoint, value by value, before any of it is loaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tpvformer.untrusted.names import short
from tpvformer.untrusted.schema import (
    SchemaError,
    anything,
    fields,
    flag,
    list_of,
    map_of,
    nothing_or,
    number,
    text,
    whole,
)
from tpvformer.untrusted.text import TextError, parse_json


def _tensor(value: Any, where: str) -> None:
    if not isinstance(value, Tensor):
        raise SchemaError(f"{where} is {short(value)}, expected a tensor")


def _state(value: Any, where: str) -> None:
    """Check the optimiser state of one parameter: tensors, or step counts as numbers in files of older versions."""
    if not isinstance(value, Tensor):
        number(none=True)(value, where)


def section_text(value: Any, where: str) -> None:
    """Check a model section as text: a dictionary in JSON."""
    text(2**20)(value, where)
    try:
        section = parse_json(value)
    except TextError as err:
        raise SchemaError(f"{where} is no JSON") from err
    if not isinstance(section, dict):
        raise SchemaError(f"{where} is {short(value)}, expected a dictionary in JSON")


_count, _score = whole(0, 2**53), number(none=True)
_MEAN = {"sum": number(), "count": _count, "last": _score}
_OPTIMISER = fields(
    {
        "state": map_of(map_of(_state), keys=whole(0, 10**7)),
        "param_groups": list_of(fields({"params": list_of(whole(0, 10**7))}, needed=("params",)), 1, 10_000),
    },
    needed=("state", "param_groups"),
)
_RNG = {"python": 2, "python_gauss": 2, "numpy": 3, "numpy_gauss": 1, "torch": 1, "device": 0}
_CONTENT = fields(
    {
        "format": text(100),
        "state_dict": map_of(_tensor),
        "optimizer": _OPTIMISER,
        "scaler": nothing_or(map_of(anything)),
        "config": map_of(anything),
        "own_model": section_text,
        "ema": fields({"updates": _count, "state_dict": map_of(_tensor)}, needed=("updates", "state_dict")),
        "epoch": whole(0, 10**6),
        "samples": _count,
        "global_iter": _count,
        "evaluated": flag,
        "skipped_steps": _count,
        "bad_samples": _count,
        "best_val_miou_pts": _score,
        "best_val_miou_vox": _score,
        "best_val_leading": _score,
        "best_epoch": whole(0, 10**6),
        "world_size": whole(1, 10**6),
        "global_batch": whole(1, 10**9),
        "losses": fields({**_MEAN, "parts": map_of(fields({**_MEAN, "count": whole(1, 2**53)}, _MEAN))}, _MEAN),
        "rng": fields(dict.fromkeys(_RNG, _tensor), needed=tuple(_RNG)),  # each (processes, n)
    },
    needed=("config", "epoch", "global_iter"),
)
TO_RESUME = ("state_dict", "optimizer")
MID_EPOCH_KEYS = ("world_size", "global_batch", "losses", "rng")  # of the state in the middle of an epoch


def check_content(content: Any) -> None:
    """Raise SchemaError for the first value that no run writes."""
    _CONTENT(content, "")
    missing = [name for name in MID_EPOCH_KEYS if name not in content]
    if missing and len(missing) < len(MID_EPOCH_KEYS):
        raise SchemaError(f"it has no {missing[0]!r}")
    for name, states in content.get("rng", {}).items():
        if name not in _RNG:
            continue
        if states.ndim != 2 or len(states) != content["world_size"] or states.shape[1] < _RNG[name]:
            raise SchemaError(f"rng.{name} has the shape {tuple(states.shape)}, expected a row of each process")
