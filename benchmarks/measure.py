"""Compare operations: interleaved times, bytes kept for the backward pass, errors against an oracle."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

DIRECTIONS = ("forward", "backward", "both")
KINKS = 1e-3  # share of a sampling position's gradients that is left out of an error, see ``errors``
# relative errors allowed: of values, and of what sampling positions' gradients flow into (see ``errors``)
TOLERANCE = {torch.float32: (1e-4, 5e-3), torch.bfloat16: (3e-2, 0.3)}
COLD_BYTES = 512 * 2**20  # written before each timing on an accelerator, so that caches hold nothing of the inputs


@dataclass
class Variant:
    """One way to compute something. ``run`` reads ``leaves``, which require gradients, and ``given`` tensors."""

    run: Callable[[], Tensor]
    leaves: Dict[str, Tensor]
    given: List[Tensor]

    def gradients(self, out: Tensor, gradient: Tensor) -> Tuple[Tensor, ...]:
        return torch.autograd.grad(out, list(self.leaves.values()), gradient.to(out.dtype))


def gradient_like(out: Tensor, seed: int = 1) -> Tensor:
    """Draw the output gradient for a variant: the same normal numbers for all outputs of one shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out.shape, generator=generator).to(out.device)


def interleaved(variants: Dict[str, Variant], device: torch.device, repeats: int) -> Dict[str, Dict[str, float]]:
    """Return the median milliseconds of each variant: CPU time; on an accelerator, time between device events.

    The first round compiles and is not counted.
    """
    runs: Dict[str, List[Tuple[float, float]]] = {name: [] for name in variants}
    gradient: Optional[Tensor] = None
    for repeat in range(repeats + 1):
        for name, variant in variants.items():
            before = _clock(device)
            out = variant.run()
            middle = _clock(device, cold=False)
            gradient = gradient_like(out) if gradient is None else gradient
            again = _clock(device)
            variant.gradients(out, gradient)
            after = _clock(device, cold=False)
            if repeat:
                runs[name].append((_between(before, middle), _between(again, after)))
    times = {}
    for name, pairs in runs.items():
        values = ([f for f, _ in pairs], [b for _, b in pairs], [f + b for f, b in pairs])
        times[name] = {d: statistics.median(v) for d, v in zip(DIRECTIONS, values)}
    return times


def _clock(device: torch.device, cold: bool = True) -> Any:
    if device.type == "cpu":
        return time.process_time()
    if cold:  # also lets the host run ahead, so that launching is not what is measured
        torch.empty(COLD_BYTES, dtype=torch.uint8, device=device).zero_()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, second: Any) -> float:
    if isinstance(first, float):
        return 1000 * (second - first)
    second.synchronize()
    return float(first.elapsed_time(second))


def saved_bytes(variant: Variant) -> int:
    """Return the bytes of the distinct storages that the graph keeps for the backward pass after the forward pass.

    The leaves and the given tensors are not counted, because they exist anyway.
    """
    kept: Dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # a reference, so that the address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = variant.run()
    for tensor in (*variant.leaves.values(), *variant.given):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_bytes(variant: Variant, device: torch.device) -> Optional[int]:
    """Return the peak memory of forward and backward above that of the inputs, in bytes; None on a CPU."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    out = variant.run()
    variant.gradients(out, gradient_like(out))
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - start)


def errors(oracle: Variant, variant: Variant) -> Dict[str, float]:
    """Return the relative error ||a - b|| / ||b|| of the output and of each gradient to the oracle's; NaN stays NaN.

    The gradient of a sampling position is discontinuous where the position crosses a pixel. There, computations of
    different precision are on different sides, so the worst thousandth of the gradients named "offset..." is left out.
    This is not possible where they are already summed, as in the gradients of a layer's parameters.
    """
    expected, out = oracle.run(), variant.run()
    gradient = gradient_like(out).to(out.dtype)
    pairs = {"output": (out.detach(), expected.detach())}
    found, wanted = variant.gradients(out, gradient), oracle.gradients(expected, gradient)
    pairs.update({name: pair for name, *pair in zip(variant.leaves, found, wanted)})
    return {name: relative(a, b, KINKS if name.startswith("offset") else 0.0) for name, (a, b) in pairs.items()}


def close(found: Dict[str, float], dtype: torch.dtype) -> bool:
    """Tell whether all ``errors`` are within the limits of arithmetic in this type."""
    of_values, of_positions = TOLERANCE[dtype]
    return all(
        e < (of_positions if name == "x" or name.startswith("offset") else of_values) for name, e in found.items()
    )


def relative(found: Tensor, wanted: Tensor, left_out: float = 0.0) -> float:
    """Return ||found - wanted|| / ||wanted|| in float64, without the share ``left_out`` of largest differences."""
    wanted = wanted.detach().double()
    difference = (found.detach().double() - wanted).abs().flatten()
    if left_out:
        difference = difference.sort().values[: len(difference) - int(len(difference) * left_out)]
    return float(difference.norm() / wanted.norm().clamp(min=1e-30))
