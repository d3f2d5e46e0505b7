"""Build AdamW over parameter groups, the backbone's and the rest's, and run its steps."""

from __future__ import annotations

from itertools import islice
from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor, nn

from tpvformer.config import OptimConfig
from tpvformer.engine.device.accelerator import adamw, gradient_scaler
from tpvformer.engine.optim.groups import groups_of


def build_optimizer(model: nn.Module, cfg: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on every trainable parameter, including norms, biases and embeddings.

    Group 0 holds all parameters outside ``model.backbone``, group 1 those of the backbone; ``groups_of`` divides them
    further where parts have their own rates. Frozen parameters are in no group. The reference has one group for each
    tensor. Parameters with the same rate and decay are updated identically in one group, and fused optimisers fuse
    within a group.
    """
    kind, options = adamw(device)
    common: Dict[str, Any] = {"lr": cfg.lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": cfg.weight_decay}
    return kind(groups_of(model, cfg), **common, **options)


def keeps_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimiser packs all gradients into one buffer: then they may be zeroed, but not replaced."""
    return hasattr(optimizer, "clip_grad_norm_fused_")


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients together to a 2-norm of at most ``max_norm``; return the norm before, on the device."""
    fused: Optional[Callable[..., Tensor]] = getattr(optimizer, "clip_grad_norm_fused_", None)
    if fused is not None:
        return fused(max_norm)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm)


class Stepper:
    """Run the optimiser's steps: zero gradients, one or more backward passes, update. With fp16 the loss is scaled."""

    def __init__(self, model: nn.Module, cfg: OptimConfig, device: torch.device, precision: str = "fp32") -> None:
        self.optimizer = build_optimizer(model, cfg, device)
        self.scaler: Optional[Any] = gradient_scaler(device) if precision == "fp16" else None
        self._clip_norm = cfg.clip_norm
        self._packs = keeps_gradients(self.optimizer)

    def zero_grad(self) -> None:
        """Zero the gradients, before the first backward pass of a step."""
        self.optimizer.zero_grad(set_to_none=not self._packs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self) -> Tensor:
        """Clip and step; return the norm before clipping."""
        norm = self.clip()
        self.step()
        return norm

    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before clipping."""
        if self._packs:
            self._complete_gradients()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return clip_gradients(self.optimizer, self._clip_norm)

    def step(self) -> None:
        """Update the weights. With fp16, a step whose gradients overflowed is skipped."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def step_changed(self) -> bool:
        """Update the weights as ``step`` does; return whether they changed. With fp16 this waits for the device."""
        if self.scaler is None:
            self.step()
            return True
        before = self.scaler.get_scale()
        self.step()
        return self.scaler.get_scale() >= before  # it is lowered after an overflow

    def skip(self) -> None:
        """Skip the step, after ``clip``: the weights do not change."""
        self.zero_grad()
        if self.scaler is not None:
            self.scaler.update()

    def _complete_gradients(self) -> None:
        """Give parameters without a gradient one of zeros, because a packing optimiser never updates them otherwise."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)


def portable_state(optimizer: torch.optim.Optimizer) -> Dict[str, Any]:
    """Return the optimiser's state in PyTorch's format, whichever AdamW is in use: step counts are tensors."""
    content = optimizer.state_dict()
    state = {
        key: {name: _as_tensor(value) if name == "step" else value for name, value in values.items()}
        for key, values in content["state"].items()
    }
    return {**content, "state": state}


def _as_tensor(step: Any) -> Tensor:
    return step if isinstance(step, Tensor) else torch.tensor(float(step))


def load_portable_state(optimizer: torch.optim.Optimizer, content: Dict[str, Any]) -> None:
    """Load a state of ``portable_state``, before the first step. Raises ValueError if it does not fit.

    The groups are this optimiser's; those of the file may have been divided otherwise (``groups_of``).
    """
    places = iter([place for group in content["param_groups"] for place in group["params"]])
    own = optimizer.state_dict()["param_groups"]
    content = {**content, "param_groups": [{**g, "params": list(islice(places, len(g["params"])))} for g in own]}
    if keeps_gradients(optimizer):  # this optimiser counts steps with Python integers
        state = {
            key: {name: int(value) if name == "step" else value for name, value in values.items()}
            for key, values in content["state"].items()
        }
        content = {**content, "state": state}
    optimizer.load_state_dict(content)
