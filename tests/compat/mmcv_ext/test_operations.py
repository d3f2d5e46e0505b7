"""The stand-in for mmcv's compiled operations, called as mmcv's files call it, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Tuple

import pytest
import sampled
import torch
from torch import Tensor

from tpvformer import ops
from tpvformer.compat.mmcv_ext import extension, operations
from tpvformer.errors import OpsError
from tpvformer.ops import library

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = ((5, 6), (2, 3), (1, 1))
BACKENDS = ("", "reference")


def attention(*given: Tensor) -> Tensor:
    return sampled.attention(*given, SHAPES)


def oracle(run: Callable[..., Tensor], given: Sequence[Tensor], slope: Callable[[Tensor], Tensor]) -> List[Tensor]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in given]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope(out))]


def slope_of(out: Tensor) -> Tensor:
    return torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)


def near(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape and b.abs().max() > 0
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


def attention_inputs(kind: torch.dtype = torch.float32) -> Tuple[List[Tensor], Dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(2, 37, 2, 8, generator=generator) - 0.5
    locations = torch.rand(2, 7, 2, 3, 4, 2, generator=generator) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 7, 2, 3, 4, generator=generator)
    levels = {"value_spatial_shapes": torch.tensor(SHAPES), "value_level_start_index": torch.tensor([0, 30, 36])}
    return [tensor.to(kind) for tensor in (value, locations, weights)], levels


@pytest.mark.parametrize("step", [1, 64])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(backend: str, kind: torch.dtype, tolerance: float, step: int, monkeypatch: Any) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    given, levels = attention_inputs(kind)
    value, locations, weights = given
    shapes, starts = levels.values()
    out = extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=step)
    assert out.dtype == kind and out.shape == (2, 7, 16)
    grads = [torch.zeros_like(tensor) for tensor in given]
    slope = slope_of(out).transpose(0, 1).contiguous().transpose(0, 1)
    extension.ms_deform_attn_backward(
        value, shapes, starts, locations, weights, slope, *grads, im2col_step=step
    )  # mmcv gives the tensors by position and the step by name
    near([out, *grads], oracle(attention, given, slope_of), tolerance)


def test_attention_by_names_adds_to_the_values_gradient() -> None:
    """The compiled operation adds to what is in the value's gradient, and writes the two others."""
    given, levels = attention_inputs()
    named = dict(zip(("value", "sampling_locations", "attention_weights"), given))
    out = extension.ms_deform_attn_forward(**named, **levels, im2col_step=2)
    outs = {
        "grad_output": slope_of(out),
        "grad_value": torch.ones_like(given[0]),
        "grad_sampling_loc": torch.ones_like(given[1]),
        "grad_attn_weight": torch.ones_like(given[2]),
    }
    extension.ms_deform_attn_backward(**named, **levels, **outs, im2col_step=2)
    found = [outs["grad_value"] - 1, outs["grad_sampling_loc"], outs["grad_attn_weight"]]
    near(found, oracle(attention, given, slope_of)[1:], 1e-5)


@pytest.mark.parametrize("shapes", [torch.tensor(SHAPES), SHAPES], ids=["tensor", "numbers"])
def test_the_attention_for_a_cpu_is_differentiable(shapes: Any) -> None:
    given, _ = attention_inputs()
    leaves = [tensor.requires_grad_() for tensor in given]
    out = operations.multi_scale_deformable_attn_pytorch(leaves[0], shapes, leaves[1], leaves[2])
    grads = torch.autograd.grad(out, leaves, slope_of(out))
    near([out.detach(), *grads], oracle(attention, given, slope_of), 1e-5)


def test_levels_in_another_order_are_refused() -> None:
    (value, locations, weights), levels = attention_inputs()
    levels["value_level_start_index"] = torch.tensor([7, 0, 36])
    with pytest.raises(ValueError, match=r"level_start_index is \[7, 0, 36\]; expected \[0, 30, 36\]"):
        extension.ms_deform_attn_forward(*(value, *levels.values(), locations, weights), im2col_step=64)


