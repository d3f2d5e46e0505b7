"""Measure the limits of a device: copies, matrix products, convolutions, atomic additions."""

from __future__ import annotations

import contextlib
import statistics
import time
from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional

import torch
from torch import Tensor

ROW = 16  # channels of a head in dim64: what one sample of attention adds to


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of ``run``, of which the first two calls are not counted."""
    found = []
    for repeat in range(repeats + 2):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        if repeat >= 2:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, tiny: bool) -> Iterator[Dict[str, Any]]:
    """Yield one line a ceiling: name, size, and GB/s or TFLOP/s."""
    repeats = 1 if tiny else 20
    count = 2**20 if tiny else 2**28
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    spent = seconds(partial(target.copy_, source), device, repeats)
    yield {"name": "copy", "size": f"{4 * count >> 20} MiB", "gb_s": 8 * count / spent / 1e9}

    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("fp32", torch.float32, False),
                              ("fp32, TF32", torch.float32, True)):  # fmt: skip
        n = 256 if tiny else 8192
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        with _tf32(tf32):
            spent = seconds(partial(torch.mm, a, b), device, max(1, repeats // 4))
        yield {"name": f"matrix product {name}", "size": f"{n} x {n} x {n}", "tflop_s": 2 * n**3 / spent / 1e12}

    channels, h, w = (16, 16, 16) if tiny else (256, 58, 100)
    x = torch.randn(6, channels, h, w, device=device, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)
    spent = seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device, repeats)
    flop = 2 * x.numel() * channels * 9
    yield {"name": "3x3 convolution bf16", "size": f"6 x {channels} x {h} x {w}", "tflop_s": flop / spent / 1e12}

    rows, places = (2**10, 2**8) if tiny else (2**23, 2**16)
    index = torch.randint(places, (rows,), device=device)
    values, sums = torch.ones(rows, ROW, device=device), torch.zeros(places, ROW, device=device)
    spent = seconds(lambda: sums.index_add_(0, index, values), device, repeats)
    size = f"{rows} rows of {ROW} fp32 to {places} places"
    yield {"name": "index_add_", "size": size, "gb_s": 4 * values.numel() / spent / 1e9}
    added = atomics(index, values, sums) if device.type == "cuda" else None
    if added is not None:
        spent = seconds(added, device, repeats)
        yield {"name": "Triton atomic_add", "size": size, "gb_s": 4 * values.numel() / spent / 1e9}


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def atomics(index: Tensor, values: Tensor, sums: Tensor) -> Optional[Callable[[], None]]:
    """Return a launch that adds values (rows,ROW) to sums (places,ROW) at index (rows,); None without Triton."""
    try:
        from scatter_kernel import BLOCK, scatter
    except ImportError:
        return None
    rows = index.numel()
    return lambda: scatter[(-(-rows // BLOCK),)](index, values, sums, rows, ROW=ROW, ROWS=BLOCK)
