"""The Triton kernels against the oracle in float64, in Triton's interpreter. ``test_triton.py`` runs it as a program.

The interpreter must be chosen before the kernels are decorated, hence a process of its own. It truncates where hardware
rounds to bf16, so those tolerances are doubled; and it is slow, so sizes are tiny.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, List, NamedTuple, Sequence, Tuple

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tpvformer.ops import reference, triton_attention, triton_dcn, triton_elementwise  # noqa: E402

FULL, HALF = torch.float32, torch.bfloat16
TOLERANCE = {FULL: 2e-6, HALF: 1e-2}
FAILED: List[str] = []


def report(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], parts: Sequence[str], kind: Any) -> None:
    """Errors relative to the largest true value, one line a case."""
    errors = []
    for part, a, b in zip(parts, ours, theirs):
        error = float((a.double() - b.detach()).abs().max() / b.detach().abs().max())
        errors.append(f"{part} {error:.1e}")
        if a.shape != b.shape or not torch.isfinite(a).all() or not error <= TOLERANCE[kind]:
            FAILED.append(f"{name}: {part} {tuple(a.shape)} against {tuple(b.shape)}, error {error:.1e}")
    print(f"{name}: {', '.join(errors)}", flush=True)


class Case(NamedTuple):
    batch: int
    cameras: int
    heads: int
    width: int
    queries: int
    points: int
    anchors: int
    shapes: Tuple[Tuple[int, int], ...]


CASES = [
    Case(2, 3, 2, 16, 5, 8, 4, ((7, 9), (4, 5))),
    Case(1, 6, 3, 5, 7, 4, 2, ((6, 10), (3, 5), (2, 3), (1, 1))),
    Case(2, 1, 8, 32, 4, 3, 1, ((5, 4),)),
    Case(1, 63, 1, 4, 1, 2, 1, ((2, 3),)),
]


def inputs(case: Case, kinds: Sequence[Any]) -> Tuple[Tensor, Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(case.queries)

    def rand(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    b, n, heads, d, q, p, _, shapes = case
    samples = (b, q, heads, len(shapes), p)
    value = rand(b, n, sum(h * w for h, w in shapes), heads, d) - 0.5
    return value.to(kinds[0]), ((rand(*samples, 2) - 0.5) * 8).to(kinds[1]), rand(*samples).to(kinds[-1]), rand


def attention(name: str, case: Case, kinds: Sequence[Any], arguments: Sequence[Tensor], oracle: Any) -> None:
    """``arguments`` as the kernels take them; ``oracle`` maps float64 value, offsets and weights to the output."""
    value, _, _, offsets, weights, _ = arguments
    leaves = [t.double().requires_grad_() for t in (value, offsets, weights)]
    truth = oracle(*leaves)
    # not contiguous: as it may come from autograd
    grad = torch.linspace(-1, 1, truth.numel()).view(truth.shape[::-1]).permute(2, 1, 0).to(kinds[0])
    truth.backward(grad.double())
    out = triton_attention.forward(*arguments, case.shapes)
    grads = triton_attention.backward(*arguments, grad, case.shapes)
    theirs = [truth, *(leaf.grad for leaf in leaves)]
    assert triton_attention.supports(value) and not triton_attention.supports(value.double())
    assert [t.dtype for t in (out, *grads)] == [kinds[0], kinds[0], kinds[1], kinds[-1]]
    assert all(t.is_contiguous() for t in (out, *grads))
    report(name, (out, *grads), theirs, ("out", "value", "offsets", "weights"), kinds[0])


def image(case: Case, kinds: Sequence[Any] = (FULL, FULL), far: float = 1e6) -> Tensor:
    value, offsets, weights, rand = inputs(case, kinds)
    b, n, q = case.batch, case.cameras, case.queries
    centre = rand(b, n, q, case.anchors, 2) * 1.4 - 0.2  # some outside the image
    centre[0, 0, 0] = far  # behind the camera
    visible = rand(b, n, q) > 0.4
    visible[0, 0, 0] = True
    if q > 3:
        visible[:, :, 3] = False  # seen by nobody
    bits = (visible.long() << torch.arange(n).view(-1, 1)).sum(1)
    scale = 1 / visible.sum(1).clamp(min=1).float()
    arguments = (value, centre[:, :, :, None], bits, offsets, weights, scale)
    if far != 1e6:
        return triton_attention.forward(*arguments, case.shapes)
    attention(
        f"image {tuple(case)} {kinds}", case, kinds, arguments,
        lambda v, o, w: reference.image_cross_attention(v, case.shapes, centre.double(), visible, o, w),
    )  # fmt: skip
    out = triton_attention.forward(*arguments, case.shapes)
    assert q <= 3 or (out[:, 3] == 0).all(), "a query that no camera sees"
    return out


def planes(case: Case) -> None:
    value, offsets, weights, rand = inputs(case, (FULL, FULL))
    everyone = torch.ones(case.batch, case.queries, dtype=torch.int64)
    centre = rand(case.queries, len(case.shapes), case.anchors, 2) * 1.2 - 0.1
    attention(
        f"planes {tuple(case)}", case, (FULL, FULL),
        (value[:, :1], centre[None, None], everyone, offsets, weights, everyone.float()),
        lambda v, o, w: reference.cross_view_attention(v[:, 0], case.shapes, centre.double(), o, w),
    )  # fmt: skip


def packed(case: Case, of_levels: bool, kinds: Sequence[Any] = (FULL, FULL)) -> None:
    """Offsets and logits in one tensor, with the softmax inside; the oracle makes the weights by PyTorch."""
    value, offsets, logits, rand = inputs(case, (kinds[0], kinds[1]))
    b, n, q, heads, levels, p = case.batch, case.cameras, case.queries, case.heads, len(case.shapes), case.points
    logits = (logits.float() * 6 - 3).to(kinds[1])
    own = (rand(b, q, heads, levels, 1) * 6 - 3).to(kinds[1])
    parts = [offsets.flatten(2), (torch.cat([logits, own], -1) if of_levels else logits).flatten(2)]
    both = torch.cat(parts, 2)
    centre = rand(b, n, q, levels, case.anchors, 2) * 1.2 - 0.1
    visible = rand(b, n, q) > 0.3
    bits = (visible.long() << torch.arange(n).view(-1, 1)).sum(1)
    scale = 1 / visible.sum(1).clamp(min=1).float()
    leaves = [t.double().requires_grad_() for t in (value, both)]
    where, logit = leaves[1].split([p.shape[2] for p in parts], 2)
    if of_levels:
        logit = logit.view(b, q, heads, levels, p + 1)
        weights = logit[..., :-1].softmax(-1) * logit[..., -1:].softmax(-2)
    else:
        weights = logit.view(b, q, heads, -1).softmax(-1).view(b, q, heads, levels, p)
    where = where.view(b, q, heads, levels, p, 2)
    sizes = reference.level_sizes(case.shapes, where)
    truth = torch.zeros(b, q, heads * case.width, dtype=torch.float64)
    for camera in range(n):
        places = centre[:, camera].double().repeat_interleave(p // case.anchors, 3)[:, :, None] + where / sizes
        seen = reference.ms_deform_attn(leaves[0][:, camera], case.shapes, places, weights)
        truth = truth + seen * (visible[:, camera] * scale)[..., None]
    grad = torch.linspace(-1, 1, truth.numel()).view(truth.shape).to(kinds[0])
    truth.backward(grad.double())
    arguments = (value, centre, bits, both, scale)
    out, kept = triton_attention.forward_packed(*arguments, case.shapes, p)
    grads = triton_attention.backward_packed(*arguments[:4], kept, scale, grad, case.shapes)
    report(
        f"packed {tuple(case)} {of_levels} {kinds}", (out, kept, *grads), (truth, weights, *(t.grad for t in leaves)),
        ("out", "weights", "value", "packed"), kinds[0],
    )  # fmt: skip
    assert [t.dtype for t in (out, kept, *grads)] == [kinds[0], kinds[1], kinds[0], kinds[1]]


def locations(case: Case) -> None:
    value, offsets, weights, _ = inputs(case, (FULL, FULL))
    everyone = torch.ones(case.batch, case.queries, dtype=torch.int64)
    sizes = torch.tensor([[w, h] for h, w in case.shapes])[:, None]
    attention(
        f"locations {tuple(case)}", case, (FULL, FULL),
        (value[:, :1], torch.zeros(1, 1, case.queries, 1, 1, 2), everyone, offsets, weights, everyone.float()),
        lambda v, o, w: reference.ms_deform_attn(v[:, 0], case.shapes, o / sizes, w),
    )  # fmt: skip


def convolution(
    n: int, c: int, o: int, h: int, w: int, k: int, s: int, p: int, d: int, kinds: Sequence[Any] = (FULL, FULL)
) -> None:
    generator = torch.Generator().manual_seed(c)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def last(t: Tensor) -> Tensor:
        return t.permute(0, 2, 3, 1)

    def rows(t: Tensor) -> Tensor:
        return t.permute(2, 3, 1, 0).reshape(k * k * c, o)

    ho, wo = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size in (h, w))
    offset = randn(n, 2 * k * k, ho, wo) * 2
    offset[0, 0, 0] = 1e9  # far outside: zero, and no overflow on the way to an integer
    mask = torch.rand(n, k * k, ho, wo, generator=generator)
    tensors = (randn(n, c, h, w).to(kinds[0]), offset, mask, randn(o, c, k, k).to(kinds[1]))
    leaves = [t.double().requires_grad_() for t in tensors]
    truth = reference.modulated_deform_conv2d(*leaves, None, s, p, d, 1, 1)
    grad = torch.linspace(-1, 1, truth.numel()).view(truth.shape).to(kinds[1])
    truth.backward(grad.double())
    ours = (last(tensors[0]), last(offset), last(mask), rows(tensors[3]))
    out = triton_dcn.forward(*ours, (k, k, s, p, d))
    grads = triton_dcn.backward(*ours, last(grad), (k, k, s, p, d))
    gx, go, gm, gw = (leaf.grad for leaf in leaves)
    report(
        f"convolution {(n, c, o, h, w, k, s, p, d)} {kinds}", (out, *grads),
        (last(truth), last(gx), last(go), last(gm), rows(gw)), ("out", "x", "offset", "mask", "weight"), kinds[1],
    )  # fmt: skip
    assert triton_dcn.supports(tensors[0], 1, 1) and not triton_dcn.supports(tensors[0], 2, 1)
    assert [t.dtype for t in (out, *grads)] == [kinds[1], kinds[0], FULL, FULL, kinds[1]]
    assert all(t.is_contiguous() for t in (out, *grads))
    raw_convolution(tensors[0], offset, tensors[3], last(grad), (k, k, s, p, d))


def raw_convolution(x: Tensor, offset: Tensor, weight: Tensor, grad: Tensor, geometry: Tuple[int, ...]) -> None:
    """The same from offsets and logits in one tensor, with ignored numbers behind them; the column built or kept."""
    k, _, s, p, d = geometry
    taps, o = k * k, len(weight)
    generator = torch.Generator().manual_seed(taps)
    raw = torch.randn(len(x), 4 * taps + 1, *offset.shape[2:], generator=generator)
    raw[:, : 2 * taps] = offset
    raw[:, 3 * taps :] = float("nan")
    leaves = [t.double().requires_grad_() for t in (x, raw, weight)]
    shift, logits = leaves[1][:, : 2 * taps], leaves[1][:, 2 * taps : 3 * taps]
    truth = reference.modulated_deform_conv2d(leaves[0], shift, logits.sigmoid(), leaves[2], None, s, p, d, 1, 1)
    truth.backward(grad.double().permute(0, 3, 1, 2))
    gx, gr, gw = (leaf.grad for leaf in leaves)
    x, raw, truth, gx, gr = (t.permute(0, 2, 3, 1) for t in (x, raw, truth, gx, gr))
    rows, gw = (t.permute(2, 3, 1, 0).reshape(-1, o) for t in (weight, gw))
    for keep in (False, True):
        out, column = triton_dcn.forward_raw(x, raw, rows, geometry, keep)
        assert (column.numel() > 0) == keep
        grads = triton_dcn.backward_raw(x, raw, rows, column, grad, geometry)
        report(
            f"raw {geometry} {keep} {x.dtype, weight.dtype}", (out, *grads), (truth, gx, gr, gw),
            ("out", "x", "raw", "weight"), weight.dtype,
        )  # fmt: skip
        assert not grads[1][..., 3 * taps :].any()


def rectified(channels: int, rows: int, adds: bool, kind: Any = FULL) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, shortcut, bias = (torch.randn(n, channels, generator=generator) for n in (rows, rows, 1))
    x, shortcut, bias = x.to(kind), shortcut.to(kind), bias[0]
    x[0, 0] = float("nan")
    total = x + bias + (shortcut if adds else 0)
    out = triton_elementwise.bias_relu(x, bias, shortcut if adds else None)
    assert out[0, 0].isnan() and out.dtype == kind and triton_elementwise.supports(x)
    out[0, 0] = total[0, 0] = 0
    report(f"bias and ReLU {(channels, rows, adds)} {kind}", (out,), (total.double().relu(),), ("out",), kind)


def main() -> int:
    for case in CASES:
        out = image(case)
    for far in (float("inf"), float("nan"), -3e38):
        assert torch.equal(out, image(CASES[3], far=far)), f"an anchor at {far} must add nothing"
    image(CASES[0], (HALF, FULL))
    image(CASES[1], (HALF, HALF))
    image(CASES[2], (HALF, HALF, FULL))  # as under autocast
    for case in CASES[:3]:
        planes(case)
        locations(case)
    for of_levels in (False, True):
        for case in CASES[:3]:
            packed(case, of_levels)
        packed(CASES[0], of_levels, (HALF, HALF))
    convolution(2, 16, 8, 5, 6, 3, 1, 1, 1)
    convolution(1, 40, 16, 9, 6, 3, 2, 1, 1)
    convolution(1, 192, 5, 5, 4, 3, 1, 2, 2)
    convolution(1, 3, 4, 5, 5, 1, 1, 0, 1)
    convolution(1, 64, 8, 4, 5, 3, 1, 1, 1, (HALF, HALF))
    convolution(1, 64, 8, 4, 5, 3, 1, 1, 1, (FULL, HALF))
    rectified(8, 300, False)
    rectified(5, 7, True)
    rectified(24, 3, True, HALF)
    print("\n".join(["FAILED", *FAILED]) if FAILED else "all passed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
