"""NpuFusedAdamW with its documented traps made errors."""

from __future__ import annotations

import warnings
from typing import Any, Dict, Optional

import torch
from torch import Tensor


class NpuFusedAdamW(torch.optim.AdamW):
    """PyTorch's AdamW on tensors of the card; gradients are packed at the first clip or step and must stay theirs."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        self._packed: Optional[Dict[int, Tensor]] = None
        self._stepped = False
        if len(self.param_groups) > 8:
            warnings.warn(f"{len(self.param_groups)} groups: nothing is fused across them", stacklevel=2)
        for parameter in self._all():
            if parameter.device.type != "npu":
                raise RuntimeError("npu_get_format: the parameter is not on an NPU")

    def _all(self) -> Any:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def _pack(self) -> None:
        if self._packed is None:
            self._packed = {}
            for parameter in self._all():
                if parameter.grad is None:
                    raise RuntimeError("a parameter has no gradient when they are packed: it would never be updated")
                if parameter.grad.dtype not in (torch.float32, torch.float16):
                    raise TypeError(f"{parameter.grad.dtype} is not supported")
                self._packed[id(parameter)] = parameter.grad
        for parameter in self._all():
            if parameter.grad is not self._packed[id(parameter)]:
                raise RuntimeError("a gradient was replaced after they were packed")

    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        super().zero_grad(set_to_none=False)

    def clip_grad_norm_fused_(self, max_norm: float, norm_type: float = 2) -> Tensor:
        self._pack()
        gradients = [parameter.grad for parameter in self._all()]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, norm_type) for g in gradients]))
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    def step(self, closure: Any = None) -> Any:
        self._pack()
        self._stepped = True
        return super().step(closure)

    def state_dict(self) -> Dict[str, Any]:
        content = super().state_dict()
        state = {k: {**v, "step": int(v["step"])} if "step" in v else v for k, v in content["state"].items()}
        return {**content, "state": state}

    def load_state_dict(self, content: Dict[str, Any]) -> None:
        if self._stepped:
            raise RuntimeError("load the state before the first step")
        for values in content["state"].values():
            if not isinstance(values["step"], int):
                raise TypeError(f"step is a {type(values['step']).__name__}; it is counted in Python")
        super().load_state_dict(content)
