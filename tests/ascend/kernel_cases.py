"""Each operation of ops/npu.py against the oracle, forward and backward: run by test_npu.py in a process of its own.

STANDIN_DEVICE is the device of the tensors: the pretended card, or cpu where PyTorch cannot pretend one.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Callable, List, Tuple

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from afresh import forget_kernels
from torch import Tensor

from tpvformer.ops import npu, reference

torch_npu.npu.is_available() and torch_npu.npu.set_device(0)
torch_npu._state["device"] = 0  # where there are no cards the runtime is asked nothing
DEVICE = torch.device(os.environ.get("STANDIN_DEVICE", "npu"))
SDK = os.environ["STANDIN_SDK"]
SHAPES4, SHAPES3 = ((6, 9), (3, 5), (2, 3), (1, 2)), ((5, 7), (3, 5), (7, 3))
# (heads, channels a head, levels, points): what the published configurations ask for
CALLS = [
    (4, 16, SHAPES4, 4), (4, 16, SHAPES4, 32), (4, 16, SHAPES3, 16), (8, 16, SHAPES4, 8), (8, 16, SHAPES4, 64),
    (8, 16, SHAPES3, 32), (6, 16, SHAPES4, 48), (8, 32, SHAPES3[:1], 8), (8, 64, SHAPES4, 5), (2, 8, SHAPES3, 1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPVFORMER_OPS", raising=False)
    forget_kernels()
    del torch_npu.calls[:]


def rand(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def results(
    function: Callable[..., Tensor], leaves: List[Tensor], device: torch.device, kind: torch.dtype
) -> List[Tensor]:
    """The output and the gradient of each leaf, on the CPU in float64."""
    leaves = [leaf.to(kind).to(device).requires_grad_() for leaf in leaves]
    out = function(*leaves)
    slope = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype).to(device)
    return [t.cpu().double() for t in (out.detach(), *torch.autograd.grad(out, leaves, slope))]


def agree(
    ours: Callable[..., Tensor], oracle: Callable[..., Tensor], leaves: List[Tensor], tolerance: float = 2e-5
) -> None:
    pairs = zip(
        results(ours, leaves, DEVICE, torch.float32), results(oracle, leaves, torch.device("cpu"), torch.float64)
    )
    for got, expected in pairs:
        assert (got - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def kernels_called() -> List[Tuple[Any, ...]]:
    return [call for call in torch_npu.calls if call[0] in npu.NAMES]


@pytest.mark.parametrize(("heads", "dim", "shapes", "points"), CALLS)
def test_attention(heads: int, dim: int, shapes: Any, points: int) -> None:
    """Points beyond the limit of a call are split, and the parts add up, in the gradients too.

    From 7.0 on groups of points become queries, so that one call takes the fast path where any can.
    """
    tokens, queries, levels = sum(h * w for h, w in shapes), 5, len(shapes)
    leaves = [
        rand(2, tokens, heads, dim) - 0.5,
        rand(2, queries, heads, levels, points, 2, seed=1) * 1.4 - 0.2,
        rand(2, queries, heads, levels, points, seed=2),
    ]
    agree(
        lambda v, x, w: npu.ms_deform_attn(v, shapes, x, w),
        lambda v, x, w: reference.ms_deform_attn(v, shapes, x, w),
        leaves,
    )
    calls = kernels_called()
    assert all(call[3] * call[4] <= 64 for call in calls)
    if npu.fast_points(heads, dim, levels, points) < points and SDK != "6.0.0":
        (call,) = calls
        assert heads * levels * call[4] <= 64 and heads * levels * call[4] * dim <= 2048
        assert call[4] * call[6] == points * queries, "as many samples as before"
        return
    assert len(calls) == -(-points // npu.points_a_call(levels))
    assert sum(call[4] for call in calls) == points


@pytest.mark.parametrize(
    ("heads", "dim", "levels", "points", "fast"),
    [
        (4, 16, 4, 4, 4),  # dim64, images, plane hw: on the fast path as it is
        (4, 16, 4, 32, 4),  # planes zh and wz: two calls of 16 before, 8 groups of 4 now
        (4, 16, 3, 16, 4),  # plane attention: 192 samples a head group before, 48 now
        (8, 16, 4, 8, 2),
        (8, 16, 3, 32, 2),
        (8, 32, 4, 8, 2),
        (8, 32, 1, 8, 8),
        (6, 16, 4, 48, 2),
        (8, 64, 4, 5, 1),
        (8, 16, 9, 7, 7),  # no number of points is small enough
    ],
)
def test_points_on_the_fast_path(heads: int, dim: int, levels: int, points: int, fast: int) -> None:
    assert npu.fast_points(heads, dim, levels, points) == fast


def test_folding_keeps_every_sample() -> None:
    tensor = torch.arange(2 * 3 * 2 * 4 * 6 * 2.0).view(2, 3, 2, 4, 6, 2)
    folded = npu.fold(tensor, 2)
    assert folded.shape == (2, 9, 2, 4, 2, 2)
    for query in range(3):
        for group in range(3):
            assert torch.equal(folded[:, 3 * query + group], tensor[:, query, :, :, 2 * group : 2 * group + 2])


@pytest.mark.parametrize("extra", [0, 2])
def test_listed_queries(extra: int) -> None:
    """Each camera takes its own queries, and some that it does not see; the sums and gradients are the oracle's."""
    b, n, q, heads, points = 2, 3, 11, 4, 8
    visible = rand(b, n, q, seed=3) > 0.7
    visible[:, :, 2], visible[1, 2] = False, False
    visible[0, 0, 0] = True  # the query that padding points at
    length = int(visible.sum(-1).max()) + extra
    order = visible.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :length]
    rows = torch.where(torch.arange(length) < visible.sum(-1, keepdim=True) + extra // 2, order, -1).int()
    anchors = torch.where(visible[..., None, None], rand(b, n, q, 4, 2, seed=4), torch.full((), 6e6))
    leaves = [
        rand(b, n, 77, heads, 8) - 0.5,
        rand(b, q, heads, 4, points, 2, seed=1) * 4 - 2,
        rand(b, q, heads, 4, points, seed=2),
    ]

    def ours(v: Tensor, o: Tensor, w: Tensor) -> Tensor:
        given = (anchors.to(DEVICE), visible.to(DEVICE), o, w, rows.to(DEVICE))
        return npu.image_cross_attention(v, SHAPES4, *given)

    agree(ours, lambda v, o, w: reference.image_cross_attention(v, SHAPES4, anchors, visible, o, w), leaves)
    samples = sum(call[5] * call[6] * call[4] for call in kernels_called()[:1])
    assert samples == b * n * length * points < b * n * q * points


def test_plane_attention() -> None:
    anchors = rand(11, 3, 4, 2)
    leaves = [rand(2, 71, 4, 8) - 0.5, rand(2, 11, 4, 3, 8, 2, seed=1) * 4 - 2, rand(2, 11, 4, 3, 8, seed=2)]
    agree(
        lambda v, o, w: npu.cross_view_attention(v, SHAPES3, anchors.to(DEVICE), o, w),
        lambda v, o, w: reference.cross_view_attention(v, SHAPES3, anchors, o, w),
        leaves,
    )


def test_image_attention() -> None:
    """Cameras that do not see a query weigh nothing, wherever their anchors are; what nobody sees gets zeros."""
    b, n, q, heads, points = 2, 3, 6, 2, 32
    visible = rand(b, n, q, seed=3) > 0.4
    visible[:, :, 2] = False
    anchors = rand(b, n, q, 4, 2, seed=4) * 1.5 - 0.25
    anchors = torch.where(visible[..., None, None], anchors, torch.full((), 6e6))
    leaves = [
        rand(b, n, 77, heads, 8) - 0.5,
        rand(b, q, heads, 4, points, 2, seed=1) * 4 - 2,
        rand(b, q, heads, 4, points, seed=2),
    ]

    def ours(v: Tensor, o: Tensor, w: Tensor) -> Tensor:
        return npu.image_cross_attention(v, SHAPES4, anchors.to(DEVICE), visible.to(DEVICE), o, w)

    agree(ours, lambda v, o, w: reference.image_cross_attention(v, SHAPES4, anchors, visible, o, w), leaves)
    out = ours(*(leaf.to(DEVICE) for leaf in leaves))
    assert (out[:, 2] == 0).all()
    assert all(call[0] == "attention" for call in kernels_called())


def test_constants_are_sent_once() -> None:
    value, where, weight = rand(1, 77, 2, 8), rand(1, 3, 2, 4, 2, 2), rand(1, 3, 2, 4, 2)
    before = npu._levels.cache_info()
    for _ in range(3):
        npu.ms_deform_attn(value.to(DEVICE), list(SHAPES4), where.to(DEVICE), weight.to(DEVICE))
    after = npu._levels.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_constants_made_while_inferring_serve_training_too() -> None:
    leaves = [rand(1, 77, 2, 8), rand(1, 3, 2, 4, 2, 2), rand(1, 3, 2, 4, 2)]
    with torch.inference_mode():
        npu.ms_deform_attn(*(leaves[0].to(DEVICE), SHAPES4, leaves[1].to(DEVICE), leaves[2].to(DEVICE)))
    assert len(results(lambda v, x, w: npu.ms_deform_attn(v, SHAPES4, x, w), leaves, DEVICE, torch.float32)) == 4


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(kind: torch.dtype) -> None:
    """The kernels refuse bf16, and fp16 locations would be off by pixels; results have the type of what was given."""
    leaves = [rand(1, 77, 2, 8), rand(1, 3, 2, 4, 2, 2), rand(1, 3, 2, 4, 2)]
    value, where, weight = (leaf.to(kind) for leaf in leaves)
    out = npu.ms_deform_attn(value.to(DEVICE), SHAPES4, where.to(DEVICE), weight.to(DEVICE))
    assert out.dtype == kind
    expected = reference.ms_deform_attn(value.float(), SHAPES4, where.float(), weight.float())
    assert (out.cpu().float() - expected).abs().max() < 1e-2 * expected.abs().max()
    x, offset, mask, kernel = rand(1, 64, 5, 6), rand(1, 18, 5, 6), rand(1, 9, 5, 6), rand(64, 64, 3, 3, seed=5) - 0.5
    given = [t.to(kind).to(DEVICE) for t in (x, offset, mask, kernel)]
    assert npu.modulated_deform_conv2d(*given, None, 1, 1, 1, 1, 1).dtype == kind
    assert [call[0] for call in kernels_called()] == ["attention", "convolution"]


CONVOLUTIONS = [
    # channels in, out, stride, padding, dilation, with bias, served by the kernel
    (64, 128, 1, 1, 1, False, True), (64, 64, 1, 1, 1, True, True), (128, 64, 2, 1, 1, True, True),
    (64, 64, 1, 2, 2, False, True), (48, 64, 1, 1, 1, True, False), (64, 32, 2, 1, 1, False, False),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "outputs", "stride", "padding", "dilation", "bias", "kernel"), CONVOLUTIONS)
