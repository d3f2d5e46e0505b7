"""TPVFORMER_OPS, the environment variable by which a user asks for one backend of the operations."""

from __future__ import annotations

import difflib
import os
from typing import Optional

from tpvformer.errors import OpsError

VARIABLE = "TPVFORMER_OPS"
REFERENCE = "reference"
SERVES = {"numba": "cpu", "triton": "cuda", "mx_driving": "npu"}  # the device whose tensors each backend takes


def asked() -> Optional[str]:
    """The backend that is asked for; None where the variable is not set, or empty, as an unfilled script leaves it.

    Raises OpsError for a word that names none.
    """
    word = os.environ.get(VARIABLE, "").strip()
    if word and word != REFERENCE and word not in SERVES:
        raise OpsError(_unknown(word))
    return word or None


def misfit(device_type: str) -> Optional[str]:
    """Why tensors on such a device cannot be served by what is asked for; None where they can. Raises nothing."""
    try:
        word = asked()
    except OpsError as err:
        return str(err)
    if word in (None, REFERENCE) or SERVES[word] == device_type:
        return None
    return f"{VARIABLE}={word} serves {SERVES[word]}, but the tensors are on {device_type}; unset it"


def _unknown(word: str) -> str:
    names = [REFERENCE, *SERVES]
    near = difflib.get_close_matches(word.lower(), names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{VARIABLE} is {word[:40]!r}; expected one of {', '.join(names)}, or unset, which is fastest{hint}"
