"""Compile backbone and neck to one graph for ``train.compile``, where that is possible."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Callable, List, Optional, Set, Tuple

import torch
from torch import Tensor, nn

from tpvformer.engine.device.accelerator import compile_options, compile_trials
from tpvformer.model import TPVFormer

Say = Callable[[str], None]


class CompiledImages:
    """Run a model's backbone and neck compiled in training: (M,3,H,W) -> feature maps, one graph for each input shape.

    Before the first use of a shape, a forward and a backward pass on zeros check that it compiles. On failure ``say``
    receives the reason, once, and training continues uncompiled. Evaluation is never compiled, so its scores do not
    depend on the setting. Modules and parameter names of the model do not change.
    """

    def __init__(
        self, model: TPVFormer, device: torch.device, graphs: bool, say: Optional[Say], **options: Any
    ) -> None:
        self._model = model
        self._say = say or logging.getLogger(__name__).warning
        self._options = options or compile_options(device, graphs)
        self._trials = compile_trials(device)
        self._tried: Set[Tuple[Any, ...]] = set()
        self._compiled: Optional[Callable[[Tensor], List[Tensor]]] = None
        if hasattr(torch.library, "custom_op"):
            self._attempt(self._build)
        else:  # before 2.4: custom operations cannot be registered for torch.compile
            self._give_up(f"torch {torch.__version__} cannot; 2.4 or later can")

    def __call__(self, images: Tensor) -> List[Tensor]:
        """Return the maps of ``TPVFormer.image_maps``."""
        if self._compiled is None or not torch.is_grad_enabled():
            return self._model.image_maps(images)
        here = (images.shape, images.dtype, self._model.image_autocast, self._model.training)
        if here not in self._tried:
            self._tried.add(here)
            self._attempt(self._try_on, torch.zeros_like(images))
        return (self._compiled or self._model.image_maps)(images)

    @property
    def active(self) -> bool:
        """Return False after compiling has failed."""
        return self._compiled is not None

    def _build(self) -> None:
        model = self._model

        def maps(images: Tensor) -> List[Tensor]:
            # skips the modules' hooks, which may not be compilable
            return model.neck.forward(model.backbone.forward(images))

        importlib.import_module("torch._dynamo").config.optimize_ddp = False  # it would split the graph
        self._compiled = torch.compile(maps, fullgraph=True, dynamic=False, **self._options)

    def _try_on(self, zeros: Tensor) -> None:
        """Compile everything that training will run, without changing the model."""
        assert self._compiled is not None
        network = nn.ModuleList([self._model.backbone, self._model.neck])
        learning = [p for p in network.parameters() if p.requires_grad]
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]  # running statistics of batch norms
        try:
            with torch.no_grad():
                self._model.image_maps(zeros)  # loads the kernels, which is impossible while a graph is traced
            for _ in range(self._trials):
                loss = torch.stack([m.float().sum() for m in self._compiled(zeros)]).sum()
                torch.autograd.grad(loss, learning)  # not backward(): the optimiser must not see these gradients
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _attempt(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as err:  # from the tracer, the code generator or the C++ compiler
            self._give_up(" ".join(f"{type(err).__name__}: {err}".split())[:300])

    def _give_up(self, why: str) -> None:
        self._compiled = None
        self._say(f"train.compile: the image network stays uncompiled ({why})")


def compile_images(
    model: TPVFormer, device: torch.device, accumulate: int = 1, say: Optional[Say] = None, **options: Any
) -> CompiledImages:
    """Make ``model`` train with a compiled image network; ``options`` replace the device's arguments of torch.compile.

    Recorded graphs reuse the memory of their gradients, so they are not used with gradient accumulation.
    """
    compiled = CompiledImages(model, device, accumulate == 1, say, **options)
    model.image_network = compiled
    return compiled
