"""A learning rate that falls along a cosine after a linear warm-up, with the interface of timm's CosineLRScheduler.

Written from its documented arguments, for scripts where timm is not installed.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List

import torch

from tpvformer.errors import ConfigError


class CosineLRScheduler:
    """Set the rates of an optimizer's groups from their rates when this is made.

    t_initial: length of the first cycle, in epochs, or in updates unless ``t_in_epochs``; lr_min: the lowest rate;
    warmup_t: length of the warm-up, which rises from ``warmup_lr_init`` to the rate; warmup_prefix: the cosine begins
    after the warm-up, rather than at its beginning; cycle_mul, cycle_decay: factors of length and height of each
    further cycle; cycle_limit: the number of cycles, after which the rate stays at ``lr_min``; k_decay: the exponent of
    the time within a cycle. Noise is refused: ConfigError.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        t_initial: int,
        lr_min: float = 0.0,
        cycle_mul: float = 1.0,
        cycle_decay: float = 1.0,
        cycle_limit: int = 1,
        warmup_t: int = 0,
        warmup_lr_init: float = 0,
        warmup_prefix: bool = False,
        t_in_epochs: bool = True,
        noise_range_t: Any = None,
        noise_pct: float = 0.67,
        noise_std: float = 1.0,
        noise_seed: int = 42,
        k_decay: float = 1.0,
        initialize: bool = True,
    ) -> None:
        if noise_range_t is not None:
            raise ConfigError("CosineLRScheduler: noise_range_t is not supported here; pip install timm")
        self.optimizer, self.t_initial, self.lr_min = optimizer, t_initial, lr_min
        self.cycle_mul, self.cycle_decay, self.cycle_limit = cycle_mul, cycle_decay, cycle_limit
        self.warmup_t, self.warmup_lr_init, self.warmup_prefix = warmup_t, warmup_lr_init, warmup_prefix
        self.t_in_epochs, self.k_decay = t_in_epochs, k_decay
        for group in optimizer.param_groups:
            if initialize:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError("initial_lr")
        self.base_values: List[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self._set([warmup_lr_init] * len(self.base_values) if warmup_t else self.base_values)

    def step(self, epoch: int, metric: Any = None) -> None:
        """Set the rates after an epoch, if time is counted in epochs."""
        if self.t_in_epochs:
            self._set(self._rates(epoch))

    def step_update(self, num_updates: int, metric: Any = None) -> None:
        """Set the rates after an update, if time is counted in updates."""
        if not self.t_in_epochs:
            self._set(self._rates(num_updates))

    def get_cycle_length(self, cycles: int = 0) -> int:
        """Return the length of all cycles, with a warm-up that comes before them."""
        cycles = max(1, cycles or self.cycle_limit)
        if self.cycle_mul == 1.0:
            length = self.t_initial * cycles
        else:
            length = int(math.floor(-self.t_initial * (self.cycle_mul**cycles - 1) / (1 - self.cycle_mul)))
        return length + (self.warmup_t if self.warmup_prefix else 0)

    def state_dict(self) -> Dict[str, Any]:
        """Return everything but the optimizer."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        vars(self).update(state_dict)

    def _rates(self, t: int) -> List[float]:
        if t < self.warmup_t:
            low = self.warmup_lr_init
            return [low + t * (base - low) / self.warmup_t for base in self.base_values]
        t -= self.warmup_t if self.warmup_prefix else 0
        cycle, length, begun = 0, float(self.t_initial), 0.0
        while t - begun >= length and cycle < self.cycle_limit:
            begun, cycle, length = begun + length, cycle + 1, length * self.cycle_mul
        if cycle >= self.cycle_limit:
            return [self.lr_min] * len(self.base_values)
        height = self.cycle_decay**cycle
        share = (t - begun) ** self.k_decay / length**self.k_decay
        down = 0.5 * (1 + math.cos(math.pi * share))
        return [self.lr_min + (base * height - self.lr_min) * down for base in self.base_values]

    def _set(self, rates: List[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate * group.get("lr_scale", 1)
