"""The Triton kernels without the hardware: their results in the interpreter, and that they compile for sm_90.

None of this has run on a GPU; the assembler's report of registers and spills is the nearest thing to it.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import programs
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

try:
    from tpvformer.ops import triton_attention, triton_dcn, triton_elementwise
except ImportError as err:
    pytest.skip(str(err), allow_module_level=True)

CHECK = Path(__file__).parents[1] / "support" / "triton_check.py"
FULL, HALF = torch.float32, torch.bfloat16
TYPES = {FULL: "*fp32", HALF: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}
DIM64 = ((116, 200), (58, 100), (29, 50), (15, 25))  # levels of an image of 928x1600
WIDE_ATOMIC = r"(red|atom)\.[a-z.]*\.v4\.f32"  # the assembler drops a result that nobody reads
PLANES = ((200, 200), (16, 200), (200, 16))


def test_kernels_agree_with_the_oracle_in_the_interpreter() -> None:
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    run = programs.run([sys.executable, str(CHECK)], env=environment, stderr=subprocess.STDOUT, seconds=600)
    assert run.returncode == 0, run.stdout


def compiled(kernel: Any, tensors: Tuple[Tensor, ...], positional: Tuple[Any, ...], named: Dict[str, Any]) -> Any:
    """The kernel as a launch with these arguments would build it for a card of compute capability 9.0."""
    if "constexprs" not in inspect.signature(triton.compiler.ASTSource).parameters:
        pytest.skip("this triton describes its kernels to the compiler in another way")
    options = {k: named[k] for k in ("num_warps", "num_stages", "enable_fp_fusion")}
    given = dict(zip(kernel.arg_names, tensors + positional), **{k: v for k, v in named.items() if k not in options})
    assert list(given) == kernel.arg_names
    signature, constants, aligned = {}, {}, {}
    for place, (name, value) in enumerate(given.items()):
        is_tensor = isinstance(value, Tensor)
        if name in named or (not is_tensor and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
            continue
        signature[name] = TYPES[value.dtype] if is_tensor else "i32"
        if is_tensor or value % 16 == 0:
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32), options=options)


def usage(built: Any, folder: Path) -> Dict[str, int]:
    """The assembler's figures: REG a thread, STACK bytes (where spills go), SHARED bytes."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton brings no cuobjdump")
    binary = folder / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])
    text = programs.run([str(tool), "-res-usage", str(binary)], check=True).stdout
    return {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")


@pytest.mark.parametrize("kinds", [(FULL, FULL), (HALF, HALF), (HALF, FULL)], ids=["fp32", "bf16", "mixed"])
@pytest.mark.parametrize(
    "cameras,queries,points,anchors,shared,shapes",
    [(1, 46400, 16, 16, False, PLANES), (6, 40000, 4, 4, True, DIM64), (6, 3200, 32, 32, True, DIM64)],
    ids=["planes", "image_hw", "image_zh"],
)
def test_attention_compiles_for_sm90(
    kinds: Any, cameras: int, queries: int, points: int, anchors: int, shared: bool, shapes: Any, tmp_path: Path
) -> None:
    heads, d, levels = 4, 16, len(shapes)

    def empty(*size: int, kind: torch.dtype = FULL) -> Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    value = empty(1, cameras, sum(h * w for h, w in shapes), heads, d, kind=kinds[0])
    anchor = empty(1, cameras, queries, 1 if shared else levels, anchors, 2)
    offsets = empty(1, queries, heads, levels, points, 2, kind=kinds[1])
    weights, bits, scale = offsets[..., 0], empty(1, queries, kind=torch.int64), empty(1, queries)
    out = empty(1, queries, heads * d, kind=kinds[0])
    common = (value, anchor, bits, offsets, weights, scale, out)
    arguments = triton_attention._arguments(value, anchor, offsets, shapes, triton_attention.FORWARD_TILE)
    forward = usage(compiled(triton_attention._forward, common, *arguments), tmp_path)
    arguments = triton_attention._arguments(value, anchor, offsets, shapes, triton_attention.BACKWARD_TILE)
    built = compiled(triton_attention._backward, (*common, value.float(), offsets, weights), *arguments)
    backward = usage(built, tmp_path)
    print(f"attention {kinds}: forward {forward}, backward {backward}")
    assert forward["STACK"] == 0 and backward["STACK"] <= 16, "next to no spills"
    assert forward["REG"] <= 80 and backward["REG"] <= 80
    assert re.search(WIDE_ATOMIC, built.asm["ptx"]), "four channels an atomic"


@pytest.mark.parametrize("kind", [FULL, HALF], ids=["fp32", "bf16"])
@pytest.mark.parametrize("channels,size", [(256, (58, 100)), (512, (29, 50))])
def test_convolution_compiles_for_sm90(kind: torch.dtype, channels: int, size: Tuple[int, int], tmp_path: Path) -> None:
    x = torch.empty(6, *size, channels, dtype=kind, device="meta")
    offset, mask = (torch.empty(6, *size, n, device="meta") for n in (18, 9))
    column = torch.empty(6 * size[0] * size[1], 9 * channels, dtype=kind, device="meta")
    _, *arguments = triton_dcn._arguments(x, mask, (3, 3, 1, 1, 1), triton_dcn.FORWARD_TILE)
    forward = usage(compiled(triton_dcn._columns, (x, offset, mask, column), *arguments), tmp_path)
    _, *arguments = triton_dcn._arguments(x, mask, (3, 3, 1, 1, 1), triton_dcn.BACKWARD_TILE)
    tensors = (x, offset, mask, column, x.float(), offset, mask)
    built = compiled(triton_dcn._columns_backward, tensors, *arguments)
    backward = usage(built, tmp_path)
    print(f"convolution {kind}: forward {forward}, backward {backward}")
    assert forward["STACK"] == 0 and backward["STACK"] <= 16, "next to no spills"
    assert forward["REG"] <= 64 and backward["REG"] <= 80
    assert re.search(WIDE_ATOMIC, built.asm["ptx"]), "four channels an atomic"


Built = Tuple[Any, Tuple[Tensor, ...], Tuple[Any, ...], Dict[str, Any]]


def meta(*size: int, kind: torch.dtype = FULL) -> Tensor:
    return torch.empty(size, dtype=kind, device="meta")


def packed_case(name: str, kind: torch.dtype) -> Dict[str, Built]:
    """The kernels of packed attention, in one of the three launches of a layer."""
    cameras, queries, points, anchors, shapes = {
        "planes": (1, 46400, 16, 16, PLANES),
        "image hw": (6, 40000, 4, 4, DIM64),
        "image zh wz": (6, 6400, 32, 32, DIM64),
    }[name]
    levels, heads = len(shapes), 4
    value = meta(1, cameras, sum(h * w for h, w in shapes), heads, 16, kind=kind)
    anchor = meta(1, cameras, queries, levels if cameras == 1 else 1, anchors, 2)
    weights = meta(1, queries, heads, levels, points, kind=kind)
    packed = meta(1, queries, heads * levels * (3 * points + (cameras == 1)), kind=kind)
    bits, scale = meta(1, queries, kind=torch.int64), meta(1, queries)
    out, offsets = meta(1, queries, heads * 16, kind=kind), meta(1, queries, heads, levels, points, 2)
    common = (value, anchor, bits, packed, weights, scale, out)
    sizes = [
        triton_attention._arguments(value, anchor, offsets, shapes, tile, packed.shape[2])
        for tile in (triton_attention.FORWARD_TILE, triton_attention.BACKWARD_TILE)
    ]
    softmax = triton_attention._softmax_arguments(weights, packed)
    grads = (value.float(), packed, weights.float())
    return {
        "weights": (triton_attention._weights, (packed, weights), *softmax),
        "weights backward": (triton_attention._weights_backward, (packed, weights.float(), packed), *softmax),
        "forward": (triton_attention._forward, common, *sizes[0]),
        "backward": (triton_attention._backward, (*common, *grads), *sizes[1]),
    }


def raw_case(name: str, kind: torch.dtype) -> Dict[str, Built]:
    """The kernels of a deformable convolution with raw predictions, in a stage of the backbone."""
    channels, h, w = {"stage 3": (256, 58, 100), "stage 4": (512, 29, 50)}[name]
    x, raw = meta(6, h, w, channels, kind=kind), meta(6, h, w, 32, kind=kind)
    column, geometry = meta(6 * h * w, 9 * channels, kind=kind), (3, 3, 1, 1, 1)
    sizes = [
        triton_dcn._arguments(x, raw, geometry, tile, True)[1:]
        for tile in (triton_dcn.FORWARD_TILE, triton_dcn.BACKWARD_TILE)
    ]
    return {
        "columns": (triton_dcn._columns, (x, raw, raw, column), *sizes[0]),
        "columns backward": (triton_dcn._columns_backward, (x, raw, raw, column, x.float(), raw, raw), *sizes[1]),
    }


def after_case(name: str, kind: torch.dtype) -> Dict[str, Built]:
    x, adds = meta(6, 58, 100, 1024, kind=kind), name == "with shortcut"
    _, *sizes = triton_elementwise._arguments(x, adds)
    return {"bias and ReLU": (triton_elementwise._bias_relu, (x, meta(1024), x, x), *sizes)}


# Registers a thread on sm_90, values and predictions in fp32 and in bf16, as Triton 3.9.0 builds the kernels of a dim64
# step (4 warps; another version may need some more). None spills, and none needs more than 1 KB of shared memory.
TABLE = {
    ("weights", "planes"): (16, 16),
    ("weights", "image hw"): (14, 13),
    ("weights", "image zh wz"): (14, 14),
    ("weights backward", "planes"): (23, 22),
    ("weights backward", "image hw"): (13, 16),
    ("weights backward", "image zh wz"): (19, 18),
    ("forward", "planes"): (56, 48),
    ("forward", "image hw"): (56, 48),
    ("forward", "image zh wz"): (56, 48),
    ("backward", "planes"): (56, 48),
    ("backward", "image hw"): (48, 53),
    ("backward", "image zh wz"): (48, 48),
    ("columns", "stage 3"): (40, 32),
    ("columns", "stage 4"): (56, 40),
    ("columns backward", "stage 3"): (48, 48),
    ("columns backward", "stage 4"): (48, 48),
    ("bias and ReLU", "alone"): (26, 24),
    ("bias and ReLU", "with shortcut"): (32, 30),
}


@pytest.mark.parametrize("kind", [FULL, HALF], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "make,name",
    [
        (packed_case, "planes"), (packed_case, "image hw"), (packed_case, "image zh wz"),
        (raw_case, "stage 3"), (raw_case, "stage 4"), (after_case, "alone"), (after_case, "with shortcut"),
    ],
)  # fmt: skip
def test_registers_and_spills_on_sm90(
    make: Callable[[str, torch.dtype], Dict[str, Built]], name: str, kind: torch.dtype, tmp_path: Path
) -> None:
    for kernel, (function, tensors, positional, named) in make(name, kind).items():
        built = compiled(function, tensors, positional, named)
        found = usage(built, tmp_path)
        print(f"triton {triton.__version__}: {kernel}, {name}, {kind}: {found}")
        same = triton.__version__ == "3.9.0"
        registers = TABLE[kernel, name][kind == HALF] + (0 if same else 16)
        assert found["REG"] <= registers and found["STACK"] <= (0 if same else 16), (kernel, name, kind, found)
        assert found["SHARED"] <= 1024
        if "backward" in kernel and "weights" not in kernel:
            assert re.search(WIDE_ATOMIC, built.asm["ptx"]), "four channels an atomic"


def test_too_large_for_its_addresses() -> None:
    value = torch.empty(1, 1, 2**24, 8, 16, device="meta")
    anchors, offsets = torch.empty(1, 1, 1, 1, 1, 2), torch.empty(1, 1, 8, 1, 1, 2)
    with pytest.raises(ValueError, match="too large for the 32-bit addresses"):
        triton_attention._arguments(value, anchors, offsets, ((4096, 4096),), 512)
    mask = torch.empty(2**15, 2**5, 2**7, 9, device="meta")
    with pytest.raises(ValueError, match="split the batch"):
        triton_dcn._arguments(torch.empty(1, 4, 4, 4), mask, (3, 3, 1, 1, 1), triton_dcn.FORWARD_TILE)


def test_level_table_is_made_once() -> None:
    first = triton_attention._levels(((2, 3), (1, 2)), torch.device("cpu"))
    assert first.tolist() == [[2, 3, 0], [1, 2, 6]]
    assert triton_attention._levels(((2, 3), (1, 2)), torch.device("cpu")) is first
