"""The container of a run's checkpoint, which prevents other programs from loading it as a state dict.

Programs that load with ``strict=False``, such as the reference's eval.py, accept any dictionary with strings as keys,
find none of their names in it, and continue with random weights. The keys of this container are integers, for which
such a program fails at once.
"""

from __future__ import annotations

from typing import Any, Dict

NOTE = "checkpoint of a tpvformer run; for weights under the reference's names: tpvformer convert FILE reference.pth"
_NOTE, _CONTENT = 0, 1


def packed(content: Dict[str, Any]) -> Dict[int, Any]:
    """Return a checkpoint in its container, as it is written to a file."""
    return {_NOTE: NOTE, _CONTENT: content}


def unpacked(content: Dict[Any, Any]) -> Dict[Any, Any]:
    """Return the checkpoint inside a container; any other dictionary, as of an older version, unchanged."""
    inner = content.get(_CONTENT)
    return inner if set(content) == {_NOTE, _CONTENT} and isinstance(inner, dict) else content
