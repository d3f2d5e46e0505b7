"""Placing objects on a street so that none overlap and the ego's path stays free.

Small objects are close to the ego's path, where the cameras resolve them, large ones along the kerbs and beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, List, Tuple

import numpy as np

from tpvformer.data.street import furniture, vehicles
from tpvformer.data.street import raycast as rc
from tpvformer.data.street.builder import ATTRIBUTES, Builder, Rng
from tpvformer.data.street.layout import CORRIDOR, MARGIN, Layout

GAP = 0.8  # metres between the collision boxes of two objects
TRIES = 6  # random places that are tried before an object is dropped
CLEAR = 14.0  # metres before and after the driven stretch that stay free in the ego's lane


@dataclass(frozen=True)
class Road:
    """The middle line of the road, a parabola."""

    curvature: float  # 1/m
    vertex: float  # x of its vertex, metres
    kerb: float  # height of everything but the carriageway, metres

    def middle(self, u: float) -> float:
        return 0.5 * self.curvature * (u - self.vertex) ** 2

    def at(self, u: float, s: float) -> Tuple[float, float, float]:
        """Return scene x, y and the heading of the road at road coordinates (u, s)."""
        return u, s + self.middle(u), math.atan(self.curvature * (u - self.vertex))

    def row(self) -> np.ndarray:
        """Return the fields as (3,) float64 for the compiled code."""
        return np.array([self.curvature, self.vertex, self.kerb])


@dataclass(frozen=True)
class Thing:
    """One annotated object: raw label, centre of its box, size (width, length, height) in metres, heading."""

    label: int
    centre: Tuple[float, float, float]
    size: Tuple[float, float, float]
    yaw: float


class Placer:
    """Place objects without collisions. Collision boxes are in road coordinates."""

    def __init__(self, rng: Rng, road: Road, rects: np.ndarray, ego_s: float, travel: float) -> None:
        self.rng, self.road, self.rects, self.ego_s, self.travel = rng, road, rects, ego_s, travel
        self.taken: List[Tuple[float, float, float, float]] = []  # u, s, half length, half width
        self.rows: List[np.ndarray] = []
        self.things: List[Thing] = []

    def _free(self, u: float, s: float, long: float, wide: float, gap: float) -> bool:
        if abs(s - self.ego_s) < CORRIDOR + wide and -CLEAR - long < u < self.travel + CLEAR + long:
            return False
        return all(abs(u - a) > long + c + gap or abs(s - b) > wide + d + gap for a, b, c, d in self.taken)

    def put(self, built: Builder, u: float, s: float, turn: float = 0.0, gap: float = GAP) -> bool:
        """Place an object at (u, s), turned by ``turn`` radians from the road's direction; False where it collides."""
        reach = built.reach()
        co, si = abs(math.cos(turn)), abs(math.sin(turn))
        long, wide = reach[0] * co + reach[1] * si, reach[0] * si + reach[1] * co
        if not self._free(u, s, long, wide, gap):
            return False
        x, y, heading = self.road.at(u, s)
        region, _ = rc.region_at(x, y, self.road.row(), self.rects)
        base = self.road.kerb if self.rects[region, rc.RAISED] > 0 else 0.0
        rows = built.place(x, y, base, heading + turn)
        if built.label in ATTRIBUTES:
            rows[:, rc.OBJECT] = len(self.things)
            size = (2 * reach[1], 2 * reach[0], reach[2])
            self.things.append(Thing(built.label, (x, y, base + reach[2] / 2), size, heading + turn))
        self.taken.append((u, s, long, wide))
        self.rows.append(rows)
        return True

    def scatter(
        self,
        maker: Callable[[Rng], Builder],
        density: float,
        where: Callable[[], float],
        reach: float,
        wobble: float = 0.08,
    ) -> None:
        """Put about ``density`` objects on every 100 m of the street, up to ``reach`` metres beyond the driven stretch.

        ``where`` draws the lateral position s, ``wobble`` is the spread of the heading in radians.
        """
        rng = self.rng
        for _ in range(rng.poisson(density * (self.travel + 2 * reach) / 100)):
            built = maker(rng)
            turn = rng.normal(0, wobble) + (math.pi if rng.random() < 0.5 else 0.0)
            for _ in range(TRIES):
                if self.put(built, rng.uniform(-reach, self.travel + reach), where(), turn):
                    break