def test_convolution(
    inputs: int, outputs: int, stride: int, padding: int, dilation: int, bias: bool, kernel: bool
) -> None:
    """The kernel would drop the bias; what it does not take is sampled by plain operations."""
    geometry = (stride, padding, dilation, 1, 1)
    ho, wo = ((size + 2 * padding - 2 * dilation - 1) // stride + 1 for size in (7, 9))
    leaves = [
        rand(2, inputs, 7, 9) - 0.5,
        rand(2, 18, ho, wo, seed=1) * 4 - 2,
        rand(2, 9, ho, wo, seed=2),
        (rand(outputs, inputs, 3, 3, seed=3) - 0.5) / 8,
        rand(outputs, seed=4),
    ][: 5 if bias else 4]

    def call(module: Any) -> Callable[..., Tensor]:
        return lambda x, o, m, w, b=None: module.modulated_deform_conv2d(x, o, m, w, b, *geometry)

    agree(call(npu), call(reference), leaves, 1e-4)
    assert bool(kernels_called()) == kernel


def test_convolution_in_groups() -> None:
    x, kernel = rand(1, 8, 5, 6) - 0.5, rand(4, 4, 3, 3, seed=3) - 0.5
    offset, mask = rand(1, 36, 5, 6, seed=1), rand(1, 18, 5, 6, seed=2)
    expected = reference.modulated_deform_conv2d(x, offset, mask, kernel, None, 1, 1, 1, 2, 2)
    given = [t.to(DEVICE) for t in (x, offset, mask, kernel)]
    torch.testing.assert_close(npu.modulated_deform_conv2d(*given, None, 1, 1, 1, 2, 2).cpu(), expected)
    assert not kernels_called()


@pytest.mark.parametrize(
    ("size", "kind", "gradient", "kernel"),
    [
        ((1, 64, 102, 104), torch.float32, False, True),
        ((1, 64, 102, 104), torch.float16, False, True),
        ((1, 64, 102, 104), torch.float32, True, False),  # it has no backward pass
        ((1, 12, 102, 104), torch.float32, False, False),
        ((1, 64, 100, 104), torch.float32, False, False),
        ((1, 64, 102, 104), torch.bfloat16, False, False),
    ],
)
def test_max_pool(size: Tuple[int, ...], kind: torch.dtype, gradient: bool, kernel: bool) -> None:
    x = (rand(*size) - 0.5).to(kind)
    out = npu.max_pool(x.to(DEVICE).requires_grad_(gradient))
    assert torch.equal(out.detach().cpu(), F.max_pool2d(x.float(), 3, 2, 1).to(kind))
    assert bool(kernels_called()) == kernel
    if gradient:
        out.sum().backward()


def test_a_chip_that_the_pooling_kernel_does_not_know(monkeypatch, caplog) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError("this chip")

    monkeypatch.setattr(npu, "find", lambda name: refuse)
    monkeypatch.setenv("RANK", "0")
    x = rand(1, 64, 102, 104) - 0.5
    for _ in range(2):
        assert torch.equal(npu.max_pool(x.to(DEVICE)).cpu(), F.max_pool2d(x, 3, 2, 1))
    assert len(caplog.records) == 1 and "this chip" in caplog.text


@pytest.mark.parametrize("contiguous", [True, False])
def test_add_relu(contiguous: bool) -> None:
    """STANDIN_IN_PLACE_FROM=0: x is overwritten behind autograd's back, as large tensors are; gradients stay right."""
    x, y = rand(2, 3, 4, 5) - 0.5, rand(2, 3, 4, 5, seed=1) - 0.5

    def ours(a: Tensor, b: Tensor) -> Tensor:
        fresh = a * 2  # a result that nobody else holds
        return npu.add_relu(fresh if contiguous else fresh.transpose(2, 3), b if contiguous else b.transpose(2, 3))

    def oracle(a: Tensor, b: Tensor) -> Tensor:
        out = F.relu(a * 2 + b)
        return out if contiguous else out.transpose(2, 3)

    agree(ours, oracle, [x, y])
    assert bool(kernels_called()) == contiguous
    assert os.environ["STANDIN_IN_PLACE_FROM"] == "0"


def test_limits() -> None:
    assert npu.attention_problem(8, 64, 4) is None
    assert npu.attention_problem(9, 16, 4) == "9 heads, at most 8 are supported"
    assert npu.attention_problem(8, 12, 4) == "12 channels a head, multiples of 8 up to 64 are supported"
    assert "128 channels a head" in str(npu.attention_problem(8, 128, 4))
    assert "65 levels" in str(npu.attention_problem(8, 16, 65))
    assert [npu.points_a_call(levels) for levels in (1, 3, 4, 5, 64)] == [64, 16, 16, 8, 1]
    assert "1x1 kernel" in str(npu.convolution_problem((64, 64, 1, 1)))
    assert "2 groups" in str(npu.convolution_problem((64, 64, 3, 3), 2))


def test_beyond_the_limits_plain_operations_serve_unless_the_kernel_is_insisted_on(monkeypatch) -> None:
    value, where, weight = rand(1, 77, 2, 12), rand(1, 3, 2, 4, 2, 2), rand(1, 3, 2, 4, 2)
    given = (value.to(DEVICE), SHAPES4, where.to(DEVICE), weight.to(DEVICE))
    expected = reference.ms_deform_attn(value, SHAPES4, where, weight)
    torch.testing.assert_close(npu.ms_deform_attn(*given).cpu(), expected)
    assert not kernels_called()
    monkeypatch.setenv("TPVFORMER_OPS", "mx_driving")
    with pytest.raises(RuntimeError, match="does not support attention: 12 channels a head"):
        npu.ms_deform_attn(*given)


@pytest.mark.parametrize("error", [ImportError("none"), AssertionError("no card"), OSError("libhccl.so")])
def test_an_sdk_that_does_not_load_is_said_once(error: Exception, monkeypatch, caplog) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(npu.importlib, "import_module", fail)
    monkeypatch.setenv("RANK", "0")
    value, where, weight = rand(1, 77, 2, 8), rand(1, 3, 2, 4, 2, 2), rand(1, 3, 2, 4, 2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            npu.ms_deform_attn(value.to(DEVICE), SHAPES4, where.to(DEVICE), weight.to(DEVICE))
    assert [record.getMessage() for record in caplog.records] == [
        f"mx_driving's attention is not available ({error}); plain PyTorch is used instead"
    ]
    monkeypatch.setenv("TPVFORMER_OPS", "mx_driving")
    with pytest.raises(RuntimeError, match=f"does not support attention: {error}"):
        npu.ms_deform_attn(value.to(DEVICE), SHAPES4, where.to(DEVICE), weight.to(DEVICE))


def test_one_missing_name_does_not_cost_the_others(monkeypatch) -> None:
    import mx_driving

    holder = sys.modules["mx_driving.fused"] if SDK == "6.0.0" else mx_driving
    npu.find_all()
    forget_kernels()
    monkeypatch.delattr(holder, "npu_add_relu")
    if SDK != "6.0.0":
        monkeypatch.setitem(sys.modules, "mx_driving.fused", None)  # the fallback name is looked for there
    assert list(npu.find_all()) == ["add_relu"]
    x = rand(1, 2, 3, 4).to(DEVICE)
    assert torch.equal(npu.add_relu(x * 1, x).cpu(), x.cpu() * 2)


def test_the_stand_ins_refuse_what_the_kernels_would() -> None:
    kernel = npu.find("attention")
    assert kernel is not None
    shapes, starts, _ = npu._levels(SHAPES4, DEVICE)
    value, where, weight = (t.to(DEVICE) for t in (rand(1, 77, 2, 8), rand(1, 3, 2, 4, 2, 2), rand(1, 3, 2, 4, 2)))
    kernel(value, shapes, starts, where, weight)
    with pytest.raises(TypeError):
        kernel(value, shapes, starts, where, weight, 64)
    with pytest.raises(TypeError):
        kernel(value, shapes, starts, where, attention_weights=weight)
    with pytest.raises(RuntimeError, match="bfloat16"):
        kernel(value.bfloat16(), shapes, starts, where.bfloat16(), weight.bfloat16())
    with pytest.raises(RuntimeError, match="int64"):
        kernel(value, shapes.long(), starts.long(), where, weight)
    if SDK != "6.0.0":
        many = rand(1, 3, 2, 4, 32).to(DEVICE)
        with pytest.raises(RuntimeError, match="at most 64"):
            kernel(value, shapes, starts, rand(1, 3, 2, 4, 32, 2).to(DEVICE), many)
