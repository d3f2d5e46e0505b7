"""The operators as PyTorch sees them: fakes, torch.compile, autocast, derivatives."""

from __future__ import annotations

import shutil
from typing import Any, Callable, List, Tuple

import pytest
import torch
from ops_tools import CAMERAS, HEADS, NAMES, POINTS, QUERIES, SHAPES, TOKENS, WIDTH, operations
from torch import Tensor

from tpvformer import ops
from tpvformer.ops import library, reference

pytest.importorskip("numba", reason="numba is not installed")
registered = pytest.mark.skipif(
    not hasattr(torch.library, "custom_op"), reason="PyTorch before 2.4 cannot register operators with gradients"
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba serves; that the oracle does so in its place is an error."""
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    for operation in operations().values():  # before the oracle is hidden from operations
        operation.run(*operation.leaves)
    monkeypatch.setattr(ops, "reference", None)


def attention_inputs(kind: torch.dtype) -> List[Tensor]:
    samples = (2, QUERIES, HEADS, len(SHAPES), POINTS)
    value, offsets, weights = (
        torch.rand(2, CAMERAS, TOKENS, HEADS, WIDTH), torch.rand(*samples, 2), torch.rand(*samples),
    )  # fmt: skip
    anchors, bits = torch.rand(1, CAMERAS, QUERIES, 1, 2, 2), torch.randint(0, 2**CAMERAS, (2, QUERIES))
    return [value.to(kind), anchors, bits, offsets.to(kind), weights.to(kind), torch.rand(2, QUERIES)]


def convolution_inputs(kind: torch.dtype) -> List[Tensor]:
    return [
        torch.rand(2, 6, 5, 16).to(kind), torch.rand(2, 6, 5, 18), torch.rand(2, 6, 5, 9), torch.rand(144, 4).to(kind)
    ]  # fmt: skip


def permuted(x: Tensor) -> Tensor:
    """The same values and shape, the last axis slowest in memory."""
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def prepared(inputs: List[Tensor], change: Callable[[Tensor], Tensor], leaves: Tuple[int, ...]) -> List[Tensor]:
    return [change(x).requires_grad_(i in leaves) for i, x in enumerate(inputs)]


@registered
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [torch.clone, permuted])
def test_operators_are_what_they_say(change: Callable[[Tensor], Tensor], kind: torch.dtype) -> None:
    shapes, geometry = [n for pair in SHAPES for n in pair], [3, 3, 1, 1, 1]
    attend, convolve = attention_inputs(kind), convolution_inputs(kind)
    checks = (
        (library._attention, prepared(attend, change, (0, 3, 4)), shapes),
        (library._attention_backward, prepared([*attend, torch.rand(2, QUERIES, 16).to(kind)], change, ()), shapes),
        (library._convolution, prepared(convolve, change, (0, 1, 2, 3)), geometry),
        (library._convolution_backward, prepared([*convolve, torch.rand(2, 6, 5, 4).to(kind)], change, ()), geometry),
    )
    for operator, tensors, numbers in checks:
        if kind == torch.float32:
            torch.library.opcheck(operator, (*tensors, numbers))
        else:  # gradients of bfloat16 are too coarse for opcheck's tolerances
            torch.library.opcheck(operator, (*tensors, numbers), test_utils=("test_schema", "test_faketensor"))


@registered
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_whole(name: str) -> None:
    eager = operations()[name]
    compiled = eager._replace(run=torch.compile(eager.run, fullgraph=True, backend="aot_eager"))
    for ours, theirs in zip(compiled.results(), eager.results()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@registered
@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile is not installed")
def test_compiled_by_inductor() -> None:
    eager = operations()["image_cross_attention"]
    compiled = eager._replace(run=torch.compile(eager.run, fullgraph=True))
    for ours, theirs in zip(compiled.results(), eager.results()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What autocast hands over in bfloat16 is computed in float32; what stays float32 is not touched."""
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    if backend == "reference":
        monkeypatch.setattr(ops, "reference", reference)
    exact = operations()[name]
    geometry = () if name != "modulated_deform_conv2d" else (1, 2)  # float32 in the model
    half = [t if i in geometry else t.bfloat16() for i, t in enumerate(exact.leaves)]
    rounded = exact._replace(leaves=[t.float() for t in half]).results()
    with torch.autocast("cpu", torch.bfloat16):
        same, cast = exact.results(), exact._replace(leaves=half).results()
    tolerance = 1e-6 if backend == "numba" else 1e-2  # autocast reaches into the oracle's backward pass
    for ours, theirs in zip(same, exact.results()):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert [t.dtype for t in cast] == [torch.bfloat16, *(t.dtype for t in half)]
    for ours, theirs in zip(cast, rounded):
        assert torch.isfinite(ours).all()
        assert (ours - theirs).abs().max() <= 1e-2 * theirs.abs().max()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_refused(name: str) -> None:
    operation = operations()[name]
    leaves = [t.clone().requires_grad_() for t in operation.leaves]
    first: Any = torch.autograd.grad(operation.run(*leaves).square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="first derivatives only|differentiate twice"):
        first.sum().backward()
