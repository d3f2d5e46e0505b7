"""Placing objects on a street so that none overlap and the ego's path stays free.

Small objects are close to the ego's path, where the cameras resolve them, large ones along the kerbs and beyond.
"""

from __future__ import annotations

import math
from typing import Callable, List, NamedTuple, Tuple

import numpy as np

from tpvformer.data.street import furniture, vehicles
from tpvformer.data.street import raycast as rc
from tpvformer.data.street.builder import ATTRIBUTES, MOVING, Builder, Rng
from tpvformer.data.street.layout import CORRIDOR, MARGIN, Layout
from tpvformer.data.street.motion import RESERVE, Movers, Path, Road, Space, Traffic, footprint

GAP = 0.8  # metres between the collision boxes of two objects
TRIES = (6, 18)  # random places that are tried before an object is dropped: at one moment, in a longer scene
CLEAR = 14.0  # metres before and behind the ego that stay free in its lane
FASTEST = 11.0  # m/s, at least the rate of every path


class Thing(NamedTuple):
    """One annotated object: raw label, attribute ("" for none), centre of its box, size (width, length, height) in
    metres, heading, velocity (x, y) in m/s."""

    label: int
    attribute: str
    centre: Tuple[float, float, float]
    size: Tuple[float, float, float]
    yaw: float
    velocity: Tuple[float, float] = (0.0, 0.0)


Density = Tuple[float, float]  # objects on 100 m: at one moment, in a longer scene, where much of the room is reserved
Course = Callable[[], Tuple[float, float, float]]  # draws s, du, ds of a path


class Placer:
    """Place objects without collisions, at any time of the scene."""

    def __init__(self, rng: Rng, road: Road, rects: np.ndarray, layout: Layout, travel: float, seconds: float) -> None:
        self.rng, self.road, self.rects, self.travel, self.seconds = rng, road, rects, travel, seconds
        speed = travel / seconds if seconds else 0.0
        self.traffic = Traffic(rng, layout, road, speed, seconds)
        self.space, self.long = Space(seconds), seconds > RESERVE
        far = 0.0 if seconds else travel / 2  # without a duration, the whole stretch is kept free
        self.space.take(Path(far, layout.ego_s, speed), CLEAR + far - GAP, CORRIDOR - GAP)
        self.rows: List[np.ndarray] = []
        self.things: List[Thing] = []
        self.moving: List[Tuple[int, int, Path, np.ndarray]] = []  # thing, first row, path, centres in its own frame
        self.count = 0  # rows

    def put(self, built: Builder, path: Path, turn: float = 0.0, gap: float = GAP) -> bool:
        """Place an object on a path; one that stands still is turned by ``turn`` radians from the road's direction.

        Returns False where it collides.
        """
        reach = built.reach
        long, wide = footprint(self.road, path, turn, reach, self.seconds)
        if not path.moves and self.traffic.blocked(path.s, wide) or not self.space.free(path, long, wide, gap):
            return False
        x, y, heading = self.road.at(path.u, path.s)
        if path.moves:
            heading = math.atan2(path.ds + math.tan(heading) * path.du, path.du)
            base = float(self.road.height(np.array(path.u), np.array(path.s)))
        else:
            heading += turn
            region, _ = rc.region_at(x, y, self.road.row(), self.rects)
            base = self.road.kerb if self.rects[region, rc.RAISED] > 0 else 0.0
        rows = built.place(x, y, base, heading)
        if built.label in ATTRIBUTES:
            rows[:, rc.OBJECT] = len(self.things)
            if path.moves:
                local = np.array(built.rows)[:, [rc.X, rc.Y, rc.Z]]
                self.moving.append((len(self.things), self.count, path, local))
            attribute = (MOVING if path.moves else ATTRIBUTES)[built.label]
            size = (2 * reach[1], 2 * reach[0], reach[2])
            self.things.append(Thing(built.label, attribute, (x, y, base + reach[2] / 2), size, heading))
        self.space.take(path, long, wide)
        self.rows.append(rows)
        self.count += len(rows)
        return True

    def scatter(
        self,
        maker: Callable[[Rng], Builder],
        density: Density,
        where: Callable[[], float],
        reach: float,
        wobble: float = 0.08,
    ) -> None:
        """Put about ``density`` objects on every 100 m of the street, up to ``reach`` metres beyond the driven stretch.

        ``where`` draws the lateral position s, ``wobble`` is the spread of the heading in radians.
        """
        rng = self.rng
        for _ in range(rng.poisson(density[self.long] * (self.travel + 2 * reach) / 100)):
            built = maker(rng)
            turn = rng.normal(0, wobble) + (math.pi if rng.random() < 0.5 else 0.0)
            for _ in range(TRIES[self.long]):
                if self.put(built, Path(rng.uniform(-reach, self.travel + reach), where()), turn):
                    break

    def stream(
        self,
        maker: Callable[[Rng], Builder],
        density: Density,
        where: Callable[[], float],
        reach: float,
        course: Callable[[Callable[[], float]], Course],
    ) -> None:
        """Let about ``density`` objects on every 100 m of the same stretch move, as many at any time of the scene.

        ``course`` is a method of Traffic.
        """
        rng, most = self.rng, self.travel + 2 * reach + FASTEST * self.seconds
        for _ in range(rng.poisson(density[self.long] * most / 100)):
            built, draw = maker(rng), course(where)
            for k in range(TRIES[self.long]):
                s, du, ds = draw()
                low, high = -reach - max(du, 0.0) * self.seconds, self.travel + reach - min(du, 0.0) * self.seconds
                if k == 0 and rng.random() > (high - low) / most:
                    break  # it is not in sight during the scene
                turn = 0.0 if self.traffic.direction(s) > 0 else math.pi
                if self.put(built, Path(rng.uniform(low, high), s, du, ds), turn):
                    break

    def movers(self) -> Movers:
        """Return the objects that move."""
        first = [np.arange(start, start + len(local)) for _, start, _, local in self.moving]
        return Movers(
            things=np.array([thing for thing, _, _, _ in self.moving], np.int64),
            paths=np.array([(p.u, p.s, p.du, p.ds) for _, _, p, _ in self.moving]).reshape(-1, 4),
            rows=np.concatenate([np.zeros(0, np.int64), *first]),
            owners=np.repeat(np.arange(len(self.moving)), [len(local) for _, _, _, local in self.moving]),
            local=np.concatenate([np.zeros((0, 3)), *(local for _, _, _, local in self.moving)]),
        )


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
            placer.put(furniture.building(rng, long, deep), Path(u + long, s), gap=0.2)
        u += 2 * long + rng.uniform(0.5, 6)


