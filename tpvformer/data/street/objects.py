"""The things that stand on a street, each built from a few primitives.

An object's own frame: x forward, y left, z up from the ground it stands on; metres. Colours are RGB in [0, 1].
Hues are drawn at random for every object: shape, size and pattern have to tell what it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np

from . import raycast as rc
from . import surface as sf

Rng = np.random.Generator
# raw lidarseg indices
ADULT, BARRIER, CONE, BICYCLE, BUS, CAR, CONSTRUCTION = 2, 9, 12, 14, 16, 17, 18
MOTORCYCLE, TRAILER, TRUCK, MANMADE, VEGETATION = 21, 22, 23, 28, 30

DARK = (0.07, 0.07, 0.08)
WHITE = (0.88, 0.88, 0.86)


@dataclass
class Builder:
    """Collects the primitives of one object in its own frame."""

    label: int
    rng: Rng
    rows: List[List[float]] = field(default_factory=list)

    def add(
        self,
        shape: int,
        texture: int,
        at: Tuple[float, float, float],
        half: Tuple[float, float, float],
        color: Sequence[float],
        accent: Sequence[float] = WHITE,
        taper: float = 0.0,
        turn: float = 0.0,
    ) -> None:
        """One primitive: ``at`` is the middle of its underside, ``half`` its half sizes along x, y, z."""
        x, y, z = at
        seed = float(self.rng.integers(1, 30000))
        row = [x, y, z + half[2], *half, math.cos(turn), math.sin(turn), shape, taper, self.label, texture, seed, -1]
        self.rows.append([*row, *color, *accent])

    def box(
        self, texture: int, at: Tuple[float, float, float], half: Tuple[float, float, float], *colors: Sequence[float]
    ) -> None:
        self.add(rc.BOX, texture, at, half, *colors)

    def wheels(self, radius: float, xs: Sequence[float], y: float) -> None:
        """Pairs of wheels at ``xs``, on both sides."""
        for x in xs:
            for side in (y, -y):
                self.add(
                    rc.ELLIPSOID, sf.WHEEL, (x, side, 0.0), (radius, 0.14, radius), (0.3, 0.3, 0.3), (0.75, 0.75, 0.75)
                )

    def place(self, x: float, y: float, z: float, yaw: float) -> np.ndarray:
        """(n, PRIM_COLUMNS) rows in the scene frame."""
        rows = np.array(self.rows)
        co, si = math.cos(yaw), math.sin(yaw)
        px, py = rows[:, rc.X].copy(), rows[:, rc.Y].copy()
        rows[:, rc.X], rows[:, rc.Y] = x + px * co - py * si, y + px * si + py * co
        rows[:, rc.Z] += z
        c, s = rows[:, rc.COS].copy(), rows[:, rc.SIN].copy()
        rows[:, rc.COS], rows[:, rc.SIN] = c * co - s * si, c * si + s * co
        return rows


def hue(rng: Rng) -> np.ndarray:
    """Any paint: grey, dark, pale or vivid."""
    if rng.random() < 0.35:
        return np.clip(rng.uniform(0.08, 0.85) + rng.uniform(-0.04, 0.04, 3), 0.03, 0.9)
    return rng.uniform(0.06, 0.85, 3)


def contrast(rng: Rng, color: np.ndarray) -> np.ndarray:
    """A second colour clearly brighter or darker than the first."""
    if color.mean() > 0.5 or rng.random() < 0.15:
        return rng.uniform(0.03, 0.16, 3)
    return rng.uniform(0.75, 0.92) + rng.uniform(-0.05, 0.05, 3)


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
    b.box(sf.CARGO, (-0.45, 0, 0.85), (long, 1.25, high), hue(rng) * 0.5 + 0.35)
    b.box(sf.PLAIN, (0.1, 0, 0.45), (long + 0.2, 0.6, 0.2), DARK)
    b.wheels(0.48, (-0.6 * long, front - 0.1), 1.12)
    return b


def bus(rng: Rng) -> Builder:
    b = Builder(BUS, rng)
    c = hue(rng)
    long = rng.uniform(4.6, 6.0)
    b.box(sf.BUS, (0, 0, 0.28), (long, 1.32, rng.uniform(1.35, 1.5)), c, contrast(rng, c))
    b.wheels(0.48, (-0.6 * long, 0.62 * long), 1.3)
    return b


def trailer(rng: Rng) -> Builder:
    b, c = Builder(TRAILER, rng), hue(rng)
    long, high = rng.uniform(3.6, 5.0), rng.uniform(0.6, 0.85)
    b.box(sf.RIBS, (0, 0, 1.0), (long, 1.25, high), c * 0.7 + 0.2)
    b.box(sf.PLAIN, (0, 0, 0.75), (long, 0.5, 0.12), DARK)
    b.box(sf.PLAIN, (long + 0.7, 0, 0.55), (0.8, 0.12, 0.1), DARK)  # the drawbar
    b.box(sf.PLAIN, (long * 0.6, 0.7, 0.0), (0.12, 0.12, 0.5), DARK)
    b.box(sf.PLAIN, (long * 0.6, -0.7, 0.0), (0.12, 0.12, 0.5), DARK)
    b.wheels(0.45, (-0.75 * long, -0.75 * long + 1.0), 1.1)
    return b


def construction(rng: Rng) -> Builder:
    """A crawler with a cab, a mast and a jib."""
    b, c = Builder(CONSTRUCTION, rng), hue(rng)
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
    b, c = Builder(MOTORCYCLE, rng), hue(rng)
    for x in (-0.72, 0.72):
        b.add(rc.ELLIPSOID, sf.WHEEL, (x, 0, 0), (0.36, 0.16, 0.36), (0.25, 0.25, 0.25), (0.6, 0.6, 0.6))
    b.box(sf.PLAIN, (0, 0, 0.3), (0.5, 0.24, 0.22), DARK)
    b.add(rc.ELLIPSOID, sf.PLAIN, (0.22, 0, 0.62), (0.5, 0.27, 0.25), c)
    b.box(sf.PLAIN, (-0.5, 0, 0.72), (0.5, 0.2, 0.1), DARK)
    b.box(sf.PLAIN, (0.62, 0, 0.95), (0.1, 0.4, 0.16), c)
    b.box(sf.PLAIN, (-0.95, 0, 0.8), (0.24, 0.3, 0.24), c)  # a top case
    return b


def bicycle(rng: Rng) -> Builder:
    b, c = Builder(BICYCLE, rng), hue(rng)
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


def pedestrian(rng: Rng) -> Builder:
    b = Builder(ADULT, rng)
    tall = rng.uniform(0.92, 1.08)
    coat, trousers = hue(rng), hue(rng) * 0.5
    skin = np.array([0.75, 0.55, 0.42]) * rng.uniform(0.45, 1.1)
    stride = rng.uniform(0.05, 0.2)
    for side in (0.12, -0.12):
        b.add(rc.FRUSTUM, sf.CLOTH, (math.copysign(stride, side), side, 0), (0.13, 0.12, 0.42 * tall), trousers)
    b.add(rc.FRUSTUM, sf.CLOTH, (0, 0, 0.8 * tall), (0.23, 0.32, 0.34 * tall), coat, taper=0.2)
    b.add(rc.ELLIPSOID, sf.PLAIN, (0, 0, 1.46 * tall), (0.15, 0.14, 0.16), skin)
    return b


def cone(rng: Rng) -> Builder:
    b, c = Builder(CONE, rng), hue(rng)
    b.box(sf.PLAIN, (0, 0, 0), (0.32, 0.32, 0.05), DARK)
    b.add(rc.FRUSTUM, sf.CONE, (0, 0, 0.1), (0.3, 0.3, 0.48), c, contrast(rng, c), taper=0.72)
    return b


def barrier(rng: Rng) -> Builder:
    """A row of striped blocks along x."""
    b, c = Builder(BARRIER, rng), hue(rng)
    accent = contrast(rng, c)
    count = int(rng.integers(2, 5))
    for k in range(count):
        x = (k - (count - 1) / 2) * 2.0
        b.box(sf.BARRIER, (x, 0, 0), (0.96, 0.2, 0.52), c, accent)
        b.box(sf.BARRIER, (x, 0, 0), (0.96, 0.36, 0.14), c, accent)
    return b


def building(rng: Rng, long: float, deep: float) -> Builder:
    """A house ``2 * long`` by ``2 * deep`` metres, its front along x."""
    b = Builder(MANMADE, rng)
    c = np.clip(rng.uniform(0.2, 0.8) + rng.uniform(-0.16, 0.16, 3), 0.05, 0.9)
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
    """A street lamp or a sign on a pole."""
    b, c = Builder(MANMADE, rng), np.full(3, rng.uniform(0.2, 0.6))
    high = rng.uniform(1.4, 3.2)
    b.add(rc.FRUSTUM, sf.PLAIN, (0, 0, 0), (0.13, 0.13, high), c)
    if high < 2.0:
        b.box(sf.PLAIN, (0.05, 0, 2 * high - 0.5), (0.04, 0.36, 0.36), hue(rng))
    else:
        b.box(sf.PLAIN, (0, 0.7, 2 * high), (0.14, 0.9, 0.08), c)
    return b


def shelter(rng: Rng) -> Builder:
    """A bus shelter: back wall and roof."""
    b, c = Builder(MANMADE, rng), hue(rng)
    b.box(sf.GLASS, (0, -0.6, 0), (1.9, 0.06, 1.15), c)
    b.box(sf.PLAIN, (0, 0, 2.3), (2.0, 0.8, 0.08), c)
    return b


def _leaf(rng: Rng) -> np.ndarray:
    tone = [(0.2, 0.42, 0.14), (0.36, 0.46, 0.16), (0.52, 0.42, 0.16), (0.46, 0.24, 0.14)][
        int(rng.choice(4, p=[0.5, 0.25, 0.15, 0.1]))
    ]
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


Maker = Callable[[Rng], Builder]
# what is annotated with boxes: raw label -> nuScenes attribute of an object that stands still
ATTRIBUTES: Dict[int, str] = {
    CAR: "vehicle.parked",
    TRUCK: "vehicle.parked",
    BUS: "vehicle.stopped",
    TRAILER: "vehicle.parked",
    CONSTRUCTION: "vehicle.parked",
    MOTORCYCLE: "cycle.without_rider",
    BICYCLE: "cycle.without_rider",
    ADULT: "pedestrian.standing",
    BARRIER: "",
    CONE: "",
}
