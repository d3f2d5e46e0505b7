"""Read TPVFORMER_OPS, the environment variable that forces one backend of the operations."""

from __future__ import annotations

import difflib
import os
from typing import Optional

from tpvformer.errors import OpsError

VARIABLE = "TPVFORMER_OPS"
REFERENCE = "reference"
SERVES = {"numba": "cpu", "triton": "cuda", "mx_driving": "npu"}  # the device of each backend


def asked() -> Optional[str]:
    """Return the forced backend; None if the variable is unset or empty.

    Raises OpsError for an unknown name.
    """
    word = os.environ.get(VARIABLE, "").strip()
    if word and word != REFERENCE and word not in SERVES:
        raise OpsError(_unknown(word))
    return word or None


def misfit(device_type: str) -> Optional[str]:
    """Return why the forced backend cannot run on tensors of this device; None if it can. Raises nothing."""
    try:
        word = asked()
    except OpsError as err:
        return str(err)
    if word in (None, REFERENCE) or SERVES[word] == device_type:
        return None
    return f"{VARIABLE}={word} is for {SERVES[word]}, but the tensors are on {device_type}; unset it"


def _unknown(word: str) -> str:
    names = [REFERENCE, *SERVES]
    near = difflib.get_close_matches(word.lower(), names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{VARIABLE} is {word[:40]!r}; expected one of {', '.join(names)}, or unset, which is fastest{hint}"
