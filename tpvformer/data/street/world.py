"""The layout of one street: regions of ground, and what stands where.

Scene frame: x along the road's general direction, y left, z up, metres. Road coordinates: u = x and s = y minus the
height of the parabola that is the middle of the road. The ego drives along s = ``ego_s`` from u = 0 to ``travel``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Callable, List, Tuple

import numpy as np

from . import objects as ob
from . import raycast as rc
from . import surface as sf

Rng = np.random.Generator
DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN = 24, 25, 26, 27  # raw lidarseg indices
MARGIN = 62.0  # metres of street built before and after the stretch that is driven
FAR = 1e9
KERB_HEIGHT = 0.14
CORRIDOR = 1.9  # metres either side of the ego's path that stay free


@dataclass(frozen=True)
class Light:
    """Sun and air of a scene; colours are RGB in [0, 1]."""

    sun: Tuple[float, float, float]  # unit vector towards the sun
    ambient: float  # share of the light that comes from everywhere
    haze: float  # 1 / distance (m) at which half the contrast is left
    grain: float  # amplitude of the sensor noise
    horizon: Tuple[float, float, float]
    zenith: Tuple[float, float, float]
    warmth: Tuple[float, float, float]  # exposure and white balance


@dataclass(frozen=True)
class Thing:
    """One annotated object: raw label, middle of its box in the scene, size (width, length, height), heading."""

    label: int
    centre: Tuple[float, float, float]
    size: Tuple[float, float, float]
    yaw: float


@dataclass(frozen=True)
class Street:
    """Everything a ray can meet. Column meanings: ``raycast``."""

    prims: np.ndarray  # (P, PRIM_COLUMNS) float64
    rects: np.ndarray  # (R, RECT_COLUMNS) float64, first match wins
    road: np.ndarray  # (3,) curvature 1/m, x of the parabola's vertex, kerb height m
    things: List[Thing]
    light: Light
    bounds: Tuple[float, float, float, float]  # x0, y0, x1, y1 of the built area
    ego_s: float
    travel: float

    def at(self, u: float, s: float) -> Tuple[float, float, float]:
        """Scene x, y and heading of the road at road coordinates (u, s)."""
        slope = self.road[rc.CURVATURE] * (u - self.road[rc.CENTRE])
        return u, s + 0.5 * slope * (u - self.road[rc.CENTRE]), math.atan(slope)


def _tint(rng: Rng, low: float, high: float, spread: float) -> np.ndarray:
    return np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0.05, 0.85)


def _triple(v: np.ndarray) -> Tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])


def _light(rng: Rng) -> Light:
    sun = np.array([rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.7, 1.6)])
    sun /= np.linalg.norm(sun)
    pale = rng.uniform(0.55, 0.85)
    horizon = np.clip(pale + rng.uniform(-0.08, 0.08, 3), 0, 0.95)
    zenith = np.clip(horizon * np.array([rng.uniform(0.45, 1), rng.uniform(0.6, 1), 1.0]), 0, 1)
    warmth = rng.uniform(1.0, 1.75) * np.array([rng.uniform(0.92, 1.08), 1.0, rng.uniform(0.9, 1.08)])
    return Light(
        _triple(sun),
        rng.uniform(0.4, 0.75),
        1 / rng.uniform(120, 400),
        rng.uniform(0.01, 0.035),
        _triple(horizon),
        _triple(zenith),
        _triple(warmth),
    )


class _Layout:
    """The cross section of the road and the list of ground regions, drawn at random."""

    def __init__(self, rng: Rng, travel: float) -> None:
        self.rng = rng
        self.half = rng.uniform(6.0, 9.5)  # of the carriageway
        self.walk = (rng.uniform(2.2, 4.2), rng.uniform(2.2, 4.2))  # sidewalk widths, left and right
        self.verge = tuple(rng.uniform(1.4, 2.6) if rng.random() < 0.45 else 0.0 for _ in range(2))
        self.median = rng.uniform(0.8, 1.6) if rng.random() < 0.6 else 0.0  # half width
        self.median_s = rng.uniform(-0.25, 0.25) * self.half
        self.rects: List[List[float]] = []
        self.cross = (0.0, 0.0)  # middle and half width of a crossing street
        if rng.random() < 0.45:
            self.cross = (rng.uniform(-30, travel + 30), rng.uniform(4, 6.5))
        self.paint = {
            DRIVEABLE: _tint(rng, 0.18, 0.48, 0.04),
            SIDEWALK: _tint(rng, 0.3, 0.7, 0.09),
            OTHER_FLAT: _tint(rng, 0.25, 0.65, 0.1),
            TERRAIN: self._soil(),
        }
        self.scale = {
            DRIVEABLE: rng.uniform(3.1, 3.7),
            SIDEWALK: rng.uniform(0.7, 1.3),
            OTHER_FLAT: rng.uniform(1.3, 2.0),
            TERRAIN: 1.0,
        }
        self.style = {
            DRIVEABLE: sf.ASPHALT,
            SIDEWALK: sf.SLABS,
            OTHER_FLAT: sf.STRIPES if rng.random() < 0.6 else sf.PEBBLES,
            TERRAIN: sf.GRASS,
        }
        self._regions(travel)
        gap = CORRIDOR + 0.3
        side = 1 if rng.random() < 0.5 else -1
        inner = side * (self.median + gap) + self.median_s if self.median else -side * (self.half - gap)
        self.ego_s = rng.uniform(*sorted((inner, side * (self.half - gap))))

    def _soil(self) -> np.ndarray:
        tone = [(0.28, 0.42, 0.16), (0.52, 0.46, 0.3), (0.38, 0.3, 0.22), (0.45, 0.44, 0.42)][
            int(self.rng.choice(4, p=[0.45, 0.2, 0.2, 0.15]))
        ]
        return np.clip(np.array(tone) * self.rng.uniform(0.75, 1.3) + self.rng.uniform(-0.05, 0.05, 3), 0.05, 0.8)

    def _add(self, label: int, u0: float, u1: float, s0: float, s1: float, raised: bool, pattern: int = -1) -> None:
        style = self.style[label] if pattern < 0 else pattern
        seed = float(self.rng.integers(1, 30000))
        color = self.paint[label] * self.rng.uniform(0.92, 1.08)
        accent = np.full(3, 0.85) if self.paint[label].mean() < 0.55 or label == DRIVEABLE else np.full(3, 0.12)
        self.rects.append([u0, u1, s0, s1, label, float(raised), style, seed, self.scale[label], *color, *accent])

    def _regions(self, travel: float) -> None:
        rng, h = self.rng, self.half
        u, wide = self.cross
        if wide:
            if rng.random() < 0.6:
                for near in (u - wide - 3.6, u + wide + 0.8):
                    self._add(DRIVEABLE, near, near + 2.8, -h, h, False, sf.ZEBRA)
            self._add(DRIVEABLE, u - wide, u + wide, -FAR, FAR, False, sf.ASPHALT)
            self.rects[-1][rc.SCALE] = FAR  # no lane marks across the junction
        if self.median:
            label = OTHER_FLAT if rng.random() < 0.75 else TERRAIN
            self._add(label, -FAR, FAR, self.median_s - self.median, self.median_s + self.median, True)
        self._add(DRIVEABLE, -FAR, FAR, -h, h, False)
        for k, side in enumerate((1, -1)):
            a = h
            if self.verge[k]:
                label = TERRAIN if rng.random() < 0.5 else OTHER_FLAT
                self._add(label, -FAR, FAR, *sorted((side * a, side * (a + self.verge[k]))), True)
                a += self.verge[k]
            self._add(SIDEWALK, -FAR, FAR, *sorted((side * a, side * (a + self.walk[k]))), True)
            a += self.walk[k]
            u = -MARGIN
            while u < travel + MARGIN:
                long = rng.uniform(9, 20)
                if rng.random() < 0.4:
                    label = OTHER_FLAT if rng.random() < 0.8 else SIDEWALK
                    self._add(label, u, u + long, *sorted((side * a, side * (a + rng.uniform(4, 12)))), True)
                u += long
        self._add(TERRAIN, -FAR, FAR, -FAR, FAR, True)

    def edge(self, side: int) -> float:
        """Distance from the middle of the road to the outer edge of the sidewalk; side +1 left, -1 right."""
        k = 0 if side > 0 else 1
        return self.half + self.verge[k] + self.walk[k]


class _Populate:
    """Places objects without overlap; collision boxes live in road coordinates."""

    def __init__(self, street: Street, layout: _Layout, rng: Rng) -> None:
        self.street, self.layout, self.rng = street, layout, rng
        self.taken: List[Tuple[float, float, float, float]] = []  # u, s, half length, half width
        self.rows: List[np.ndarray] = []

    def _free(self, u: float, s: float, long: float, wide: float, gap: float) -> bool:
        ego = self.street.ego_s
        if abs(s - ego) < CORRIDOR + wide and -14 - long < u < self.street.travel + 14 + long:
            return False
        return all(abs(u - a) > long + c + gap or abs(s - b) > wide + d + gap for a, b, c, d in self.taken)

    def put(self, maker: ob.Maker, u: float, s: float, turn: float = 0.0, gap: float = 0.6) -> bool:
        """Build one object at (u, s) turned by ``turn`` from the road's direction; False if there is no room."""
        built = maker(self.rng)
        rows = np.array(built.rows)
        reach_x = float(np.max(np.abs(rows[:, rc.X]) + rows[:, rc.HX]))
        reach_y = float(np.max(np.abs(rows[:, rc.Y]) + rows[:, rc.HY]))
        co, si = abs(math.cos(turn)), abs(math.sin(turn))
        long, wide = reach_x * co + reach_y * si, reach_x * si + reach_y * co
        if not self._free(u, s, long, wide, gap):
            return False
        x, y, heading = self.street.at(u, s)
        region, _ = rc.region_at(x, y, self.street.road, self.street.rects)
        raised = self.street.rects[region, rc.RAISED] > 0
        base = self.street.road[rc.KERB] if raised else 0.0
        placed = built.place(x, y, base, heading + turn)
        if built.label in ob.ATTRIBUTES:
            low, high = rows[:, rc.Z] - rows[:, rc.HZ], rows[:, rc.Z] + rows[:, rc.HZ]
            tall = float(high.max() - low.min())
            placed[:, rc.OBJECT] = len(self.street.things)
            self.street.things.append(
                Thing(built.label, (x, y, base + tall / 2), (2 * reach_y, 2 * reach_x, tall), heading + turn)
            )
        self.taken.append((u, s, long, wide))
        self.rows.append(placed)
        return True

    def scatter(
        self,
        maker: ob.Maker,
        per_100m: float,
        where: Callable[[], float],
        reach: float = 45.0,
        wobble: float = 0.08,
        gap: float = 0.6,
    ) -> None:
        """Put about ``per_100m`` objects on every 100 m of the street, at lateral places drawn by ``where``."""
        rng, span = self.rng, self.street.travel + 2 * reach
        for _ in range(int(rng.poisson(per_100m * span / 100))):
            for _ in range(6):
                u = rng.uniform(-reach, self.street.travel + reach)
                turn = rng.normal(0, wobble) + (math.pi if rng.random() < 0.5 else 0.0)
                if self.put(maker, u, where(), turn, gap):
                    break

    def row_of_houses(self, side: int) -> None:
        rng, layout = self.rng, self.layout
        u = -MARGIN
        while u < self.street.travel + MARGIN:
            long, deep = rng.uniform(4, 9), rng.uniform(3, 6)
            s = side * (layout.edge(side) + rng.uniform(2.0, 8.0) + deep)
            middle, wide = layout.cross
            if rng.random() < 0.8 and not (wide and abs(u + long - middle) < long + wide + 3):
                self.put(partial(ob.building, long=long, deep=deep), u + long, s, gap=0.2)
            u += 2 * long + rng.uniform(0.5, 6)

    def all(self) -> np.ndarray:
        rng, layout = self.rng, self.layout
        half, ego = layout.half, self.street.ego_s

        def sign() -> int:
            return 1 if rng.random() < 0.5 else -1

        def lane() -> float:
            return rng.uniform(-half + 1.4, half - 1.4)

        def kerb() -> float:
            return sign() * (half - rng.uniform(1.3, 1.6))

        def walk() -> float:
            k = sign()
            return k * (layout.edge(k) - rng.uniform(0.5, layout.walk[0 if k > 0 else 1] - 0.4))

        def outer() -> float:
            k = sign()
            return k * (layout.edge(k) + rng.uniform(0.8, 5.0))

        def close() -> float:  # beside the ego's path, where a camera sees small things well
            return ego + sign() * (CORRIDOR + rng.uniform(0.6, 5.5))

        def either(a: Callable[[], float], b: Callable[[], float], share: float = 0.5) -> Callable[[], float]:
            return lambda: a() if rng.random() < share else b()

        for k in (1, -1):
            self.row_of_houses(k)
        self.scatter(ob.bus, 2.2, either(lane, kerb, 0.6), gap=0.8)
        self.scatter(ob.trailer, 2.6, either(kerb, outer, 0.7), gap=0.8)
        self.scatter(ob.construction, 3.0, either(kerb, outer, 0.6), wobble=0.5, gap=0.8)
        self.scatter(ob.truck, 3.2, either(lane, kerb, 0.5), gap=0.8)
        self.scatter(ob.barrier, 5.0, either(close, kerb, 0.7), 36, 0.1)
        self.scatter(ob.car, 9.0, either(lane, kerb, 0.6), gap=0.8)
        self.scatter(ob.motorcycle, 9.0, either(close, walk, 0.7), 32, 0.6)
        self.scatter(ob.bicycle, 12.0, either(close, walk, 0.6), 32, 0.7)
        self.scatter(ob.pedestrian, 20.0, either(close, walk, 0.6), 34, 1.5)
        self.scatter(ob.cone, 18.0, close, 32, 1.0)
        self.scatter(ob.lamp, 6.0, walk, 55)
        self.scatter(ob.shelter, 1.2, walk, 45)
        self.scatter(ob.wall, 5.0, outer, 50, 0.05)
        self.scatter(ob.tree, 14.0, either(outer, walk, 0.8), 58)
        self.scatter(ob.bush, 10.0, outer, 55)
        self.scatter(ob.hedge, 6.0, outer, 50, 0.05)
        return np.concatenate(self.rows)


def build_street(rng: Rng, travel: float) -> Street:
    """A random street along which the ego drives ``travel`` metres."""
    layout = _Layout(rng, travel)
    steepest = 0.45 / (MARGIN + 30 + travel / 2)  # the parabola stays within about 25 degrees of the x axis
    curvature = 0.0 if rng.random() < 0.35 else rng.choice([-1, 1]) * steepest * rng.uniform(0.3, 1.0)
    road = np.array([curvature, travel / 2 + rng.uniform(-30, 30), KERB_HEIGHT])
    sag = [0.5 * curvature * (u - road[rc.CENTRE]) ** 2 for u in (-MARGIN, travel + MARGIN, road[rc.CENTRE])]
    bounds = (-MARGIN, min(sag) - 32.0, travel + MARGIN, max(sag) + 32.0)
    rects = np.array(layout.rects)
    bare = Street(np.zeros((0, rc.PRIM_COLUMNS)), rects, road, [], _light(rng), bounds, layout.ego_s, travel)
    prims = _Populate(bare, layout, rng).all()
    return Street(prims, rects, road, bare.things, bare.light, bounds, layout.ego_s, travel)