def test_shapes_on_a_card_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a card: its tensors have no numbers, so each reading is seen."""
    read: List[int] = []

    class OnCard(torch.Tensor):
        device = torch.device("meta")  # ty: ignore[invalid-assignment]

        def tolist(self) -> Any:
            read.append(1)
            return self.as_subclass(torch.Tensor).tolist()

    shapes = torch.tensor(SHAPES).as_subclass(OnCard)
    assert [operations._level_shapes(shapes) for _ in range(3)] == [SHAPES] * 3 and len(read) == 1
    shapes[0, 0], shapes[0, 1] = 6, 5
    assert operations._level_shapes(shapes)[0] == (6, 5) and len(read) == 2
    assert operations._level_shapes(torch.tensor([[1, 2]]).as_subclass(OnCard)) == ((1, 2),) and len(read) == 3
    del shapes
    assert not operations._reads


CASES = {
    "plain": (((1, 1), (1, 1), (1, 1)), 1, 1, (3, 3)),
    "strided": (((2, 2), (1, 1), (1, 1)), 1, 1, (3, 3)),
    "dilated": (((1, 1), (2, 2), (2, 2)), 1, 1, (3, 3)),
    "grouped": (((1, 1), (1, 1), (1, 1)), 2, 4, (3, 3)),
    "not square": (((2, 1), (0, 2), (1, 2)), 2, 2, (3, 2)),
    "one tap": (((1, 1), (0, 0), (1, 1)), 1, 1, (1, 1)),
}


def convolution_inputs(name: str, kind: torch.dtype = torch.float32) -> Tuple[List[Tensor], Dict[str, Any]]:
    """x, offset, mask, weight, and the keywords of the compiled operation but for ``with_bias``."""
    sizes, group, deform, (kh, kw) = CASES[name]
    (sh, sw), (ph, pw), (dh, dw) = sizes
    ho, wo = (9 + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (7 + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 16, 9, 7, generator=generator) - 0.5
    offset = torch.rand(2, 2 * deform * kh * kw, ho, wo, generator=generator) * 6 - 3
    mask = torch.rand(2, deform * kh * kw, ho, wo, generator=generator)
    weight = torch.rand(8, 16 // group, kh, kw, generator=generator) - 0.5
    named = {
        "kernel_h": kh,
        "kernel_w": kw,
        "stride_h": sh,
        "stride_w": sw,
        "pad_h": ph,
        "pad_w": pw,
        "dilation_h": dh,
        "dilation_w": dw,
        "group": group,
        "deformable_group": deform,
    }
    return [tensor.to(kind) for tensor in (x, offset, mask, weight)], named


@pytest.mark.parametrize(
    ("layout", "with_bias"), [(torch.contiguous_format, False), (torch.channels_last, True)], ids=["first", "last"]
)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_convolution(backend: str, name: str, with_bias: bool, layout: torch.memory_format, monkeypatch: Any) -> None:
    """mmcv's own operation on a CPU is wrong for a channels-last input and does not say so."""
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    given, named = convolution_inputs(name)
    x, offset, mask, weight = [tensor.contiguous(memory_format=layout) for tensor in given]
    bias = torch.linspace(-1, 1, 8) if with_bias else x.new_empty(0)
    scratch = x.new_empty(0)
    size = (2, 8, *offset.shape[2:])
    out = torch.full(size, float("nan"))
    extension.modulated_deform_conv_forward(
        x, weight, bias, scratch, offset, mask, out, scratch, **named, with_bias=with_bias
    )
    grads = [torch.zeros_like(tensor) for tensor in (x, weight, bias, offset, mask)]
    slope = slope_of(out).contiguous(memory_format=layout)
    extension.modulated_deform_conv_backward(
        *(x, weight, bias, scratch, offset, mask, scratch), *grads, slope, **named, with_bias=with_bias
    )
    sizes, group, deform, _ = CASES[name]
    wanted = oracle(
        lambda *g: sampled.convolution(*g, sizes, group, deform) + (bias.double()[:, None, None] if with_bias else 0),
        given,
        slope_of,
    )
    near([out, grads[0], grads[3], grads[4], grads[1]], wanted, 1e-5)
    if with_bias:
        assert torch.allclose(grads[2], slope.sum((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("name", ["grouped", "not square"])
def test_convolution_in_double(name: str) -> None:
    given, named = convolution_inputs(name, torch.float64)
    x, offset, mask, weight = given
    none, out = x.new_empty(0), x.new_zeros(2, 8, *offset.shape[2:])
    extension.modulated_deform_conv_forward(x, weight, none, none, offset, mask, out, none, **named, with_bias=False)
    sizes, group, deform, _ = CASES[name]
    near([out], [sampled.convolution(x, offset, mask, weight, sizes, group, deform)], 1e-12)


def test_a_kernel_of_another_size_is_refused() -> None:
    (x, offset, mask, weight), named = convolution_inputs("plain")
    named["kernel_w"] = 5
    with pytest.raises(ValueError, match="the kernel is 3 x 5; expected that of weight"):
        extension.modulated_deform_conv_forward(*(x, weight, x, x, offset, mask, x, x), **named, with_bias=False)


def test_every_other_name_is_there_and_says_what_it_is() -> None:
    assert all(hasattr(extension, name) for name in ("nms", "roi_align_forward", "any_name"))
    with pytest.raises(OpsError, match=r"^mmcv\._ext\.nms is not there: tpvformer stands in .* attention and DCNv2"):
        extension.nms(torch.zeros(3, 4), threshold=0.5)
    assert not hasattr(extension, "__path__")
    assert "tpvformer" in extension.get_compiler_version()
    assert extension.get_compiling_cuda_version() == "not available"


def test_kernels_serve_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above without a backend named are of kernels, where Numba is installed."""
    pytest.importorskip("numba")
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    monkeypatch.setattr(ops, "reference", None)
    (value, locations, weights), levels = attention_inputs()
    extension.ms_deform_attn_forward(*(value, *levels.values(), locations, weights), im2col_step=64)


def test_kernels_need_no_forward_pass_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmcv's backward functions get no graph; a forward pass inside them would be computed twice a step."""
    pytest.importorskip("numba")
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    given, levels = attention_inputs()
    value, locations, weights = given
    slope, grads = torch.ones(2, 7, 16), [torch.zeros_like(tensor) for tensor in given]
    (x, offset, mask, kernel), named = convolution_inputs("strided")
    none, out = x.new_empty(0), x.new_zeros(2, 8, *offset.shape[2:])
    by = [torch.zeros_like(tensor) for tensor in (x, kernel, none, offset, mask)]
    extension.ms_deform_attn_forward(*(value, *levels.values(), locations, weights), im2col_step=64)  # fills the tables
    extension.modulated_deform_conv_forward(*(x, kernel, none, none, offset, mask, out, none), **named, with_bias=False)
    for table in (library.ATTENTION, library.CONVOLUTION):
        monkeypatch.setattr(table["cpu"], "forward", None)
    extension.ms_deform_attn_backward(*(value, *levels.values(), locations, weights, slope), *grads, im2col_step=64)
    extension.modulated_deform_conv_backward(
        *(x, kernel, none, none, offset, mask, none), *by, torch.ones_like(out), **named, with_bias=False
    )
    assert all(float(grad.abs().max()) > 0 for grad in (*grads, by[0], by[1], by[3], by[4]))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_gradients_have_the_types_of_their_tensors(kind: torch.dtype) -> None:
    """Under autocast the tensors differ: x in bfloat16, offset and mask in ``kind``, and the kernel in float32."""
    (x, offset, mask, weight), _ = convolution_inputs("plain")
    given = [x.bfloat16(), offset.to(kind), mask.to(kind), weight]
    found = ops.modulated_deform_conv2d_gradients(*given, torch.ones(2, 8, *offset.shape[2:]), padding=1)
    assert [grad.dtype for grad in found] == [tensor.dtype for tensor in given]
    (value, locations, weights), _ = attention_inputs()
    given = [value.bfloat16(), locations.to(kind), weights]
    found = ops.ms_deform_attn_gradients(given[0], SHAPES, *given[1:], torch.ones(2, 7, 16))
    assert [grad.dtype for grad in found] == [tensor.dtype for tensor in given]
