"""Compute the bilinear footprint of the Triton kernels; no coordinate, however large, leads outside the map."""

from __future__ import annotations

import triton
import triton.language as tl

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 2):
    raise ImportError(f"triton {triton.__version__} is too old: 3.2 or later is expected, as PyTorch 2.6 brings it")


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``, as Triton's tiles require."""
    return 1 << max(0, n - 1).bit_length()


@triton.jit
def footprint(x, y, height, width, live):
    """Return the four pixels around each sample: first column and row, fractions to the next, and which are on the map.

    The result is (x0, y0, fx, fy, left, right, upper, lower). A corner is on the map if both its column and its row
    are. The test uses floats, so that a coordinate behind a camera (1e9, infinite, NaN) never reaches the integer cast.
    """
    inside = live & (x > -1.0) & (y > -1.0) & (x < width) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    x_floor, y_floor = tl.floor(x), tl.floor(y)
    x0, y0 = x_floor.to(tl.int32), y_floor.to(tl.int32)
    upper, lower = inside & (y0 >= 0), inside & (y0 + 1 < height)
    return x0, y0, x - x_floor, y - y_floor, x0 >= 0, x0 + 1 < width, upper, lower


@triton.jit
def corner(fx, fy, left, right, upper, lower, RIGHT: tl.constexpr, LOWER: tl.constexpr):
    """Return whether one of the four corners is on the map, and its factors along x and y."""
    on = (right if RIGHT else left) & (lower if LOWER else upper)
    return on, fx if RIGHT else 1.0 - fx, fy if LOWER else 1.0 - fy
