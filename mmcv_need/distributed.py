"""Drop-in for mmcv 1.7.2's ``mmcv/parallel/distributed.py``: MMDistributedDataParallel for every PyTorch from 1.12 on.

PyTorch 2.1 removed the replica attributes that the stock file reads. Here each step goes through PyTorch's own
``forward``, which prepares the reduction of gradients in every version; only the method that it calls is chosen here:
the module's ``forward``, ``train_step`` or ``val_step``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, List, Tuple

from mmcv.parallel.scatter_gather import ScatterInputs, scatter_kwargs
from torch.nn.parallel.distributed import DistributedDataParallel


class MMDistributedDataParallel(DistributedDataParallel):
    """DDP whose inputs may be DataContainers and whose module has ``train_step`` and ``val_step``.

    Constructed like DistributedDataParallel. On the CPU (``device_ids`` None) DataContainers are unpacked too.
    """

    _entry = "forward"  # the module's method that the current step calls

    def to_kwargs(self, inputs: ScatterInputs, kwargs: ScatterInputs, device_id: int) -> Tuple[tuple, tuple]:
        """Move ``inputs`` and ``kwargs`` to one device (-1: CPU) and unpack DataContainers. Returns tuples of one."""
        return scatter_kwargs(inputs, kwargs, [device_id], dim=self.dim)

    def scatter(self, inputs: ScatterInputs, kwargs: ScatterInputs, device_ids: List[int]) -> Tuple[tuple, tuple]:
        """Split ``inputs`` and ``kwargs`` along ``dim`` for several devices."""
        return scatter_kwargs(inputs, kwargs, device_ids, dim=self.dim)

    def train_step(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run ``module.train_step`` as this process's part of a distributed step."""
        return self._step("train_step", inputs, kwargs)

    def val_step(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run ``module.val_step`` as this process's part of a distributed step."""
        return self._step("val_step", inputs, kwargs)

    def _step(self, entry: str, inputs: Tuple[Any, ...], kwargs: dict) -> Any:
        self._entry = entry
        try:
            # not self(...): a subclass's forward is for forward alone, and so are the hooks of a call
            return DistributedDataParallel.forward(self, *inputs, **kwargs)
        finally:
            self._entry = "forward"

    def _run_ddp_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the chosen method; PyTorch calls this inside its own ``forward``."""
        if self.device_ids:
            parts = self.to_kwargs(inputs, kwargs, self.device_ids[0])
        elif self.device_type == "cpu":
            parts = self.to_kwargs(inputs, kwargs, -1)
        else:
            parts = (inputs,), (kwargs,)
        run = self.module if self._entry == "forward" else getattr(self.module, self._entry)
        # PyTorch 2 marks this stretch, so that a compiled module is cut along the buckets of its gradients
        with getattr(self, "_inside_ddp_forward", nullcontext)():
            return run(*parts[0][0], **parts[1][0])
