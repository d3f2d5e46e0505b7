"""What every process of somebody's script gets before the script: the first, those that it spawns, and torchrun's."""

from __future__ import annotations

import importlib
import multiprocessing.spawn
from typing import Any, Dict, Optional, Tuple

import numpy as np
import torch

from tpvformer.engine.device.redirect import Cards, redirect
from tpvformer.engine.foreign.absent import serve_absent
from tpvformer.engine.foreign.drop_ins import serve_drop_ins
from tpvformer.engine.foreign.numpy_names import restore_numpy_names
from tpvformer.engine.foreign.remarks import remark

_KEY = "tpvformer"
_done: Dict[str, bool] = {}


def prepare_all(kind: str, count: int) -> None:
    """Prepare this process for a script on ``count`` cards of a kind, and so those that it spawns. Once."""
    cards = Cards(kind, count)
    if prepare(cards):
        _prepare_spawned(cards)


def prepare(cards: Cards, chosen: Optional[int] = None) -> bool:
    """Prepare this process alone for code of others; return whether that was still to be done.

    ``chosen``: see ``redirect``.
    """
    if _done.setdefault("prepared", False):
        return False
    _done["prepared"] = True
    restore_numpy_names()
    serve_absent()
    importlib.import_module("tpvformer.compat.mmcv_ext")
    serve_drop_ins()
    allow_numpy_scalars()
    redirect(cards, remark, chosen)
    return True


class _Prepared:
    """Part of what a spawned process reads before anything else; reading it prepares the process."""

    def __init__(self, cards: Tuple[str, int]) -> None:
        self.cards = cards

    def __reduce__(self) -> Any:
        return prepare_all, tuple(self.cards)


def _prepare_spawned(cards: Tuple[str, int]) -> None:
    """Let processes that multiprocessing starts anew prepare themselves before they import the script."""
    given = multiprocessing.spawn.get_preparation_data

    def with_ours(name: str) -> Dict[str, Any]:
        return {**given(name), _KEY: _Prepared(cards)}

    vars(multiprocessing.spawn)["get_preparation_data"] = with_ours


def allow_numpy_scalars() -> None:
    """Let ``torch.load(weights_only=True)`` read numpy's numbers and plain arrays, which checkpoints of 2022 have.

    Their classes make values alone; no other class is allowed.
    """
    allow = getattr(torch.serialization, "add_safe_globals", None)  # PyTorch 2.5
    if allow is None:
        return
    home = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"}
    allow([np.dtype, np.ndarray, *kinds])
    older, newer = "numpy.core.multiarray", "numpy._core.multiarray"
    for name in ("scalar", "_reconstruct"):
        function = getattr(home, name)
        try:
            allow([(function, f"{module}.{name}") for module in (older, newer)])
        except (TypeError, ValueError, AttributeError):  # PyTorch 2.5 takes no names
            allow([function])
