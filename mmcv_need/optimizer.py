"""Drop-in for mmcv 1.7.2's ``mmcv/runner/hooks/optimizer.py``: the four optimizer hooks, with fused clipping.

An optimizer with ``clip_grad_norm_fused_`` (torch_npu's NpuFusedAdamW) clips its own flat gradients; for every other
optimizer PyTorch clips. Only the optimizer's own ``zero_grad`` keeps the flat gradients, so the model's is not called
then. Needs PyTorch 1.6, which introduced gradient scaling; mmcv's hooks for older versions are left out.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, Iterable, List, Optional, Set, Union

import torch
from mmcv.runner.dist_utils import allreduce_grads  # noqa: F401 - others look for it here
from mmcv.runner.fp16_utils import LossScaler, wrap_fp16_model  # noqa: F401
from mmcv.runner.hooks.hook import HOOKS, Hook
from mmcv.utils import IS_NPU_AVAILABLE, _BatchNorm
from torch import Tensor, nn
from torch.nn.utils import clip_grad

if IS_NPU_AVAILABLE:
    GradScaler = torch.npu.amp.GradScaler
elif hasattr(torch.amp, "GradScaler"):  # PyTorch 2.3 on
    GradScaler = torch.amp.GradScaler
else:
    GradScaler = torch.cuda.amp.GradScaler

_FUSED = "clip_grad_norm_fused_"
_FUSED_OPTIONS = {"max_norm", "norm_type"}


def _fuses(runner: Any) -> bool:
    """Tell whether the runner's optimizer has its own clipping. ``hasattr`` finds it where ``vars`` may not."""
    return hasattr(getattr(runner, "optimizer", None), _FUSED)


