"""Choose between the two sets of weights in a run's checkpoint: those of its last step, and their average (EMA)."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Tuple

from torch import Tensor

from tpvformer.errors import CheckpointError
from tpvformer.untrusted.names import short

KEY = "ema"  # of the average in a checkpoint; it holds the tensors that are averaged, the others are the weights' own


def chosen(content: Mapping[str, Any], source: str, which: Optional[str], ours: bool) -> Tuple[Mapping[str, Any], str]:
    """Return a checkpoint with the weights to use under ``state_dict``, and a line about the choice.

    ``which`` is "ema", "raw" (the weights of the last step) or None: the average where there is one. The line is empty
    for a file without one; only a run of this package (``ours``) writes one. Raises CheckpointError for "ema" without
    an average, and for one that is damaged.
    """
    if which not in ("ema", "raw", None):
        raise CheckpointError(f"{source}: which is {short(which)}; expected 'ema', 'raw' or None")
    stored = content.get(KEY) if ours else None
    if not isinstance(stored, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        if which == "ema":
            raise CheckpointError(
                f"{source}: holds no average of the weights (EMA); train with train.ema, or take the weights it has"
            )
        return content, ""
    if which == "raw":
        return content, "the weights of the last step; the file holds their average (EMA) too"
    average = _tensors(stored, content["state_dict"], source)
    steps = short(stored.get("updates"))
    line = f"the average of the weights (EMA) over {steps} steps; --which raw takes those of the last step"
    return {**content, "state_dict": {**content["state_dict"], **average}}, line


def _tensors(stored: Mapping[str, Any], weights: Mapping[str, Any], source: str) -> Dict[str, Tensor]:
    tensors = stored.get("state_dict")
    if not isinstance(tensors, Mapping) or not all(
        isinstance(value, Tensor) and isinstance(weights.get(name), Tensor) and value.shape == weights[name].shape
        for name, value in tensors.items()
    ):
        raise CheckpointError(
            f"{source}: its average of the weights (EMA) does not fit its weights; it is damaged, name another file or "
            "take the weights of the last step with --which raw"
        )
    return dict(tensors)
