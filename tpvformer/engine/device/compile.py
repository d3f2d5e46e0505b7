"""``train.compile``: the network as compiled graphs in training, wherever that can be had.

On a CPU only backbone and neck are compiled: the blocked attention kernels cannot be traced, and are faster than
compiled code. On other devices there are three graphs: the preprocessing of the images; backbone, neck and encoder; and
the aggregator. The second graph has static shapes, so that a GPU can record and replay it. The third has a dynamic
number of voxels.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, Callable, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from tpvformer.data.images.preprocess import network_images
from tpvformer.engine.device.accelerator import (
    compile_options,
    compile_trials,
    compiles_by_default,
    forked_random_state,
)
from tpvformer.model import TPVFormer
from tpvformer.model.history import PlaneHistory

Say = Callable[[str], None]


def wanted(setting: Optional[bool], device: torch.device) -> bool:
    """Return whether to compile: ``train.compile``, or the default of the device if it is null."""
    return compiles_by_default(device) if setting is None else setting


class CompiledFunction:
    """Run a part of a model in training, compiled for each input shape.

    ``traced`` computes the same as ``eager`` without calling the modules' hooks, which may not be traceable. Before a
    shape is used for the first time, a forward and a backward pass on zeros test whether it compiles. If not, ``say``
    gets the reason, once, and ``eager`` is used from then on. Evaluation is never compiled, so its scores do not depend
    on the setting. The test changes neither the running statistics nor the random numbers that training draws next.
    """

    def __init__(
        self,
        model: TPVFormer,
        what: str,
        traced: Callable[..., Any],
        eager: Callable[..., Any],
        say: Say,
        device: torch.device,
        **options: Any,
    ) -> None:
        self._model, self._what, self._traced, self._eager, self._say = model, what, traced, eager, say
        self._device, self._options = device, options
        self._tried: Set[Tuple[Any, ...]] = set()
        self._compiled: Optional[Callable[..., Any]] = None
        if hasattr(torch.library, "custom_op"):
            self._attempt(self._build)
        else:  # before 2.4: our operations cannot be registered, and would not be understood
            self._give_up(f"torch {torch.__version__} cannot; 2.4 or later can")

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None or not torch.is_grad_enabled() or not self._takes(args):
            return self._eager(*args)
        here = (self._model.image_autocast, self._model.training, *(self._shape(a) for a in args))
        if here not in self._tried:
            self._tried.add(here)
            self._attempt(self._try_on, *map(_zeros, args))
        return (self._compiled or self._eager)(*args)

    @property
    def active(self) -> bool:
        """False from the moment on at which compiling has failed."""
        return self._compiled is not None

    def _takes(self, args: Tuple[Any, ...]) -> bool:
        """Dimensions of 0 or 1 would be compiled anew where sizes are free."""
        if not self._options.get("dynamic"):
            return True
        return all(min(a.shape[1:], default=2) > 1 for a in args if isinstance(a, Tensor))

    def _shape(self, arg: Any) -> Any:
        if isinstance(arg, PlaneHistory):
            return tuple(map(self._shape, arg))
        if not isinstance(arg, Tensor):
            return arg is None
        return (arg.dim() if self._options.get("dynamic") else tuple(arg.shape), arg.dtype)

    def _build(self) -> None:
        importlib.import_module("torch._dynamo").config.optimize_ddp = False  # it would cut the graph into pieces
        options: Any = {"dynamic": False, **self._options}
        self._compiled = torch.compile(self._traced, fullgraph=True, **options)

    def _try_on(self, *zeros: Any) -> None:
        """Compile everything that training will run, and leave the model as it was."""
        assert self._compiled is not None
        learning = [p for p in self._model.parameters() if p.requires_grad]
        buffers = [(b, b.clone()) for b in self._model.buffers()]  # running statistics of ordinary norms
        try:
            with forked_random_state(self._device):
                with torch.no_grad():
                    self._eager(*zeros)  # loads the kernels, which cannot happen while a graph is being made
                for _ in range(compile_trials(self._device)):
                    loss = torch.stack([t.float().sum() for t in _tensors(self._compiled(*zeros))]).sum()
                    # not backward(): no gradient is to be seen by the optimiser
                    torch.autograd.grad(loss, learning, allow_unused=True)
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):  # a graph whose backward pass is still to come may hold others
                        buffer.copy_(before)

    def _attempt(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as err:  # of the tracer, the code generator or the machine's compiler
            self._give_up(" ".join(f"{type(err).__name__}: {err}".split())[:300])

    def _give_up(self, why: str) -> None:
        self._compiled = None
        self._say(f"train.compile: the {self._what} stays uncompiled ({why})")


class CompiledPixels:
    """``network_images``, compiled for each shape it meets; it learns nothing. See ``CompiledFunction``."""

    def __init__(self, say: Say, **options: Any) -> None:
        self._say = say
        self._function: Callable[..., Tensor] = network_images
        if hasattr(torch.library, "custom_op"):
            self._function = torch.compile(network_images, fullgraph=True, dynamic=False, **options)

    @property
    def active(self) -> bool:
        return self._function is not network_images

    def __call__(self, batch: Any, config: Any) -> Tensor:
        if torch.is_grad_enabled() and self.active:
            try:
                return self._function(batch, config)
            except Exception as err:  # as above
                self._function = network_images
                text = " ".join(f"{type(err).__name__}: {err}".split())[:300]
                self._say(f"train.compile: the preprocessing stays uncompiled ({text})")
        return network_images(batch, config)


def _zeros(arg: Any) -> Any:
    """Zeros like a tensor, of which gradients are asked where they are of it; anything else as it is."""
    if isinstance(arg, PlaneHistory):
        return PlaneHistory(*map(_zeros, arg))
    return torch.zeros_like(arg).requires_grad_(arg.requires_grad) if isinstance(arg, Tensor) else arg


def _tensors(value: Any) -> List[Tensor]:
    """The floating tensors of nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) and value.is_floating_point() else []


