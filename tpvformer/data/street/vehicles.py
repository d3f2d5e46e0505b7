"""Cars, trucks, buses, trailers, construction vehicles and two-wheelers. x forward, y left, z up, metres."""

from __future__ import annotations

import numpy as np

from tpvformer.data.street import raycast as rc
from tpvformer.data.street import surface as sf
from tpvformer.data.street.builder import (
    BICYCLE,
    BUS,
    CAR,
    CONSTRUCTION,
    DARK,
    MOTORCYCLE,
    TRAILER,
    TRUCK,
    Builder,
    Rng,
    contrast,
    hue,
    usual,
)

CARGO_TONES = ((0.8, 0.8, 0.8), (0.68, 0.7, 0.72))
BUS_TONES = ((0.7, 0.12, 0.1), (0.12, 0.4, 0.65), (0.8, 0.62, 0.12), (0.12, 0.5, 0.28))
TRAILER_TONES = ((0.16, 0.3, 0.55), (0.55, 0.18, 0.13), (0.35, 0.45, 0.3))
MACHINE_TONES = ((0.85, 0.62, 0.08), (0.85, 0.45, 0.08))
MOTORCYCLE_TONES = ((0.12, 0.12, 0.13), (0.65, 0.1, 0.08))
BICYCLE_TONES = ((0.15, 0.55, 0.6), (0.7, 0.75, 0.2), (0.75, 0.3, 0.55))


def car(rng: Rng) -> Builder:
    b, c = Builder(CAR, rng), hue(rng)
    long, wide, lift = rng.uniform(2.0, 2.4), rng.uniform(0.88, 1.0), rng.uniform(0.38, 0.5)
    b.box(sf.CAR, (0, 0, 0.22), (long, wide, lift), c, rng.choice([[0.8, 0.78, 0.7], [0.6, 0.08, 0.06]]))
    roof = rng.uniform(0.28, 0.38)
    back = rng.uniform(0.1, 0.45)
    b.box(sf.GLASS, (-back, 0, 0.22 + 2 * lift), (long * rng.uniform(0.5, 0.68), wide * 0.9, roof), c)
    b.wheels(0.36, (-0.62 * long, 0.62 * long), wide)
    return b


def truck(rng: Rng) -> Builder:
    b, c = Builder(TRUCK, rng), hue(rng)
    long, high = rng.uniform(2.1, 2.9), rng.uniform(0.95, 1.3)
    front = long + 1.0
    b.box(sf.CAR, (front, 0, 0.45), (0.95, 1.12, 0.6), c)
    b.box(sf.GLASS, (front - 0.1, 0, 1.65), (0.85, 1.08, 0.5), c)
    b.box(sf.CARGO, (-0.45, 0, 0.85), (long, 1.25, high), usual(rng, CARGO_TONES, 0.7))
    b.box(sf.PLAIN, (0.1, 0, 0.45), (long + 0.2, 0.6, 0.2), DARK)
    b.wheels(0.48, (-0.6 * long, front - 0.1), 1.12)
    return b


def bus(rng: Rng) -> Builder:
    b = Builder(BUS, rng)
    c = usual(rng, BUS_TONES, 0.7)
    long = rng.uniform(4.6, 6.0)
    b.box(sf.BUS, (0, 0, 0.28), (long, 1.32, rng.uniform(1.35, 1.5)), c, contrast(rng, c))
    b.wheels(0.48, (-0.6 * long, 0.62 * long), 1.3)
    return b


def trailer(rng: Rng) -> Builder:
    b, c = Builder(TRAILER, rng), usual(rng, TRAILER_TONES, 0.65)
    long, high = rng.uniform(3.6, 5.0), rng.uniform(0.6, 0.85)
    b.box(sf.RIBS, (0, 0, 1.0), (long, 1.25, high), c)
    b.box(sf.PLAIN, (0, 0, 0.75), (long, 0.5, 0.12), DARK)
    b.box(sf.PLAIN, (long + 0.7, 0, 0.55), (0.8, 0.12, 0.1), DARK)  # the drawbar
    b.box(sf.PLAIN, (long * 0.6, 0.7, 0.0), (0.12, 0.12, 0.5), DARK)
    b.box(sf.PLAIN, (long * 0.6, -0.7, 0.0), (0.12, 0.12, 0.5), DARK)
    b.wheels(0.45, (-0.75 * long, -0.75 * long + 1.0), 1.1)
    return b