class Places:
    """Draw lateral positions of each kind, metres to the left of the middle of the road."""

    def __init__(self, rng: Rng, layout: Layout) -> None:
        self.rng, self.layout = rng, layout

    def _side(self) -> int:
        return 1 if self.rng.random() < 0.5 else -1

    def lane(self) -> float:
        return self.rng.uniform(-1, 1) * (self.layout.half - 1.4)

    def kerb(self) -> float:
        return self._side() * (self.layout.half - self.rng.uniform(1.3, 1.6))

    def walk(self) -> float:
        side = self._side()
        return side * (self.layout.edge(side) - self.rng.uniform(0.5, self.layout.walk(side) - 0.4))

    def beyond(self) -> float:
        side = self._side()
        return side * (self.layout.edge(side) + self.rng.uniform(0.8, 5.0))

    def close(self) -> float:
        """Draw a position beside the ego's path, where small objects are large in the images."""
        return self.layout.ego_s + self._side() * (CORRIDOR + self.rng.uniform(0.9, 5.5))

    def either(self, share: float, a: Callable[[], float], b: Callable[[], float]) -> Callable[[], float]:
        return lambda: a() if self.rng.random() < share else b()


def _houses(placer: Placer, layout: Layout, side: int) -> None:
    rng, u = placer.rng, -MARGIN
    middle, wide = layout.junction
    while u < placer.travel + MARGIN:
        long, deep = rng.uniform(4, 9), rng.uniform(3, 6)
        s = side * (layout.edge(side) + rng.uniform(2.0, 8.0) + deep)
        if rng.random() < 0.8 and not (wide and abs(u + long - middle) < long + wide + 3):
            placer.put(furniture.building(rng, long, deep), u + long, s, gap=0.2)
        u += 2 * long + rng.uniform(0.5, 6)


def populate(rng: Rng, layout: Layout, road: Road, rects: np.ndarray, travel: float) -> Tuple[np.ndarray, List[Thing]]:
    """Return the primitives (P, PRIM_COLUMNS) of all objects on the street, and the annotated objects."""
    placer, at = Placer(rng, road, rects, layout.ego_s, travel), Places(rng, layout)
    for side in (1, -1):
        _houses(placer, layout, side)
    put = placer.scatter  # large objects first: later there would be no room for them
    put(vehicles.bus, 2.6, at.either(0.6, at.lane, at.kerb), 34)
    put(vehicles.trailer, 3.2, at.either(0.7, at.kerb, at.beyond), 34)
    put(vehicles.construction, 3.8, at.either(0.6, at.kerb, at.beyond), 34, wobble=0.5)
    put(vehicles.truck, 3.8, at.either(0.5, at.lane, at.kerb), 36)
    put(furniture.barrier, 6.0, at.either(0.7, at.close, at.kerb), 30)
    put(vehicles.car, 11.0, at.either(0.6, at.lane, at.kerb), 42)
    put(vehicles.motorcycle, 13.0, at.either(0.7, at.close, at.walk), 27, wobble=0.6)
    put(vehicles.bicycle, 22.0, at.either(0.7, at.close, at.walk), 27, wobble=0.8)
    put(furniture.pedestrian, 22.0, at.either(0.6, at.close, at.walk), 27, wobble=1.5)
    put(furniture.cone, 30.0, at.close, 26, wobble=1.0)
    put(furniture.tree, 24.0, at.either(0.75, at.beyond, at.walk), 55)
    put(furniture.lamp, 5.0, at.walk, 50)
    put(furniture.shelter, 1.2, at.walk, 40)
    put(furniture.wall, 3.0, at.beyond, 45)
    put(furniture.bush, 16.0, at.beyond, 50)
    put(furniture.hedge, 10.0, at.beyond, 50)
    return np.concatenate(placer.rows), placer.things
