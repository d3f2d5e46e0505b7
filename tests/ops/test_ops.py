"""Every backend against the plain-PyTorch oracle in float64, forward and all gradients; the oracle against records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, List, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tpvformer import ops
from tpvformer.ops import reference

pytest.importorskip("numba", reason="numba is not installed")

DATA = Path(__file__).parents[1] / "golden_data"
# (batch, cameras, heads, channels a head, queries, points, anchors, level shapes); odd sizes, one-pixel levels
CASES = [
    (2, 3, 2, 16, 37, 8, 4, ((7, 9), (4, 5))),
    (1, 6, 3, 5, 70, 4, 2, ((6, 10), (3, 5), (2, 3), (1, 1))),
    (2, 1, 8, 32, 65, 3, 1, ((5, 4),)),
    (2, 2, 1, 7, 9, 5, 5, ((1, 1), (3, 4), (2, 2))),
]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba serves; that the oracle does so in its place is an error."""
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    monkeypatch.setattr(ops, "reference", None)


def compare(
    run: Callable[..., Tensor], oracle: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float
) -> None:
    """Outputs and gradients of float32 ``run`` against float64 ``oracle``, relative to the largest value."""

    def results(function: Callable[..., Tensor], kind: torch.dtype) -> List[Tensor]:
        leaves = [t.to(kind).clone().requires_grad_() for t in inputs]
        out = function(*leaves)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=kind).view(out.shape))
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    for ours, theirs in zip(results(run, torch.float32), results(oracle, torch.float64)):
        assert torch.isfinite(ours).all()
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def make(case: Any) -> Any:
    b, n, heads, d, q, points, anchors, shapes = case
    generator = torch.Generator().manual_seed(q)

    def rand(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    tokens = sum(h * w for h, w in shapes)
    value = rand(b, n, tokens, heads, d) - 0.5
    offsets = (rand(b, q, heads, len(shapes), points, 2) - 0.5) * 8
    weights = rand(b, q, heads, len(shapes), points)
    return value, offsets, weights, rand


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", CASES)
def test_image_cross_attention(case: Any) -> None:
    b, n, _, _, q, _, anchors, shapes = case
    value, offsets, weights, rand = make(case)
    centre = rand(b, n, q, anchors, 2) * 1.4 - 0.2  # some outside the image
    visible = rand(b, n, q) > 0.4
    visible[:, :, 3] = False  # seen by nobody
    visible[0, 0, 0], centre[0, 0, 0] = True, 1e6  # behind the camera
    for query, far in enumerate((float("inf"), float("nan"), -3e38), start=4):
        visible[0, 0, query], centre[0, 0, query] = False, far  # what no camera sees may be anything

    def bind(module: Any) -> Callable[..., Tensor]:
        return lambda v, o, w: module.image_cross_attention(v, shapes, centre.to(v.dtype), visible, o, w)

    compare(bind(ops), bind(reference), (value, offsets, weights), 2e-6)
    assert (bind(ops)(value, offsets, weights)[:, 3] == 0).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", CASES)
def test_cross_view_attention(case: Any) -> None:
    q, anchors, shapes = case[4], case[6], case[7]
    value, offsets, weights, rand = make(case)
    centre = rand(q, len(shapes), anchors, 2) * 1.2 - 0.1

    def bind(module: Any) -> Callable[..., Tensor]:
        return lambda v, o, w: module.cross_view_attention(v, shapes, centre.to(v.dtype), o, w)

    compare(bind(ops), bind(reference), (value[:, 0], offsets, weights), 2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", CASES)
def test_ms_deform_attn(case: Any) -> None:
    value, offsets, weights, rand = make(case)
    locations = rand(*offsets.shape) * 1.2 - 0.1

    def bind(module: Any) -> Callable[..., Tensor]:
        return lambda v, o, w: module.ms_deform_attn(v, case[7], o, w)

    compare(bind(ops), bind(reference), (value[:, 0], locations, weights), 1e-5)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "n,c,o,h,w,k,s,p,d",
    [
        (2, 16, 8, 7, 9, 3, 1, 1, 1),
        (1, 32, 16, 9, 6, 3, 2, 1, 1),
        (2, 48, 5, 8, 8, 3, 1, 2, 2),
        (1, 16, 4, 5, 5, 1, 1, 0, 1),
    ],
)
def test_deform_conv(n: int, c: int, o: int, h: int, w: int, k: int, s: int, p: int, d: int) -> None:
    generator = torch.Generator().manual_seed(c)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    ho, wo = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size in (h, w))
    offset = randn(n, 2 * k * k, ho, wo) * 3
    offset[0, 0] = 1e9  # far outside: zero, and no overflow on the way to an integer
    inputs = (randn(n, c, h, w), offset, torch.rand(n, k * k, ho, wo, generator=generator), randn(o, c, k, k), randn(o))
    compare(
        lambda *a: ops.modulated_deform_conv2d(*a, s, p, d),
        lambda *a: reference.modulated_deform_conv2d(*a, s, p, d, 1, 1), inputs, 2e-6,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_deform_conv_of_an_image_that_wants_no_gradient(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    x, weight = torch.rand(1, 16, 5, 6), torch.rand(4, 16, 3, 3, requires_grad=True)
    offset, mask = torch.rand(1, 18, 5, 6, requires_grad=True), torch.rand(1, 9, 5, 6, requires_grad=True)
    ops.modulated_deform_conv2d(x, offset, mask, weight, padding=1).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in (offset, mask, weight))


def test_deform_conv_groups() -> None:
    """Groups split the channels; with zero offsets and full mask it is an ordinary convolution."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 8, 6, 7, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)
    offset, mask = torch.zeros(2, 2 * 18, 6, 7), torch.ones(2, 2 * 9, 6, 7)
    ours = ops.modulated_deform_conv2d(x, offset, mask, weight, padding=1, groups=2, deform_groups=2)
    torch.testing.assert_close(ours, torch.nn.functional.conv2d(x, weight, padding=1, groups=2), atol=1e-5, rtol=1e-5)


def leaf(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.rand(*size, generator=generator, dtype=torch.float64).requires_grad_()


GRADS = {"eps": 1e-7, "atol": 1e-4}
SHAPES = ((4, 5), (2, 3))


def test_oracle_gradcheck() -> None:
    """In float64 the public functions are the oracle."""
    value, samples = leaf(1, 26, 2, 3), (1, 3, 2, 2, 2)
    inputs = (value, leaf(*samples, 2), leaf(*samples))
    assert torch.autograd.gradcheck(lambda v, x, w: ops.ms_deform_attn(v, SHAPES, x, w), inputs, **GRADS)
    conv = (leaf(1, 2, 4, 4), leaf(1, 18, 4, 4), leaf(1, 9, 4, 4), leaf(2, 2, 3, 3), leaf(2))
    assert torch.autograd.gradcheck(lambda *a: ops.modulated_deform_conv2d(*a, 1, 1), conv, **GRADS)


def test_oracle_gradcheck_around_anchors() -> None:
    value, samples = leaf(1, 2, 26, 1, 2), (1, 3, 1, 2, 4)
    offsets, weights = leaf(*samples, 2), leaf(*samples)
    planes, cameras = leaf(3, 2, 2, 2).detach(), leaf(1, 2, 3, 2, 2).detach()
    assert torch.autograd.gradcheck(
        lambda v, o, w: ops.cross_view_attention(v[:, 0], SHAPES, planes, o, w), (value, offsets, weights), **GRADS
    )
    visible = torch.tensor([[[True, False, True], [True, False, False]]])
    cameras[0, :, 1] = float("nan")  # seen by nobody
    assert torch.autograd.gradcheck(
        lambda v, o, w: ops.image_cross_attention(v, SHAPES, cameras, visible, o, w), (value, offsets, weights), **GRADS
    )


def recorded(prefix: str) -> Any:
    arrays = np.load(DATA / "ops.npz")
    return {k[len(prefix) + 1 :]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(prefix + "/")}


@pytest.mark.parametrize("name", ["dcn/s1", "dcn/s1_far", "dcn/s2"])
def test_recorded_convolution(name: str) -> None:
    """The reference's own float64 results."""
    case = recorded(name)
    stride = json.loads((DATA / "ops.json").read_text())[name]["stride"]
    names = [k for k in ("x", "offset", "mask", "weight", "bias") if k in case]
    leaves = [case[k].clone().requires_grad_() for k in names]
    out = ops.modulated_deform_conv2d(*leaves, stride=stride, padding=1)
    torch.testing.assert_close(out, case["out"], atol=1e-12, rtol=1e-12)
    out.backward(case["grad_out"])
    for k, leaf in zip(names, leaves):
        torch.testing.assert_close(leaf.grad, case[f"grad_{k}"], atol=1e-11, rtol=1e-11)


def test_integer_offsets_shift_the_image() -> None:
    x = torch.arange(1, 13, dtype=torch.float64).view(1, 1, 3, 4)
    offset = torch.tensor([-1.0, 2.0], dtype=torch.float64).repeat(9).view(1, 18, 1, 1).expand(1, 18, 3, 4)
    ones = torch.ones(1, 9, 3, 4, dtype=torch.float64)
    out = ops.modulated_deform_conv2d(x, offset, ones, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1)
    assert torch.equal(out, recorded("dcn/int")["out"])


@pytest.mark.parametrize("module,kind,tolerance", [(reference, torch.float64, 1e-11), (ops, torch.float32, 2e-5)])
def test_recorded_attention(module: Any, kind: torch.dtype, tolerance: float) -> None:
    case = recorded("msda")
    shapes = [tuple(s) for s in json.loads((DATA / "ops.json").read_text())["msda"]["spatial_shapes_hw"]]
    leaves = [case[k].to(kind).requires_grad_() for k in ("value", "loc", "weight")]
    out = module.ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    out.backward(case["grad_out"].to(kind))
    for ours, name in zip((out, *(leaf.grad for leaf in leaves)), ("out", "grad_value", "grad_loc", "grad_weight")):
        torch.testing.assert_close(ours.double(), case[name], atol=tolerance, rtol=tolerance)
