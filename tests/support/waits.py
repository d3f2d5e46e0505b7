"""What a device would be waited for at: notes of the calls that read a tensor's value."""

from __future__ import annotations

import contextlib
from typing import Any, List

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# what a device has to be waited for: values that Python or the size of a result depends on, and lists made tensors
OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "_unique2", "equal")


FUNCTIONS = (torch.tensor, torch.as_tensor, Tensor.tolist, Tensor.cpu)


class Waits:
    """Notes, within, what a device would be waited for at."""

    def __init__(self) -> None:
        self.found: List[str] = []

    def __enter__(self) -> Waits:
        self._modes = contextlib.ExitStack()
        self._modes.enter_context(_Functions(self))
        self._modes.enter_context(_Operators(self))
        return self

    def __exit__(self, *_: Any) -> None:
        self._modes.close()


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in OPERATORS or by_mask:
            self._waits.found.append(name)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FUNCTIONS:
            self._waits.found.append(func.__name__)
        return func(*args, **(kwargs or {}))
