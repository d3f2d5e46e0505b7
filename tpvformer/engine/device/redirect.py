"""Make a program that was written for CUDA run on a processor or an NPU, for ``tpvformer run``.

Nothing of the program is edited. In this process, from ``redirect`` on, PyTorch takes names of CUDA devices, nccl and
the functions of ``torch.cuda`` for those of the device that is there. It cannot be undone.
"""

from __future__ import annotations

import functools
import os
import time
from types import ModuleType
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.distributed
from torch import nn
from torch.overrides import TorchFunctionMode

from tpvformer.engine.device.accelerator import (
    collective_backend,
    device_name,
    device_random_state,
    pick_device,
    set_device_random_state,
    synchronize,
    visible_cards,
)
from tpvformer.engine.device.names import KINDS, read_name
from tpvformer.errors import ConfigError

Remark = Callable[[str], None]
_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Byte", "Char", "Bool")
_COUNTERS = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


class Cards(NamedTuple):
    """The kind of device that a program runs on, and how many cards it is told of."""

    kind: str
    count: int


def find_cards(name: str, pretended: Optional[int] = None, least: int = 1) -> Cards:
    """Return the device for a name of ``names.ACCEPTED``. ``pretended``: the count on a processor, else ``least``.

    Raises ConfigError for a device that no program was tried on, and for ``pretended`` where there are cards.
    """
    asked = read_name(name)
    count = visible_cards(name)
    kind = asked.kind
    if kind == "auto":
        kind = next(kind for kind in KINDS if kind == "cpu" or visible_cards(kind))
    if kind not in KINDS:
        raise ConfigError(f"device {name}: no script of others was tried on it; expected one of {', '.join(KINDS)}")
    if kind != "cpu" and not count:
        pick_device(name)  # raises, with the reason
    if kind != "cpu" and pretended is not None:
        raise ConfigError(f"--cards is for a processor; here are {count} of {kind}, which ASCEND_RT_VISIBLE_DEVICES "
                          "or CUDA_VISIBLE_DEVICES can hide")  # fmt: skip
    return Cards(kind, (pretended or least) if kind == "cpu" else count)


def not_redirected(message: str) -> Optional[str]:
    """Return a sentence for the error of a call that asks CUDA itself; None for another error."""
    if not any(
        part in message for part in ("not compiled with CUDA", "NVIDIA driver", "No CUDA GPUs", "initialize CUDA")
    ):
        return None
    return "the call above asks CUDA itself, which is not here; what is redirected: docs/fork.md"


class _Here:
    """The device of this process: the card that the program chose, else that of LOCAL_RANK, chosen when first used."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._device: Optional[torch.device] = None

    def device(self) -> torch.device:
        if self._device is None:
            self.choose(int(os.environ.get("LOCAL_RANK", "0")))
        assert self._device is not None
        return self._device

    def choose(self, index: int) -> None:
        name = self.kind if self.kind == "cpu" else f"{self.kind}:{index}"
        if self._device is None or self.kind != "cpu":
            self._device, _ = pick_device(name)

    def runtime(self) -> Optional[ModuleType]:
        return None if self.kind == "cpu" else getattr(torch, self.kind)


class _Redirected(TorchFunctionMode):
    """Exchanges CUDA devices in the arguments of PyTorch's functions."""

    def __init__(self, here: _Here) -> None:
        super().__init__()
        self.here = here

    def __torch_function__(self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0].to(self.here.device())
        if func is torch.Tensor.pin_memory and self.here.kind == "cpu":
            return args[0]
        kind = _of_type(args[1]) if func is torch.Tensor.type and len(args) > 1 else None
        if kind is not None:
            return args[0].to(self.here.device(), kind)
        if _is_foreign(kwargs.get("device")):
            kwargs = {**kwargs, "device": self.here.device()}
        if func is torch.Tensor.to and len(args) > 1 and (_is_foreign(args[1]) or type(args[1]) is int):
            args = (args[0], self.here.device(), *args[2:])
        return func(*args, **kwargs)


