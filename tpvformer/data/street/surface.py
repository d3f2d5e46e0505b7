"""The appearance of surfaces: paint, windows, leaves, paving, lane marks. Patterns tell classes apart, hues do not.

A texture mixes the two colours of its primitive or region: colour * a + accent * b.
"""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

from tpvformer.data.street.raycast import (
    ACCENT,
    COLOR,
    GACCENT,
    GCOLOR,
    GSEED,
    HX,
    HY,
    HZ,
    KERB_FACE,
    PATTERN,
    S0,
    S1,
    SCALE,
    SEED,
    TEXTURE,
    noise,
)
from tpvformer.runtime.compiling import inner

PLAIN, CAR, GLASS, CARGO, BUS, RIBS, HAZARD, BARRIER, WHEEL, CONE, FACADE, LEAVES, BRICK, CLOTH, LATTICE = range(15)
ASPHALT, SLABS, GRASS, STRIPES, ZEBRA, CHEQUERS = range(6)  # patterns of the ground


@inner(fastmath=True)
def cell(v: float, size: float) -> int:
    return int(math.floor(v / size))


@inner(fastmath=True)
def object_texture(prim: np.ndarray, x: float, y: float, z: float, face: int) -> Tuple[float, float]:
    """Return the weights (a, b) of colour and accent at a local point of a primitive (metres from its centre)."""
    hx, hy, hz, seed = prim[HX], prim[HY], prim[HZ], int(prim[SEED])
    kind = int(prim[TEXTURE])
    along = y if face == 0 else x  # horizontal coordinate on an upright face
    half = hy if face == 0 else hx
    up = (z + hz) / (2 * hz)
    if kind == CAR:
        if face == 0 and 0.35 < up < 0.7 and abs(y) > 0.55 * hy:
            return 0.0, 1.2  # lamps
        if up < 0.16:
            return 0.15, 0.0
        return (1.0 if up < 0.86 else 1.15), 0.0
    if kind == GLASS:
        if face == 2 or up > 0.86 or abs(abs(along) - 0.95 * half) < 0.06 or (face == 1 and abs(along) < 0.05):
            return 1.0, 0.0
        return 0.06, 0.12
    if kind == CARGO:
        if face == 0 and abs(y) < 0.03:
            return 0.3, 0.0
        if up < 0.07 or up > 0.94:
            return 0.45, 0.0
        return (1.0 if cell(z, 0.3) % 2 == 0 else 0.86), 0.0
    if kind == BUS:
        if 0.46 < up < 0.8:
            if face == 0 or cell(along, 1.15) % 5 != 0 or abs(along / 1.15 - math.floor(along / 1.15)) > 0.12:
                return 0.05, 0.1 + 0.08 * noise(cell(along, 1.15), seed, 3)
            return 1.0, 0.0
        if 0.3 < up < 0.38:
            return 0.0, 1.0
        return (0.3 if up < 0.06 else 1.0), 0.0
    if kind == RIBS:
        return (1.0 if cell(along, 0.45) % 2 == 0 else 0.5), 0.0
    if kind == HAZARD:
        if up < 0.35:
            return (0.0, 0.9) if cell(along + z, 0.4) % 2 == 0 else (0.1, 0.0)
        return (1.0 if abs(along) < 0.8 * half else 0.6), 0.0
    if kind == BARRIER:
        if up < 0.12:
            return 0.4, 0.0
        return (1.0, 0.0) if cell(along + 0.5 * z, 0.42) % 2 == 0 else (0.0, 1.0)
    if kind == WHEEL:
        r = math.sqrt((x / hx) ** 2 + (z / hz) ** 2)
        if r > 0.72:
            return 0.12, 0.02
        if r < 0.2:
            return 0.1, 0.7
        return (0.1, 0.75) if cell(math.atan2(z, x), math.pi / 6) % 2 == 0 else (0.35, 0.1)
    if kind == CONE:
        return (0.0, 1.0) if 0.3 < up < 0.5 or 0.66 < up < 0.82 else (1.0, 0.0)
    if kind == FACADE:
        if face == 2:
            return 0.5, 0.0
        a, b = along / 1.9, (z + hz) / 2.7
        fa, fb = a - math.floor(a), b - math.floor(b)
        if 0.2 < fa < 0.8 and 0.28 < fb < 0.8:
            lit = noise(int(math.floor(a)), int(math.floor(b)), seed)
            return 0.08 + 0.15 * lit, (0.75 if lit > 0.85 else 0.12 + 0.3 * lit)
        if fb < 0.07:
            return 0.65, 0.0
        return (1.0 if (cell(z, 0.3) + cell(along, 0.6)) % 2 == 0 else 0.9), 0.0
    if kind == LEAVES:
        m = noise(cell(x, 0.16), cell(y, 0.16), cell(z, 0.16) * 37 + seed)
        return (0.4 + 0.8 * m) * (0.65 + 0.45 * up), 0.25 * m * m
    if kind == BRICK:
        shift = 0.25 * (cell(z, 0.22) % 2)
        f, g = (along + shift) / 0.5, z / 0.22
        joint = f - math.floor(f) < 0.1 or g - math.floor(g) < 0.16
        return (0.4 if joint else 0.8 + 0.35 * noise(cell(along + shift, 0.5), cell(z, 0.22), seed)), 0.0
    if kind == CLOTH:
        return (0.85 + 0.3 * noise(cell(x, 0.1), cell(y, 0.1), cell(z, 0.1) + seed)), 0.0
    if kind == LATTICE:
        return (1.0, 0.0) if (cell(along, 0.12) + cell(z, 0.12)) % 2 == 0 else (0.1, 0.9)
    return 1.0, 0.0


