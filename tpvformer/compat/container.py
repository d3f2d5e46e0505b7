"""What a run's checkpoint is packed in, so that no other program takes it for weights under its own names.

Programs that load without being strict, such as the reference's eval.py, take any dictionary with texts as keys for a
state dict, find none of their names in it, and go on with random weights. The keys here are numbers, which no such
program can read as names: it ends at once.
"""

from __future__ import annotations

from typing import Any, Dict

NOTE = "checkpoint of a tpvformer run; for weights under the reference's names: tpvformer convert FILE reference.pth"
_NOTE, _CONTENT = 0, 1


def packed(content: Dict[str, Any]) -> Dict[int, Any]:
    """A checkpoint as it is written."""
    return {_NOTE: NOTE, _CONTENT: content}


def unpacked(content: Dict[Any, Any]) -> Dict[Any, Any]:
    """What ``packed`` was given; any other dictionary, such as a checkpoint of an older version, as it is."""
    inner = content.get(_CONTENT)
    return inner if set(content) == {_NOTE, _CONTENT} and isinstance(inner, dict) else content