def _is_foreign(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


def _of_type(name: object) -> Optional[torch.dtype]:
    """Return the dtype of a CUDA tensor type, or of its name; None for anything else."""
    module, _, kind = (name if isinstance(name, str) else _named(name)).rpartition(".")
    return getattr(torch, kind).dtype if module == "torch.cuda" and kind.endswith("Tensor") else None


def _named(kind: object) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__name__', '')}"


def redirect(cards: Cards, remark: Remark, chosen: Optional[int] = None) -> None:
    """Redirect this process to ``cards``, once; where they are CUDA's, do nothing. ``remark`` gets one line each.

    ``chosen``: the number of the card that this process uses already; None: LOCAL_RANK's, until a program chooses.
    """
    if cards.kind == "cuda":
        return
    if cards.kind != "cpu":
        visible_cards(cards.kind)  # a spawned process has not imported what they need
    here = _Here(cards.kind)
    if chosen is not None:
        here.choose(chosen)
    _Redirected(here).__enter__()  # and never left
    for name, function in _functions(cards, here).items():
        setattr(torch.cuda, name, function)
    _redirect_processes(here, remark)
    _redirect_files(here)
    if cards.kind == "cpu":
        _redirect_norms(remark)


def _functions(cards: Cards, here: _Here) -> Dict[str, Any]:
    """Return what takes the place of names of ``torch.cuda``."""
    runtime, on_cpu = here.runtime(), cards.kind == "cpu"

    def delegated(name: str, otherwise: Any) -> Any:
        return getattr(runtime, name, otherwise)

    found: Dict[str, Any] = {
        "is_available": lambda: not on_cpu,  # on a processor programs and mmcv then take their own way for it
        "device_count": lambda: cards.count,
        "set_device": lambda device: here.choose(
            torch.device(device).index or 0 if type(device) is not int else device
        ),
        "current_device": lambda: here.device().index or 0,
        "synchronize": lambda *_: synchronize(here.device()),
        "get_device_name": lambda *_: device_name(here.device()),
        "get_device_capability": lambda *_: (0, 0),
        "get_rng_state": lambda *_: torch.get_rng_state() if on_cpu else device_random_state(here.device()),
        "set_rng_state": lambda state, *_: None if on_cpu else set_device_random_state(here.device(), state),
        "empty_cache": delegated("empty_cache", lambda: None),
        "reset_peak_memory_stats": delegated("reset_peak_memory_stats", lambda *_: None),
        "manual_seed_all": delegated("manual_seed_all", lambda seed: None),
        "manual_seed": delegated("manual_seed_all", lambda seed: None),
        "Event": delegated("Event", _Event),
    }
    found.update({name: delegated(name, lambda *_: 0) for name in _COUNTERS})
    if on_cpu:
        found.update({f"{name}Tensor": getattr(torch, f"{name}Tensor") for name in _TYPES})
    return found


def _number(device: Any) -> int:
    """Return the number of a card that is named as torch.cuda.set_device takes it."""
    return device if isinstance(device, int) else torch.device(device).index or 0


class _Event:
    """Times between two records; a processor has done its work when a call returns."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._at = 0.0

    def record(self, *_: Any) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, end: "_Event") -> float:
        """Return milliseconds."""
        return 1000 * (end._at - self._at)

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return that the work is done."""
        return True


def _redirect_processes(here: _Here, remark: Remark) -> None:
    """Let process groups and DistributedDataParallel take the backend and the devices that are here."""
    backend = collective_backend(torch.device(here.kind))

    def renamed(make: Callable[..., Any], place: int) -> Callable[..., Any]:
        @functools.wraps(make)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = list(args)
            asked = given[place] if len(given) > place else kwargs.get("backend")
            if isinstance(asked, str) and "nccl" in asked.lower():
                remark(f"{asked} is asked for; {backend} exchanges between processes here")
                if len(given) > place:
                    given[place] = backend
                else:
                    kwargs["backend"] = backend
            if here.kind == "cpu":
                kwargs.pop("device_id", None)
            return make(*given, **kwargs)

        return run

    for name, place in (("init_process_group", 0), ("new_group", 2)):
        made = renamed(getattr(torch.distributed, name), place)
        for module in (torch.distributed, torch.distributed.distributed_c10d):
            setattr(module, name, made)
    wrapped = nn.parallel.DistributedDataParallel
    start = wrapped.__init__

    @functools.wraps(start)
    def begin(self: Any, *args: Any, **named: Any) -> None:
        if here.kind == "cpu":  # device_ids and output_device: none
            args = (*args[:1], *(None for _ in args[1:3]), *args[3:])
            named = {name: value for name, value in named.items() if name not in ("device_ids", "output_device")}
        start(self, *args, **named)

    wrapped.__init__ = begin  # ty: ignore[invalid-assignment]  # also what inherits from it, as mmcv's


def _redirect_norms(remark: Remark) -> None:
    def convert(module: nn.Module, process_group: Any = None) -> nn.Module:
        remark("batch norms over all processes are not there on a processor; each process has its own means")
        return module

    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(convert)  # ty: ignore[invalid-assignment]


def _redirect_files(here: _Here) -> None:
    """Let ``torch.load`` read tensors that were saved on a card which is not here: they stay on the processor."""
    load = torch.load

    def place(storage: Any, location: str) -> Any:
        return storage if location.startswith("cuda") else None

    @functools.wraps(load)
    def run(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is None:
            map_location = place
        elif _is_foreign(map_location):
            map_location = here.device()
        return load(f, map_location, *args, **kwargs)

    for module in (torch, torch.serialization):
        setattr(module, "load", run)  # noqa: B010 - not the signature that is declared