@inner(fastmath=True)
def ground_texture(rect: np.ndarray, u: float, s: float, kind: int, fade: float) -> Tuple[float, float]:
    """Return the weights (a, b) of colour and accent at road coordinates (u, s); ``fade``, 0..1, softens far detail."""
    seed, scale = int(rect[GSEED]), rect[SCALE]
    if kind == KERB_FACE:
        return 0.8, 0.1
    pattern = int(rect[PATTERN])
    fine = fade * (noise(cell(u, 0.09), cell(s, 0.09), seed) - 0.5)
    if pattern == ASPHALT:
        broad = noise(cell(u, 3.7), cell(s, 1.9), seed + 1) - 0.5
        edge = min(s - rect[S0], rect[S1] - s)
        if 0.25 < edge < 0.42:
            return 0.2, 0.8
        lane = (s - rect[S0]) / scale
        across = (lane - math.floor(lane)) * scale
        if edge > 1.5 and across < 0.17 and u / 6.0 - math.floor(u / 6.0) < 0.55:
            return 0.15, 0.85
        return 1.0 + 0.14 * broad + 0.24 * fine, 0.0
    if pattern == ZEBRA:
        f = (s - rect[S0]) / 1.1
        return (0.15, 0.85) if f - math.floor(f) < 0.5 else (1.0 + 0.24 * fine, 0.0)
    if pattern == SLABS:
        f, g = u / scale, s / scale
        i, j = int(math.floor(f)), int(math.floor(g))
        if f - i < 0.09 or g - j < 0.09:
            return 1.0 - 0.45 * fade, 0.0
        return 0.86 + 0.26 * noise(i, j, seed) + 0.1 * fine, 0.0
    if pattern == GRASS:
        broad = noise(cell(u, 0.7), cell(s, 0.7), seed + 1) - 0.5
        tuft = noise(cell(u, 0.22), cell(s, 0.22), seed + 2) - 0.5
        return 0.95 + 0.45 * broad + fade * 0.8 * tuft + 0.5 * fine, 0.12 * (broad + 0.5)
    if pattern == STRIPES:
        f = (u + s) / scale
        if f - math.floor(f) < 0.42:
            return 0.25, 0.7
        return 1.0 + 0.2 * fine, 0.0
    f, g = u / scale, s / scale  # CHEQUERS
    i, j = int(math.floor(f)), int(math.floor(g))
    return (1.0 + 0.2 * fine, 0.0) if (i + j) % 2 == 0 else (0.4, 0.6)


@inner(fastmath=True)
def mix(row: np.ndarray, first: int, second: int, a: float, b: float) -> Tuple[float, float, float]:
    """Return colour * a + accent * b as red, green, blue."""
    return (
        row[first] * a + row[second] * b,
        row[first + 1] * a + row[second + 1] * b,
        row[first + 2] * a + row[second + 2] * b,
    )


@inner(fastmath=True)
def object_color(prim: np.ndarray, x: float, y: float, z: float, face: int) -> Tuple[float, float, float]:
    a, b = object_texture(prim, x, y, z, face)
    return mix(prim, COLOR, ACCENT, a, b)


@inner(fastmath=True)
def ground_color(rect: np.ndarray, u: float, s: float, kind: int, fade: float) -> Tuple[float, float, float]:
    a, b = ground_texture(rect, u, s, kind, fade)
    return mix(rect, GCOLOR, GACCENT, a, b)
