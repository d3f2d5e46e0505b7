"""Run layers with few operations, for devices where each operation costs a launch.

Weights of all layers are joined and rounded to the type of the products by one operation on lists. Linear layers of
several planes write into one tensor. Gradients return the same way.

Legend: B batch, Q queries of all planes, C channels in, O channels out.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Dict[str, Tensor]  # of one module: names to joined, rounded parameters


def is_plain(layers: nn.Module) -> bool:
    """Return whether joined weights do what the modules in ``layers`` do: no hooks, no modules put between.

    A forward hook sees a module's call, which joined weights leave out; an adapter replaces a linear layer.
    """
    if torch.compiler.is_compiling():
        return True  # the modules are as they were; hooks are for eager code
    return all(
        not (m._forward_hooks or m._forward_pre_hooks)
        and (type(m) in (nn.Linear, nn.LayerNorm, nn.ModuleList) or type(m).__module__.startswith("tpvformer."))
        for m in layers.modules()
    )


def linear_parts(name: str, *layers: nn.Module) -> Dict[str, List[Tensor]]:
    """Return the parameters of linear layers with the same input, to be joined to "name.weight" and "name.bias"."""
    found: Dict[str, List[Tensor]] = {f"{name}.weight": [], f"{name}.bias": []}
    for layer in layers:
        assert isinstance(layer, nn.Linear) and layer.bias is not None
        found[f"{name}.weight"].append(layer.weight)
        found[f"{name}.bias"].append(layer.bias)
    return found


def prepare(parts: Sequence[Dict[str, List[Tensor]]], kind: torch.dtype, multiple: int = 1) -> List[Weights]:
    """Join the tensors of each name along their first axis, in type ``kind``; one result for each element of parts.

    Zeros are appended up to a ``multiple`` of rows.
    """
    named = [(i, name, tensors) for i, part in enumerate(parts) for name, tensors in part.items()]
    flat = [tensor for _, _, tensors in named for tensor in tensors]
    if torch.compiler.is_compiling():
        joined = tuple(_padded(torch.cat([t.to(kind) for t in tensors]), multiple) for _, _, tensors in named)
    else:
        joined = _Joined.apply(kind, [len(tensors) for _, _, tensors in named], multiple, *flat)
    results: List[Weights] = [{} for _ in parts]
    for (i, name, _), tensor in zip(named, joined):
        results[i][name] = tensor
    return results


def _padded(joined: Tensor, multiple: int) -> Tensor:
    more = -len(joined) % multiple
    return torch.cat([joined, joined.new_zeros(more, *joined.shape[1:])]) if more else joined


def _slices(joined: Tensor, parts: Sequence[Tensor]) -> List[Tensor]:
    return list(joined[: sum(len(part) for part in parts)].split([len(part) for part in parts]))


class _Joined(torch.autograd.Function):
    """Copy tensors into joined ones of another type, and their gradients back, each by one operation on lists."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, kind: torch.dtype, counts: List[int], multiple: int, *tensors: Tensor
    ) -> Tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.counts, ctx.sizes = counts, [t.shape for t in tensors]
        ctx.strides, ctx.kinds = [t.stride() for t in tensors], [t.dtype for t in tensors]
        groups, rest = [], list(tensors)
        for count in counts:
            groups.append(rest[:count])
            rest = rest[count:]
        shapes = [(_rounded(sum(len(t) for t in group), multiple), *group[0].shape[1:]) for group in groups]
        sizes = [math.prod(shape) for shape in shapes]
        memory = tensors[0].new_zeros(sum(sizes), dtype=kind) if multiple > 1 else None
        joined, places, first = [], [], 0
        for group, shape, size in zip(groups, shapes, sizes):
            flat = group[0].new_empty(size, dtype=kind) if memory is None else memory[first : first + size]
            made = _shaped(flat, shape, group[0])
            first += size
            joined.append(made)
            places += _slices(made, group)
        torch._foreach_copy_(places, list(tensors))
        return tuple(joined)

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Tuple[Any, ...]:
        found: List[Optional[Tensor]] = []
        for count, grad in zip(ctx.counts, grads):
            sizes = ctx.sizes[len(found) : len(found) + count]
            rows = [size[0] for size in sizes]
            found += [None] * count if grad is None else list(grad[: sum(rows)].split(rows))
        given = [(i, grad) for i, grad in enumerate(found) if grad is not None]
        made = [
            torch.empty_strided(ctx.sizes[i], ctx.strides[i], dtype=ctx.kinds[i], device=grad.device)
            for i, grad in given
        ]
        torch._foreach_copy_(made, [grad for _, grad in given])
        for (i, _), tensor in zip(given, made):
            found[i] = tensor
        return (None, None, None, *found)


def _shaped(flat: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a view in the memory format of ``like``."""
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return flat.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return flat.view(*shape)


def _rounded(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


def linear_by_plane(x: Tensor, sizes: Sequence[int], layers: Sequence[Tuple[Tensor, Tensor]]) -> Tensor:
    """Return (B,Q,O): each plane's part of x (B,Q,C) through its own weight (O,C) and bias (O,). ``sizes`` sum to Q."""
    if torch.compiler.is_compiling():
        return torch.cat([F.linear(part, *layer) for part, layer in zip(x.split(list(sizes), 1), layers)], 1)
    out: Tensor = _ByPlane.apply(x, tuple(sizes), *(tensor for layer in layers for tensor in layer))
    return out


def _places(batch: int, sizes: Sequence[int]) -> List[Tuple[int, int, slice]]:
    """Return (plane, sample, rows) of every part."""
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [(i, b, slice(first, first + sizes[i])) for i, first in enumerate(firsts) for b in range(batch)]


class _ByPlane(torch.autograd.Function):
    """Run a linear layer for each plane, without cutting its input and joining its results by copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Tuple[int, ...], *layers: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, *layers[::2])
        ctx.sizes = sizes
        out = x.new_empty(*x.shape[:2], len(layers[0]))
        for plane, b, rows in _places(len(x), sizes):
            torch.addmm(layers[2 * plane + 1], x[b, rows], layers[2 * plane].t(), out=out[b, rows])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_x, found = torch.empty_like(x), []
        for plane, b, rows in _places(len(x), ctx.sizes):
            torch.mm(grad[b, rows], weights[plane], out=grad_x[b, rows])
            pair = grad[b, rows].t() @ x[b, rows], grad[b, rows].sum(0)
            if b:
                pair = found[-2] + pair[0], found[-1] + pair[1]
                del found[-2:]
            found += pair
        return (grad_x, None, *found)
