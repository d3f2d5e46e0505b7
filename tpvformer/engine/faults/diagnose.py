"""Find where numbers stop being finite: run the samples of a bad step again, one by one, with hooks on every module."""

from __future__ import annotations

from typing import Any, Iterable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from tpvformer.config import Config
from tpvformer.data.images.preprocess import network_images
from tpvformer.data.types import Batch
from tpvformer.engine.device.compile import uncompiled
from tpvformer.engine.forward import predict
from tpvformer.engine.losses import total_loss

FINITE_AGAIN = "give finite numbers"


def diagnose(model: nn.Module, batches: Iterable[Batch], config: Config) -> str:
    """Return one sentence that names the first weight, input, module or gradient that is not finite.

    ``model`` is the bare module. Its gradients are deleted, its running statistics do not change. ``batches`` are those
    of the bad step. Dropout uses new random numbers, so a number that is infinite under one draw only may not be found
    again.
    """
    damaged = _damaged(model)
    if damaged:
        return f"the weights are not finite already: {damaged}"
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    compiled = uncompiled(model)  # hooks do not run inside a compiled network
    try:
        for batch in batches:
            found = _first(model, batch, config)
            if found:
                return found
    finally:
        for name, part in compiled:
            setattr(model, name, part)
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
        for parameter in model.parameters():
            parameter.grad = None
    return f"the same samples {FINITE_AGAIN} when they are run again"


def _damaged(model: nn.Module) -> str:
    """Return the names of non-finite tensors of the state dict as text; empty if all are finite."""
    names = [name for name, value in model.state_dict().items() if not _finite(value)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _first(model: nn.Module, batch: Batch, config: Config) -> str:
    samples = ", ".join(batch.tokens)
    if not _finite(network_images(batch, config.data)):
        return f"the images of sample {samples} are not finite after preprocessing"
    if not _finite(batch.grid2img):
        return f"the calibration of sample {samples} is not finite"
    model.zero_grad(set_to_none=True)
    with _Watch(model) as watch:
        loss = total_loss(predict(model, batch, config), batch, config.loss, config.data, config.model.grid)
        if watch.module:
            return f"module {watch.module} is the first whose output is not finite, for sample {samples}"
        if not _finite(loss):
            return f"all modules give finite numbers but the loss is {float(loss)}, for sample {samples}"
        loss.backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    if not names:
        return ""
    first = watch.gradient or names[-1]  # backward reaches the last parameter first
    return (
        f"outputs and loss are finite, the gradient is not: in the backward pass that of {first} is the first, "
        f"{len(names)} parameters in all, for sample {samples}"
    )


class _Watch:
    """Note the first module with a non-finite output, and the first parameter with a non-finite gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.module, self.gradient = "", ""
        self._model = model
        self._handles: List[Any] = []

    def __enter__(self) -> _Watch:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_hook(self._forward(name or "the whole model")))
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._backward(name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Tuple[Any, ...], output: Any) -> None:
            if not self.module and not all(_finite(tensor) for tensor in _tensors(output)):
                self.module = name  # inner modules return before outer ones

        return hook

    def _backward(self, name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if not self.gradient and not _finite(gradient):
                self.gradient = name

        return hook


def _tensors(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _finite(tensor: Optional[Tensor]) -> bool:
    return tensor is None or not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
