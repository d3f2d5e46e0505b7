"""People, cones, barriers, buildings, lamps and plants. x along the street, y left, z up, metres."""

from __future__ import annotations

import bisect
import math

import numpy as np

from tpvformer.data.street import raycast as rc
from tpvformer.data.street import surface as sf
from tpvformer.data.street.builder import (
    ADULT,
    BARRIER,
    CONE,
    DARK,
    MANMADE,
    VEGETATION,
    Builder,
    Rng,
    contrast,
    hue,
    usual,
)

CONE_TONES = ((0.88, 0.33, 0.06), (0.85, 0.16, 0.08))
BARRIER_TONES = ((0.8, 0.15, 0.1), (0.85, 0.45, 0.1))
LEAF_TONES = ((0.2, 0.42, 0.14), (0.36, 0.46, 0.16), (0.52, 0.42, 0.16), (0.46, 0.24, 0.14))
LEAF_SHARES = (0.6, 0.9, 0.96)  # of the tones before
HOUSE_TONES = ((0.72, 0.66, 0.55), (0.56, 0.52, 0.47), (0.6, 0.36, 0.28), (0.7, 0.7, 0.68))


def pedestrian(rng: Rng) -> Builder:
    b = Builder(ADULT, rng)
    tall = rng.uniform(1.0, 1.15)
    coat, trousers = hue(rng), hue(rng) * 0.5
    skin = np.array([0.75, 0.55, 0.42]) * rng.uniform(0.45, 1.1)
    stride = rng.uniform(0.05, 0.2)
    for side in (0.12, -0.12):
        b.add(rc.FRUSTUM, sf.CLOTH, (math.copysign(stride, side), side, 0), (0.13, 0.12, 0.42 * tall), trousers)
    b.add(rc.FRUSTUM, sf.CLOTH, (0, 0, 0.8 * tall), (0.25, 0.34, 0.34 * tall), coat, taper=0.2)
    b.add(rc.ELLIPSOID, sf.PLAIN, (0, 0, 1.46 * tall), (0.15, 0.14, 0.16), skin)
    return b


def cone(rng: Rng) -> Builder:
    b, c = Builder(CONE, rng), usual(rng, CONE_TONES, 0.8)
    wide, high = rng.uniform(0.3, 0.36), rng.uniform(0.5, 0.6)
    b.box(sf.PLAIN, (0, 0, 0), (wide + 0.03, wide + 0.03, 0.04), DARK)
    b.add(rc.FRUSTUM, sf.CONE, (0, 0, 0.08), (wide, wide, high), c, contrast(rng, c), taper=0.72)
    return b


def barrier(rng: Rng) -> Builder:
    """Build a barrier: a row of striped blocks along x."""
    b, c = Builder(BARRIER, rng), usual(rng, BARRIER_TONES, 0.7)
    accent = contrast(rng, c)
    count = int(rng.integers(2, 5))
    for k in range(count):
        x = (k - (count - 1) / 2) * 2.0
        b.box(sf.BARRIER, (x, 0, 0), (0.96, 0.2, 0.52), c, accent)
        b.box(sf.BARRIER, (x, 0, 0), (0.96, 0.36, 0.14), c, accent)
    return b


def building(rng: Rng, long: float, deep: float) -> Builder:
    """Build a house of ``2 * long`` by ``2 * deep`` metres, its front along x."""
    b = Builder(MANMADE, rng)
    c = usual(rng, HOUSE_TONES, 0.7)
    style = sf.FACADE if rng.random() < 0.8 else sf.BRICK
    high = rng.uniform(2.2, 7.5)
    b.box(style, (0, 0, 0), (long, deep, high), c, rng.uniform(0.5, 0.9, 3))
    if rng.random() < 0.4:
        b.box(sf.PLAIN, (0, 0, 2 * high), (long * 1.04, deep * 1.04, 0.15), c * 0.6)
    return b


def wall(rng: Rng) -> Builder:
    b = Builder(MANMADE, rng)
    c = np.clip(rng.uniform(0.25, 0.7) + rng.uniform(-0.12, 0.12, 3), 0.05, 0.9)
    b.box(sf.BRICK, (0, 0, 0), (rng.uniform(2.5, 5.0), 0.16, rng.uniform(0.8, 1.3)), c)
    return b


def lamp(rng: Rng) -> Builder:
    """Build a street lamp or a sign on a pole."""
    b, c = Builder(MANMADE, rng), np.full(3, rng.uniform(0.2, 0.6))
    high = rng.uniform(1.4, 3.2)
    b.add(rc.FRUSTUM, sf.PLAIN, (0, 0, 0), (0.13, 0.13, high), c)
    if high < 2.0:
        b.box(sf.PLAIN, (0.05, 0, 2 * high - 0.5), (0.04, 0.36, 0.36), hue(rng))
    else:
        b.box(sf.PLAIN, (0, 0.7, 2 * high), (0.14, 0.9, 0.08), c)
    return b


def shelter(rng: Rng) -> Builder:
    """Build a bus shelter: back wall and roof."""
    b, c = Builder(MANMADE, rng), hue(rng)
    b.box(sf.GLASS, (0, -0.6, 0), (1.9, 0.06, 1.15), c)
    b.box(sf.PLAIN, (0, 0, 2.3), (2.0, 0.8, 0.08), c)
    return b


def _leaf(rng: Rng) -> np.ndarray:
    tone = LEAF_TONES[bisect.bisect(LEAF_SHARES, rng.random())]
    return np.clip(np.array(tone) * rng.uniform(0.7, 1.35) + rng.uniform(-0.06, 0.06, 3), 0.04, 0.8)


def tree(rng: Rng) -> Builder:
    b, c = Builder(VEGETATION, rng), _leaf(rng)
    stem = rng.uniform(1.3, 2.2)
    radius = rng.uniform(1.2, 2.1)
    b.add(rc.FRUSTUM, sf.LEAVES, (0, 0, 0), (0.22, 0.22, stem / 2 + 0.5), (0.34, 0.27, 0.2))
    for _ in range(3):
        x, y = rng.uniform(-0.5, 0.5, 2) * radius
        size = radius * rng.uniform(0.65, 1.0)
        b.add(
            rc.FOLIAGE, sf.LEAVES, (x, y, stem + rng.uniform(-0.3, 0.9)), (size, size, size * rng.uniform(0.7, 1.0)), c
        )
    return b


def bush(rng: Rng) -> Builder:
    b, c = Builder(VEGETATION, rng), _leaf(rng)
    for _ in range(2):
        x, y = rng.uniform(-0.6, 0.6, 2)
        b.add(rc.FOLIAGE, sf.LEAVES, (x, y, -0.35), tuple(rng.uniform(0.7, 1.3, 3)), c)
    return b


def hedge(rng: Rng) -> Builder:
    b = Builder(VEGETATION, rng)
    b.box(sf.LEAVES, (0, 0, 0), (rng.uniform(1.5, 4.0), rng.uniform(0.4, 0.7), rng.uniform(0.5, 0.9)), _leaf(rng))
    return b
