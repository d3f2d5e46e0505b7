"""Stands in for Ascend's torch_npu: the names that tpvformer uses, with the documented limits enforced.

STANDIN_CARDS cards are there (8), of which ASCEND_RT_VISIBLE_DEVICES hides those that it does not list; the visible
ones are counted from 0. STANDIN_SAY_ENV names variables whose values are printed with each choice of a card. Where
PyTorch can be given a device by Python (2.10 on), ``torch.npu`` works and its tensors hold numbers of the CPU
(card.py); elsewhere there are no cards, and only names can be looked at.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any, List, Tuple

import torch
import torch.distributed

calls: List[Tuple[Any, ...]] = []  # everything that was asked of the runtime, in order
CARDS = int(os.environ.get("STANDIN_CARDS", "8"))
if "ASCEND_RT_VISIBLE_DEVICES" in os.environ:
    CARDS = sum(0 <= int(card) < CARDS for card in os.environ["ASCEND_RT_VISIBLE_DEVICES"].split(",") if card)
npu = types.ModuleType("torch_npu.npu")
_state = {"device": None}


def _asked(name: str, *facts: Any) -> None:
    calls.append((name, *facts))
    if _state["device"] is None:
        raise RuntimeError(f"torch.npu.{name} before torch.npu.set_device")


class _Settings:
    """A group of switches: what they are set to is written down."""

    def __init__(self, name: str, **values: Any) -> None:
        self.__dict__.update(values, _name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError(f"torch.npu.{self._name} has no setting {name}")
        _asked(f"{self._name}.{name}", value)
        self.__dict__[name] = value


def _say(text: str) -> None:
    sys.stdout.write(f"torch_npu stand-in: {text}\n")  # in one piece: several processes share the pipe
    sys.stdout.flush()


def _set_device(index: int) -> None:
    if not isinstance(index, int) or not 0 <= index < CARDS:
        raise RuntimeError(f"invalid device ordinal {index}: {CARDS} cards are visible")
    _state["device"] = index
    calls.append(("set_device", index))
    wanted = os.environ.get("STANDIN_SAY_ENV", "").split()
    if wanted:
        values = " ".join(f"{name}={os.environ.get(name)}" for name in wanted)
        _say(f"set_device({index}) {values}")


def _set_compile_mode(*, jit_compile: bool) -> None:
    _asked("set_compile_mode", jit_compile)


def _current_device() -> int:
    index = _state["device"]
    if index is None:
        raise RuntimeError("torch.npu.current_device before torch.npu.set_device")
    return index


def _scaler(*args: Any, **kwargs: Any) -> Any:
    _asked("amp.GradScaler")
    return torch.amp.GradScaler("npu", *args, **kwargs)


def _get_rng_state(device: Any = "npu") -> torch.Tensor:
    _asked("get_rng_state")
    return torch.get_rng_state()  # the card's numbers are drawn by the CPU


def _set_rng_state(new_state: torch.Tensor, device: Any = "npu") -> None:
    _asked("set_rng_state")
    torch.set_rng_state(new_state)


npu.is_available = lambda: CARDS > 0
npu.device_count = lambda: CARDS
npu.is_initialized = lambda: _state["device"] is not None
npu._is_in_bad_fork = lambda: False
npu.set_device = _set_device
npu.current_device = _current_device
npu.set_compile_mode = _set_compile_mode
npu.config = _Settings("config", allow_internal_format=True)
npu.matmul = _Settings("matmul", allow_hf32=False)
npu.conv = _Settings("conv", allow_hf32=True)
npu.manual_seed_all = lambda seed: None
npu.get_rng_state, npu.set_rng_state = _get_rng_state, _set_rng_state
npu.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
npu.is_bf16_supported = lambda: True
npu.get_device_name = lambda device=None: _asked("get_device_name") or "Ascend910B (a stand-in)"
npu.synchronize = lambda device=None: _asked("synchronize")
npu.empty_cache = lambda: _asked("empty_cache")
npu.max_memory_allocated = lambda device=None: _asked("max_memory_allocated") or 0
npu.reset_peak_memory_stats = lambda device=None: _asked("reset_peak_memory_stats")
npu.amp = types.SimpleNamespace(GradScaler=_scaler)

_join = torch.distributed.init_process_group


def _join_by_gloo(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
    """HCCL is asked for, gloo does the work: the card's tensors hold numbers of the CPU."""
    calls.append(("init_process_group", backend))
    _say(f"init_process_group({backend!r}) on card {_state['device']}")
    return _join("gloo" if backend == "hccl" else backend, *args, **kwargs)


torch.distributed.init_process_group = _join_by_gloo
_reduce = torch.distributed.all_reduce


def _reduce_as_hccl(tensor: Any, op: Any = torch.distributed.ReduceOp.SUM, *args: Any, **kwargs: Any) -> Any:
    if op == torch.distributed.ReduceOp.AVG:
        raise TypeError("all_reduce: HCCL has no average")
    return _reduce(tensor, op, *args, **kwargs)


torch.distributed.all_reduce = _reduce_as_hccl

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 10):
    from torch_npu import card

    card.register(npu)
else:
    CARDS = 0
    torch.npu = npu