@HOOKS.register_module()
class OptimizerHook(Hook):
    """Backward pass, clipping and step after each iteration.

    ``grad_clip`` holds the arguments of ``torch.nn.utils.clip_grad_norm_``; None leaves gradients alone.
    ``detect_anomalous_params`` logs trainable parameters that the loss does not depend on; it costs time.
    """

    def __init__(self, grad_clip: Optional[Dict[str, Any]] = None, detect_anomalous_params: bool = False) -> None:
        self.grad_clip = grad_clip
        self.detect_anomalous_params = detect_anomalous_params

    def clip_grads(self, params: Iterable[Tensor], runner: Any = None) -> Optional[Tensor]:
        """Clip in place and return the total norm before; None where there is no gradient.

        With a ``runner`` whose optimizer has a fused clip, the optimizer clips all of its gradients.
        """
        options = self.grad_clip or {}
        with_gradient = [p for p in params if p.requires_grad and p.grad is not None]
        if not with_gradient:
            return None
        if _fuses(runner) and set(options) <= _FUSED_OPTIONS:
            return getattr(runner.optimizer, _FUSED)(**options)
        return clip_grad.clip_grad_norm_(with_gradient, **options)

    def after_train_iter(self, runner: Any) -> None:
        """Zero the gradients, run the backward pass, clip, and take the step."""
        loss = runner.outputs["loss"]
        runner.optimizer.zero_grad()
        if self.detect_anomalous_params:
            self.detect_anomalous_parameters(loss, runner)
        loss.backward()
        self._clip_and_log(runner)
        runner.optimizer.step()

    def detect_anomalous_parameters(self, loss: Tensor, runner: Any) -> None:
        """Log, as errors, the trainable parameters of ``runner.model`` that are not in the graph of ``loss``."""
        reached: Set[int] = set()  # ids of tensors that would get a gradient
        seen: Set[Any] = set()
        waiting: List[Any] = [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                reached.add(id(node.variable))
            waiting.extend(following for following, _ in node.next_functions)
        for name, parameter in runner.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in reached:
                message = f"{name} with shape {tuple(parameter.shape)} is trainable, but the loss does not depend on it"
                runner.logger.log(level=logging.ERROR, msg=message)

    def _clip_and_log(self, runner: Any) -> None:
        if self.grad_clip is None:
            return
        parameters = runner.model.parameters()
        # a subclass's clip_grads may take the parameters alone, as the stock one does
        norm = self.clip_grads(parameters, runner) if _fuses(runner) else self.clip_grads(parameters)
        if norm is not None:
            runner.log_buffer.update({"grad_norm": float(norm)}, runner.outputs["num_samples"])

    @staticmethod
    def _zero_everything(runner: Any) -> None:
        """Zero all gradients, also of parameters in no optimizer, except where that would break flat gradients."""
        if not _fuses(runner):
            runner.model.zero_grad()
        runner.optimizer.zero_grad()


@HOOKS.register_module()
class GradientCumulativeOptimizerHook(OptimizerHook):
    """One step for the gradients of ``cumulative_iters`` iterations; the last step has what remains.

    Losses are divided by the number of iterations that share a step. The other arguments are OptimizerHook's.
    """

    def __init__(self, cumulative_iters: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assert isinstance(cumulative_iters, int) and cumulative_iters > 0, (
            f"cumulative_iters is {cumulative_iters!r}; expected a whole number above 0"
        )
        self.cumulative_iters = cumulative_iters
        self.divisible_iters = 0  # iterations up to here share full steps
        self.remainder_iters = 0  # the others share the last one
        self.initialized = False

    def has_batch_norm(self, module: nn.Module) -> bool:
        """Tell whether ``module`` contains a batch norm, which sees the small batches, not their sum."""
        return any(isinstance(part, _BatchNorm) for part in module.modules())

    def _init(self, runner: Any) -> None:
        """Count the iterations once the runner's number of iterations is known."""
        several = self.cumulative_iters > 1
        if runner.iter % self.cumulative_iters:
            runner.logger.warning(
                f"resumed at iteration {runner.iter}, within {self.cumulative_iters} that share a step: the first step "
                "lacks the gradients that were computed before"
            )
        if several and self.has_batch_norm(runner.model):
            runner.logger.warning("batch norm sees each small batch alone, accumulated gradients may train worse")
        self.remainder_iters = runner.max_iters % self.cumulative_iters
        self.divisible_iters = runner.max_iters - self.remainder_iters
        if self.remainder_iters:
            runner.logger.warning(
                f"the last {self.remainder_iters} iterations are fewer than {self.cumulative_iters}; "
                f"their losses are divided by {self.remainder_iters}"
            )
        self.initialized = True

    def _get_loss_factor(self, runner: Any) -> int:
        """Return how many iterations share the next step."""
        return self.cumulative_iters if runner.iter < self.divisible_iters else self.remainder_iters

    def _shared_loss(self, runner: Any) -> Tensor:
        if not self.initialized:
            self._init(runner)
        return runner.outputs["loss"] / self._get_loss_factor(runner)

    def _is_step(self, runner: Any) -> bool:
        return self.every_n_iters(runner, self.cumulative_iters) or self.is_last_iter(runner)

    def after_train_iter(self, runner: Any) -> None:
        """Backward; at the end of a group also clip, step and zero."""
        self._shared_loss(runner).backward()
        if self._is_step(runner):
            self._clip_and_log(runner)
            runner.optimizer.step()
            runner.optimizer.zero_grad()


@HOOKS.register_module()
class Fp16OptimizerHook(OptimizerHook):
    """Mixed precision: float32 weights, scaled losses.

    ``loss_scale`` is a number (static), "dynamic", or the arguments of GradScaler. ``coalesce``, ``bucket_size_mb`` and
    ``distributed`` are kept for configurations that name them; DistributedDataParallel reduces gradients itself.
    """

    def __init__(
        self,
        grad_clip: Optional[Dict[str, Any]] = None,
        coalesce: bool = True,
        bucket_size_mb: int = -1,
        loss_scale: Union[float, str, Dict[str, Any]] = 512.0,
        distributed: bool = True,
    ) -> None:
        super().__init__(grad_clip)
        self.coalesce = coalesce
        self.bucket_size_mb = bucket_size_mb
        self.distributed = distributed
        self._scale_update_param = None  # a static scale, set again at each update
        if loss_scale == "dynamic":
            self.loss_scaler = GradScaler()
        elif isinstance(loss_scale, (int, float)):
            self._scale_update_param = float(loss_scale)
            self.loss_scaler = GradScaler(init_scale=float(loss_scale))
        elif isinstance(loss_scale, dict):
            self.loss_scaler = GradScaler(**loss_scale)
        else:
            raise ValueError(f'loss_scale is {loss_scale!r}; expected a number, a dict, or "dynamic"')

    def before_run(self, runner: Any) -> None:
        """Turn on mixed precision in the model and restore the scale of a resumed run."""
        wrap_fp16_model(runner.model)
        saved = (getattr(runner, "meta", None) or {}).get("fp16", {}).get("loss_scaler")
        if saved is not None:
            self.loss_scaler.load_state_dict(saved)

    def copy_grads_to_fp32(self, fp16_net: nn.Module, fp32_weights: Iterable[Tensor]) -> None:
        """Copy the gradients of ``fp16_net`` to its float32 copies."""
        for master, parameter in zip(fp32_weights, fp16_net.parameters()):
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = torch.empty_like(master)
            master.grad.copy_(parameter.grad)

    def copy_params_to_fp16(self, fp16_net: nn.Module, fp32_weights: Iterable[Tensor]) -> None:
        """Copy the values of the float32 copies to ``fp16_net``."""
        with torch.no_grad():
            for parameter, master in zip(fp16_net.parameters(), fp32_weights):
                parameter.copy_(master)

    def _scaled_step(self, runner: Any) -> None:
        """Unscale, clip, step, adapt the scale, and keep it for the checkpoint."""
        self.loss_scaler.unscale_(runner.optimizer)
        self._clip_and_log(runner)
        self.loss_scaler.step(runner.optimizer)
        self.loss_scaler.update(self._scale_update_param)
        runner.meta.setdefault("fp16", {})["loss_scaler"] = self.loss_scaler.state_dict()

    def after_train_iter(self, runner: Any) -> None:
        """Zero, scaled backward, unscale, clip, step."""
        self._zero_everything(runner)
        self.loss_scaler.scale(runner.outputs["loss"]).backward()
        self._scaled_step(runner)


@HOOKS.register_module()
class GradientCumulativeFp16OptimizerHook(GradientCumulativeOptimizerHook, Fp16OptimizerHook):
    """Mixed precision with gradients of several iterations; the arguments of both parents."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def after_train_iter(self, runner: Any) -> None:
        """Scaled backward; at the end of a group also unscale, clip, step and zero."""
        self.loss_scaler.scale(self._shared_loss(runner)).backward()
        if self._is_step(runner):
            self._scaled_step(runner)
            self._zero_everything(runner)
