"""Keep an exponential moving average (EMA) of the weights over the optimiser's steps.

After update n, counted from 0, with the weights w of that step::

    d = min(decay, (1 + n) / (10 + n))       the beginning counts less and less: d is 0.1, 0.18, 0.25, ...
    average = d average + (1 - d) w

An average over steps is what Polyak and Juditsky (SIAM J. Control Optim. 30, 1992) proposed; the warm-up of d is that
of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Generator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class WeightAverage:
    """Hold the average of a model's weights in float32, beside the weights.

    Averaged are the parameters that learn, and the running mean and variance of batch norms that are not frozen: they
    describe the features of the weights that are averaged. Everything else (frozen parts, counters) is the model's own
    and takes neither time nor memory. Each process averages for itself; the weights are the same in all of them, and of
    the statistics those of process 0 count (``share_buffers``).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._live = averaged_tensors(model)
        self._decay = decay
        self._mean = {name: live.detach().clone().float() for name, live in self._live.items()}
        self.updates = 0

    @property
    def nbytes(self) -> int:
        """Return the memory that the average takes, in bytes."""
        return sum(mean.nbytes for mean in self._mean.values())

    @torch.no_grad()
    def begin(self) -> None:
        """Start again from the model's present weights."""
        self.updates = 0
        for name, live in self._live.items():
            self._mean[name].copy_(live)

    @torch.no_grad()
    def update(self) -> None:
        """Count the present weights in; call it after each step that changed them."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, live in self._live.items():
            self._mean[name].lerp_(live.float(), 1 - decay)

    def state(self) -> Dict[str, Any]:
        """Return the state for ``restore``; its tensors are those in use."""
        return {"updates": self.updates, "state_dict": dict(self._mean)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state``. Raises ValueError if it does not fit this model."""
        stored = state["state_dict"]
        strange = [name for name, mean in self._mean.items() if getattr(stored.get(name), "shape", None) != mean.shape]
        strange += [name for name in stored if name not in self._mean]
        if strange:
            raise ValueError(f"its average of the weights (ema) has not the tensors of this run, as for {strange[0]}")
        for name, mean in self._mean.items():
            mean.copy_(stored[name])
        self.updates = state["updates"]

    @contextmanager
    def applied(self) -> Generator[None, None, None]:
        """Give the model the average for a while; afterwards it has its own weights again, to the bit."""
        kept = {name: live.detach().clone() for name, live in self._live.items()}
        try:
            self._fill(self._mean)
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(values[name])


def averaged_tensors(model: nn.Module) -> Dict[str, Tensor]:
    """Return the tensors of a model in training mode that are averaged, by their names in the state dict."""
    found: Dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            statistics = {"running_mean": module.running_mean, "running_var": module.running_var}
            found.update({f"{path}.{name}": value for name, value in statistics.items() if value is not None})
    return found
