"""``train.compile``: backbone and neck as one compiled graph, wherever that can be had."""

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
    """A model's backbone and neck for training: (M,3,H,W) -> feature maps, compiled for each shape it meets.

    Before a shape is used for the first time, a forward and a backward pass on zeros show whether it compiles; if not,
    ``say`` is told why, once, and training goes on as if nothing had been asked for. Evaluation is never compiled: its
    scores do not depend on the setting. The model keeps its modules and the names of its parameters.
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
        else:  # before 2.4: our operations cannot be registered, and would not be understood
            self._give_up(f"torch {torch.__version__} cannot; 2.4 or later can")

    def __call__(self, images: Tensor) -> List[Tensor]:
        """The maps of ``TPVFormer.image_maps``."""
        if self._compiled is None or not torch.is_grad_enabled():
            return self._model.image_maps(images)
        here = (images.shape, images.dtype, self._model.image_autocast, self._model.training)
        if here not in self._tried:
            self._tried.add(here)
            self._attempt(self._try_on, torch.zeros_like(images))
        return (self._compiled or self._model.image_maps)(images)

    @property
    def active(self) -> bool:
        """False from the moment on at which compiling has failed."""
        return self._compiled is not None

    def _build(self) -> None:
        model = self._model

        def maps(images: Tensor) -> List[Tensor]:
            # past the modules' hooks, which may do what cannot be compiled
            return model.neck.forward(model.backbone.forward(images))

        importlib.import_module("torch._dynamo").config.optimize_ddp = False  # it would cut the graph into pieces
        self._compiled = torch.compile(maps, fullgraph=True, dynamic=False, **self._options)

    def _try_on(self, zeros: Tensor) -> None:
        """Compile everything that training will run, and leave the model as it was."""
        assert self._compiled is not None
        network = nn.ModuleList([self._model.backbone, self._model.neck])
        learning = [p for p in network.parameters() if p.requires_grad]
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]  # running statistics of ordinary norms
        try:
            with torch.no_grad():
                self._model.image_maps(zeros)  # loads the kernels, which cannot happen while a graph is being made
            for _ in range(self._trials):
                loss = torch.stack([m.float().sum() for m in self._compiled(zeros)]).sum()
                torch.autograd.grad(loss, learning)  # not backward(): no gradient is to be seen by the optimiser
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _attempt(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as err:  # of the tracer, the code generator or the machine's compiler
            self._give_up(" ".join(f"{type(err).__name__}: {err}".split())[:300])

    def _give_up(self, why: str) -> None:
        self._compiled = None
        self._say(f"train.compile: the image network stays uncompiled ({why})")


def compile_images(
    model: TPVFormer, device: torch.device, accumulate: int = 1, say: Optional[Say] = None, **options: Any
) -> CompiledImages:
    """Let ``model`` train on a compiled image network; ``options`` replace the device's own for torch.compile.

    Recorded graphs reuse the memory of their gradients, so batches that add up to a step are not recorded.
    """
    compiled = CompiledImages(model, device, accumulate == 1, say, **options)
    model.image_network = compiled
    return compiled
