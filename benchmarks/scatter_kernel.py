"""Add rows at random indices in Triton, by the relaxed float32 atomics of the attention's backward kernel."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 32


@triton.jit
def scatter(index, values, sums, rows, ROW: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    place = tl.load(index + row, mask=live, other=0)
    channel = tl.arange(0, ROW)
    value = tl.load(values + row[:, None] * ROW + channel[None, :], mask=live[:, None], other=0.0)
    tl.atomic_add(sums + place[:, None] * ROW + channel[None, :], value, mask=live[:, None], sem="relaxed")
