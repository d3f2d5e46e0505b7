"""Choose the backend for a tensor: Numba on the CPU, Triton on CUDA, the Driving SDK on an NPU, else the oracle."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from types import ModuleType
from typing import Any, Dict, Generator, List, Optional

import torch
from torch import Tensor

from tpvformer.errors import OpsError
from tpvformer.ops import library, npu, reference, static
from tpvformer.ops.asked import REFERENCE, SERVES, asked, misfit
from tpvformer.runtime import compiling

VENDOR = npu.BACKEND  # whole operations with their own gradients
VENDOR_DEVICE = SERVES[VENDOR]
BACKENDS = {name: device for name, device in SERVES.items() if name != VENDOR}  # kernels of ``library``
_static: List[bool] = []  # not empty inside ``static_shapes``
_problems: Dict[str, Optional[str]] = {}  # backend -> why it is not available, or None; filled on demand


def use_kernel(table: Dict[str, ModuleType], x: Tensor, *case: Any) -> bool:
    """Return whether the kernels of ``table`` support x in this case (arguments of their ``supports``).

    The table is filled on demand. float64 always uses the oracle. Raises OpsError if TPVFORMER_OPS forces a backend
    that does not support x.
    """
    if _static:
        return False
    forced, device = asked(), x.device.type
    if forced == REFERENCE or x.dtype == torch.float64:
        return False
    if forced is not None and SERVES[forced] != device:
        raise OpsError(misfit(device))
    for name, kind in BACKENDS.items():
        if kind == device:
            problem = _load(name)
            if problem is not None and forced is not None:
                raise OpsError(f"TPVFORMER_OPS={forced} is set, but its kernels are not available: {problem}")
            serves = problem is None and table[device].supports(x, *case)
            if not serves and forced is not None:
                about = f"{x.dtype} of shape {tuple(x.shape)}" + "".join(f", {word}" for word in case)
                raise OpsError(f"TPVFORMER_OPS={forced} is set, but its kernels do not support {about}")
            return serves
    return False


def use_elementwise(x: Tensor) -> bool:
    """Return whether x's backend has kernels for what follows convolutions (``library.ELEMENTWISE``), and for x."""
    if _static or asked() == REFERENCE or x.dtype == torch.float64:
        return False
    device = x.device.type
    loaded = [_load(name) is None for name, kind in BACKENDS.items() if kind == device]
    return any(loaded) and device in library.ELEMENTWISE and library.ELEMENTWISE[device].supports(x)


def fallback(x: Tensor) -> ModuleType:
    """Return the module that runs operations on x without a kernel of ``library``: the NPU's, or plain PyTorch."""
    if _static:
        return static
    on_card = x.device.type == VENDOR_DEVICE and x.dtype != torch.float64
    return npu if on_card and asked() != REFERENCE else reference


@contextlib.contextmanager
def static_shapes() -> Generator[None, None, None]:
    """Run every operation in the context as plain PyTorch in static shapes (static.py); TPVFORMER_OPS is ignored."""
    _static.append(True)
    try:
        yield
    finally:
        _static.pop()


def kernels(device_type: str) -> Dict[str, Optional[str]]:
    """Return every kernel for tensors of this device, with the reason if it is not available, else None."""
    if device_type == VENDOR_DEVICE:
        missing = npu.find_all()
        return {f"{VENDOR} {name}": missing.get(name) for name in npu.NAMES}
    return {name: _load(name) for name, kind in BACKENDS.items() if kind == device_type}


def _load(backend: str) -> Optional[str]:
    """Register a backend's kernels in ``library``; return why they are not available, or None."""
    if backend not in _problems:
        _problems[backend] = _import(backend)
    return _problems[backend]


setattr(_load, "_dynamo_marked_constant", True)  # noqa: B010 - torch.compile calls it instead of tracing imports


def _import(backend: str) -> Optional[str]:
    package = __name__.rpartition(".")[0]
    try:
        attention = importlib.import_module(f"{package}.{backend}_attention")
        convolution = importlib.import_module(f"{package}.{backend}_dcn")
    except (ImportError, RuntimeError) as err:
        logging.getLogger(__name__).warning(
            "%s kernels are not available (%s); plain PyTorch is used instead", backend, err
        )
        return str(err)
    if backend == "numba":
        compiling.adopt(attention)
        compiling.adopt(convolution)
    if backend == "triton":
        library.ELEMENTWISE[BACKENDS[backend]] = importlib.import_module(f"{package}.{backend}_elementwise")
    library.ATTENTION[BACKENDS[backend]] = attention
    library.CONVOLUTION[BACKENDS[backend]] = convolution
    return None


def _after_fork() -> None:
    """Use plain PyTorch in a forked child: OpenMP aborts a child that starts threads after its parent did."""
    if _problems.get("numba", "") is None:
        _problems["numba"] = "this process was forked from one that had used them; start it by spawn instead"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