def populate(
    rng: Rng, layout: Layout, road: Road, rects: np.ndarray, travel: float, seconds: float
) -> Tuple[np.ndarray, List[Thing], Movers]:
    """Return all objects' primitives (P, PRIM_COLUMNS) at time 0, the annotated objects, and those of them that move.

    The scene lasts ``seconds``, in which the ego drives ``travel`` metres.
    """
    placer, at = Placer(rng, road, rects, layout, travel, seconds), Places(rng, layout)
    for side in (1, -1):
        _houses(placer, layout, side)
    put, move = placer.scatter, placer.stream  # large objects first: later there would be no room for them
    drive, ride, walk = placer.traffic.drive, placer.traffic.ride, placer.traffic.walk
    about = at.either(0.7, at.close, at.walk)
    move(vehicles.bus, (1.5, 2.4), at.lane, 34, drive)
    put(vehicles.bus, (1.1, 2.0), at.kerb, 34)
    put(vehicles.trailer, (3.2, 4.0), at.either(0.7, at.kerb, at.beyond), 34)
    put(vehicles.construction, (4.0, 6.2), at.either(0.6, at.kerb, at.beyond), 34, wobble=0.5)
    move(vehicles.truck, (2.6, 3.3), at.lane, 36, drive)
    put(vehicles.truck, (2.3, 2.8), at.kerb, 36)
    put(furniture.barrier, (6.0, 6.0), at.either(0.7, at.close, at.kerb), 30)
    move(vehicles.car, (9.3, 8.0), at.lane, 42, drive)
    put(vehicles.car, (6.8, 5.4), at.kerb, 42)
    move(vehicles.motorcyclist, (5.2, 5.6), about, 27, ride)
    put(vehicles.motorcycle, (7.0, 6.0), about, 27, wobble=0.6)
    move(vehicles.cyclist, (7.0, 7.5), about, 27, ride)
    put(vehicles.bicycle, (11.5, 11.0), about, 27, wobble=0.8)
    move(furniture.pedestrian, (11.5, 17.0), at.either(0.6, at.close, at.walk), 27, walk)
    put(furniture.pedestrian, (8.0, 8.0), at.either(0.6, at.close, at.walk), 27, wobble=1.5)
    put(furniture.cone, (25.5, 34.0), at.close, 26, wobble=1.0)
    put(furniture.tree, (24.0, 24.0), at.either(0.75, at.beyond, at.walk), 55)
    put(furniture.lamp, (5.0, 5.0), at.walk, 50)
    put(furniture.shelter, (1.2, 1.2), at.walk, 40)
    put(furniture.wall, (3.0, 3.0), at.beyond, 45)
    put(furniture.bush, (16.0, 15.0), at.beyond, 50)
    put(furniture.hedge, (10.0, 9.0), at.beyond, 50)
    return np.concatenate(placer.rows), placer.things, placer.movers()
