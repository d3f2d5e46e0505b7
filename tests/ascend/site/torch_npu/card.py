"""A device called npu whose tensors hold numbers of the CPU: real training runs on it, and what a card could not do or
would have to be waited for is refused or written down. PyTorch 2.10 or newer.

A tensor of the card is a wrapper without memory of its own; every operation is unwrapped, done by the CPU and wrapped
again, in the backward pass and for what ``device="npu"`` creates too. Operations that mix devices raise, as on a card.
STANDIN_LACKS names operations that the card does not have and leaves to the CPU.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, List, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import torch_npu

aten = torch.ops.aten
# values that Python, or the size of a result, depends on
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "equal", "is_nonzero"}
RESHAPES_IN_PLACE = {"resize_", "transpose_", "squeeze_", "unsqueeze_", "t_", "as_strided_", "set_"}
COLLECTIVE_TYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.bfloat16)


class Event(NamedTuple):
    """Something worth knowing: "wait" for the card, "upload" to it, "double" precision on it, or a "collective"."""

    kind: str
    what: str


events: List[Event] = []


def _as_pytorch_counts(device: torch.device) -> torch.device:
    """The backward pass knows one card of a device made by Python: to PyTorch the process's own is card 0, whichever
    it is. Tensors for a card that was not chosen are refused."""
    own = torch_npu._state["device"]
    if device.index not in (None, 0, own):
        raise RuntimeError(f"a tensor for {device} in a process that has chosen card {own}")
    return torch.device(device.type, 0)


class CardTensor(torch.Tensor):
    """A tensor on the card; ``held`` is its memory."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> CardTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_as_pytorch_counts(device),
        )
        made.held = held
        if held.dtype == torch.float64:
            events.append(Event("double", str(tuple(held.shape))))
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        events.append(Event("wait", "tolist"))
        return self.held.tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"on the card: {self.held!r}"


def on_card(held: Tensor, like: Tensor) -> CardTensor:
    """Memory as a tensor of the card that ``like`` is on."""
    return CardTensor(held, like.device)


def run(func: Any, args: Tuple[Any, ...], kwargs: Any) -> Any:
    """One operation of PyTorch on tensors of the card, or one that makes such tensors."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    cards = [item for item in flat if isinstance(item, CardTensor)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    name, moves = func.overloadpacket.__name__, func in (aten._to_copy.default, aten.copy_.default)
    if not moves:
        _refuse_mixture(func, flat, cards)
    if name in RESHAPES_IN_PLACE:
        raise NotImplementedError(f"{func} on the pretended card")
    if name == "record_stream":
        return None  # memory of the CPU is not reused behind a queue
    if func.namespace == "c10d":
        _check_collective(func, flat, cards)
    by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
    if name in WAITS or by_mask:
        events.append(Event("wait", name))

    if cards and name in os.environ.get("STANDIN_LACKS", "").split(","):
        if os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1":
            raise RuntimeError(f"the operator {func} is not supported on the NPU backend")
        text = f"CAUTION: {func} is not supported on the NPU backend and will fall back to run on the CPU"
        warnings.warn(text, stacklevel=2)
    known = {id(card.held): card for card in cards}
    below_args, below_kwargs = pytree.tree_unflatten([i.held if isinstance(i, CardTensor) else i for i in flat], spec)
    if asked is not None and asked.type != "cpu":
        below_kwargs["device"] = torch.device("cpu")
    below_kwargs.pop("pin_memory", None)
    out = func(*below_args, **below_kwargs)

    if func is aten.copy_.default:
        _note_move(args[1], args[0].device)
        return args[0]
    if func is aten._to_copy.default and asked is not None:
        _note_move(args[0], asked)
        if asked.type == "cpu":
            return out
    device = cards[0].device if cards and (asked is None or asked.type == "cpu") else asked
    assert device is not None

    def wrap(item: Any) -> Any:
        if not isinstance(item, Tensor) or isinstance(item, CardTensor):
            return item
        return known.get(id(item)) if id(item) in known else CardTensor(item, device)

    return pytree.tree_map(wrap, out)


def _refuse_mixture(func: Any, flat: List[Any], cards: List[CardTensor]) -> None:
    places = {card.device for card in cards}
    strangers = [i for i in flat if isinstance(i, Tensor) and not isinstance(i, CardTensor) and i.dim() > 0]
    if cards and (strangers or len(places) > 1):
        found = sorted({str(place) for place in places} | {str(item.device) for item in strangers})
        raise RuntimeError(f"{func}: expected all tensors on one device, found {' and '.join(found)}")


def _note_move(source: Any, target: torch.device) -> None:
    if isinstance(source, CardTensor) and target.type == "cpu":
        events.append(Event("wait", "copy to the CPU"))
    elif not isinstance(source, CardTensor) and target.type != "cpu" and source.dim() > 0:
        events.append(Event("upload", f"{tuple(source.shape)}"))


def _check_collective(func: Any, flat: List[Any], cards: List[CardTensor]) -> None:
    """HCCL's limits: it knows no float64, uint8 or bool (and no average, which __init__.py refuses)."""
    wrong = [card.dtype for card in cards if card.dtype not in COLLECTIVE_TYPES]
    if wrong:
        raise TypeError(f"{func}: HCCL does not exchange {wrong[0]}")
    events.append(Event("collective", func.overloadpacket.__name__))


def _register_autocast(everything: Any, some: Any) -> None:
    """Convolutions and products run in the type that ``torch.autocast("npu")`` asks for; the rest is let through."""
    key = torch._C.DispatchKey.AutocastPrivateUse1
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

    def reduced(operator: Any) -> Any:
        def run_reduced(*args: Any) -> Any:
            kind = torch.get_autocast_dtype("npu")
            lower = [a.to(kind) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return operator(*lower)

        return run_reduced

    for name, operator in (("conv2d", aten.conv2d.default), ("linear", aten.linear.default)):
        some.impl(name, reduced(operator), "AutocastPrivateUse1")


_kept: List[Any] = []  # registrations last as long as these


def register(backend: Any) -> None:
    """Give PyTorch the device ``npu``; ``backend`` becomes ``torch.npu``. Once a process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("npu", backend)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
    # torch.tensor(..., device="npu") reaches these below the level at which a fallback can be found
    some = torch.library.Library("aten", "IMPL")
    place = torch.device("npu", 0)

    def empty_strided(
        size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
    ) -> Any:
        return CardTensor(torch.empty_strided(size, stride, dtype=dtype), torch.device(device or place))

    def empty(
        size: Any,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        pin_memory: Any = None,
        memory_format: Any = None,
    ) -> Any:
        layout = memory_format or torch.contiguous_format
        return CardTensor(torch.empty(size, dtype=dtype, memory_format=layout), torch.device(device or place))

    def copy_(target: Any, source: Any, non_blocking: bool = False) -> Any:
        return run(aten.copy_.default, (target, source, non_blocking), {})

    some.impl("empty_strided", empty_strided, "PrivateUse1")
    some.impl("empty.memory_format", empty, "PrivateUse1")
    some.impl("copy_", copy_, "PrivateUse1")
    _register_autocast(everything, some)
    torch.Tensor.pin_memory = lambda self, device=None: self
    _kept.extend([everything, some])