def construction(rng: Rng) -> Builder:
    """Build a crawler crane: tracks, cab, mast and jib."""
    b, c = Builder(CONSTRUCTION, rng), usual(rng, MACHINE_TONES, 0.8)
    black = rng.uniform(0.02, 0.1, 3)
    for side in (1.05, -1.05):
        b.box(sf.RIBS, (0, side, 0), (1.9, 0.32, 0.42), (0.16, 0.15, 0.14))
    b.box(sf.HAZARD, (-0.4, 0, 0.85), (1.7, 1.2, 0.6), c, black)
    b.box(sf.GLASS, (0.6, 0.55, 2.05), (0.65, 0.55, 0.6), c)
    b.box(sf.HAZARD, (0.9, -0.45, 2.05), (0.28, 0.28, rng.uniform(0.9, 1.3)), c, black)
    reach = rng.uniform(1.3, 1.9)
    top = rng.uniform(3.0, 3.6)
    b.box(sf.HAZARD, (0.9 + reach, -0.45, top), (reach + 0.3, 0.24, 0.24), c, black)
    b.box(sf.HAZARD, (0.9 + 2 * reach, -0.45, top - 1.9), (0.22, 0.22, 0.95), c, black)
    b.box(sf.PLAIN, (0.9 + 2 * reach, -0.45, top - 2.6), (0.45, 0.6, 0.35), DARK)
    return b


def motorcycle(rng: Rng) -> Builder:
    b, c = Builder(MOTORCYCLE, rng), usual(rng, MOTORCYCLE_TONES, 0.5)
    for x in (-0.72, 0.72):
        b.add(rc.ELLIPSOID, sf.WHEEL, (x, 0, 0), (0.36, 0.16, 0.36), (0.25, 0.25, 0.25), (0.6, 0.6, 0.6))
    b.box(sf.PLAIN, (0, 0, 0.3), (0.5, 0.24, 0.22), DARK)
    b.add(rc.ELLIPSOID, sf.PLAIN, (0.22, 0, 0.62), (0.5, 0.27, 0.25), c)
    b.box(sf.PLAIN, (-0.5, 0, 0.72), (0.5, 0.2, 0.1), DARK)
    b.box(sf.PLAIN, (0.62, 0, 0.95), (0.1, 0.4, 0.16), c)
    b.box(sf.PLAIN, (-0.95, 0, 0.8), (0.24, 0.3, 0.24), c)  # a top case
    return b


def bicycle(rng: Rng) -> Builder:
    b, c = Builder(BICYCLE, rng), usual(rng, BICYCLE_TONES, 0.6)
    accent = contrast(rng, c)
    for x in (-0.56, 0.56):
        b.add(rc.ELLIPSOID, sf.WHEEL, (x, 0, 0), (0.4, 0.1, 0.4), (0.6, 0.6, 0.6), (0.9, 0.9, 0.9))
    b.box(sf.LATTICE, (-0.05, 0, 0.42), (0.42, 0.09, 0.26), c, accent)
    b.box(sf.PLAIN, (-0.3, 0, 0.9), (0.2, 0.12, 0.08), DARK)
    b.box(sf.PLAIN, (0.42, 0, 0.75), (0.07, 0.1, 0.22), c)
    b.box(sf.PLAIN, (0.4, 0, 1.12), (0.08, 0.36, 0.06), DARK)
    if rng.random() < 0.5:
        b.box(sf.LATTICE, (0.72, 0, 0.85), (0.18, 0.24, 0.16), accent, c)  # a basket
    return b


def _rider(b: Builder, seat: float, x: float) -> None:
    """Seat a person on the cycle, at height ``seat`` and ``x``; in nuScenes, riders belong to their cycle."""
    coat, trousers = hue(b.rng), hue(b.rng) * 0.5
    skin = np.array([0.75, 0.55, 0.42]) * b.rng.uniform(0.45, 1.1)
    for side in (0.17, -0.17):
        b.add(rc.FRUSTUM, sf.CLOTH, (x + 0.2, side, 0.35), (0.18, 0.1, (seat - 0.3) / 2), trousers)
    b.add(rc.FRUSTUM, sf.CLOTH, (x + 0.05, 0, seat), (0.2, 0.26, 0.29), coat, taper=0.2)
    b.add(rc.ELLIPSOID, sf.PLAIN, (x + 0.12, 0, seat + 0.56), (0.13, 0.13, 0.15), skin)


def motorcyclist(rng: Rng) -> Builder:
    b = motorcycle(rng)
    _rider(b, 0.88, -0.3)
    return b


def cyclist(rng: Rng) -> Builder:
    b = bicycle(rng)
    _rider(b, 1.0, -0.3)
    return b