class CompiledNetwork:
    """The compiled parts of a model; ``active`` while all of them are."""

    def __init__(self, parts: List[Any]) -> None:
        self.parts = parts

    @property
    def active(self) -> bool:
        return all(part.active for part in self.parts)


def compile_network(
    model: TPVFormer,
    device: torch.device,
    accumulate: int = 1,
    say: Optional[Say] = None,
    whole: Optional[bool] = None,
    **options: Any,
) -> CompiledNetwork:
    """Let ``model`` train on compiled parts; ``options`` replace the device's own for torch.compile.

    ``whole``: all of the network, by default everywhere but on a CPU; else backbone and neck alone. Recorded graphs
    reuse the memory of their gradients, so batches that add up to a step (``accumulate``) are not recorded.
    """
    say = say or logging.getLogger(__name__).warning
    recorded = options or compile_options(device, accumulate == 1)
    plain = options or compile_options(device, False)

    def maps(images: Tensor) -> List[Tensor]:
        return model.neck.forward(model.backbone.forward(images))

    def planes(
        images: Tensor,
        lidar2img: Tensor,
        camera_slots: Optional[Tensor],
        rows: Optional[Sequence[Tensor]] = None,
        history: Optional[PlaneHistory] = None,
    ) -> Tuple[List[Tensor], Tensor]:
        features = model.image_features(images, maps)
        size = (images.shape[3], images.shape[4])
        kind, pasts = model.product_type, model.pasts(history)
        return features, model.encoder.forward(features, lidar2img, size, camera_slots, rows, kind, pasts)

    if not (device.type != "cpu" if whole is None else whole):
        model.image_network = CompiledFunction(model, "image network", maps, model.image_maps, say, device, **recorded)
        return CompiledNetwork([model.image_network])
    model.plane_network = CompiledFunction(
        model, "network up to the planes", planes, model.features_and_planes, say, device, **recorded
    )
    model.place_network = CompiledFunction(
        model, "aggregator", model.aggregator.forward, model.aggregator, say, device, dynamic=True, **plain
    )
    model.pixel_network = CompiledPixels(say, **plain)
    return CompiledNetwork([model.plane_network, model.place_network, model.pixel_network])


def uncompiled(model: nn.Module) -> List[Tuple[str, Any]]:
    """Take the compiled parts off a model, which hide its modules, and return them for ``setattr``."""
    known = ("image_network", "plane_network", "place_network", "pixel_network")
    names = [name for name in known if hasattr(model, name)]  # a checkout's own model has none
    parts = [(name, getattr(model, name)) for name in names]
    for name in names:
        setattr(model, name, None)
    return parts
