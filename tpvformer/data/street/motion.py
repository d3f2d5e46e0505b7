"""Objects that drive and walk: their paths, the time and place that each takes, and the street's lanes.

A path is a straight line in road coordinates (populate.Road: u along the road, s to its left) that is followed at a
constant rate, so in the scene it bends with the road. Time is in seconds after the first key frame. Whatever shares a
lane moves at the lane's rate, so that long scenes have room for many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Sequence, Tuple

import numpy as np

from tpvformer.data.street.builder import Rng
from tpvformer.data.street.layout import CORRIDOR, Layout
from tpvformer.runtime.compiling import kernel

BEFORE = 0.05  # seconds: the first cameras fire before the first key frame
STEP = 0.4  # metres before and after a kerb over which one who crosses it rises
SIDEWAYS = 0.36  # m/s^2: vehicles drive through bends no faster than this allows
LANE, TRACK = 1.45, 0.45  # half widths of a lane and of a strip for cycles or walkers, metres
RESERVE = 1.0  # seconds: in longer scenes what stands still keeps off the lanes
NEAREST = 0.5  # share of those on strips that take the one that is nearest to the ego
FREE = 6.0  # seconds of a scene after which paths of one's own have become rare


class Path(NamedTuple):
    """Where one is at time 0, metres in road coordinates, and the rates of both, m/s."""

    u: float
    s: float
    du: float = 0.0
    ds: float = 0.0

    @property
    def moves(self) -> bool:
        return self.du != 0 or self.ds != 0


@dataclass(frozen=True)
class Road:
    """The middle line of the road, a parabola, and the heights beside it."""

    curvature: float  # 1/m
    vertex: float  # x of its vertex, metres
    kerb: float  # height of everything but the carriageway, metres
    half: float = math.inf  # half width of the carriageway, metres
    median: Tuple[float, float] = (0.0, 0.0)  # its s and half width
    junction: Tuple[float, float] = (0.0, 0.0)  # its u and half width

    def middle(self, u: float) -> float:
        return 0.5 * self.curvature * (u - self.vertex) ** 2

    def at(self, u: float, s: float) -> Tuple[float, float, float]:
        """Return scene x, y and the heading of the road at road coordinates (u, s)."""
        return u, s + self.middle(u), math.atan(self.curvature * (u - self.vertex))

    def height(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Return the height (m) of the ground below those who walk, with ramps of 2 STEP in the place of kerbs."""
        raised = _ramp(np.abs(s) - self.half)
        if self.median[1]:
            raised = np.maximum(raised, _ramp(self.median[1] - np.abs(s - self.median[0])))
        if self.junction[1]:
            raised = raised * _ramp(np.abs(u - self.junction[0]) - self.junction[1])
        return self.kerb * raised

    def row(self) -> np.ndarray:
        """Return curvature, vertex and kerb as (3,) float64 for the compiled code."""
        return np.array([self.curvature, self.vertex, self.kerb])


def _ramp(metres: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + metres / (2 * STEP), 0.0, 1.0)


def footprint(road: Road, path: Path, turn: float, reach: Sequence[float], seconds: float) -> Tuple[float, float]:
    """Return half length and half width, in road coordinates, of what contains an object along its whole path.

    ``reach`` is its half length and half width in metres, ``turn`` its heading from the road's where it stands still.
    """
    if not path.moves:
        return _around(road, path.u, turn, reach)
    boxes = []
    for t in (0.0, seconds):
        slope = road.curvature * (path.u + path.du * t - road.vertex)
        turn = math.atan2(path.ds + slope * path.du, path.du) - math.atan(slope)
        boxes.append(_around(road, path.u + path.du * t, turn, reach))
    return max(boxes[0][0], boxes[1][0]), max(boxes[0][1], boxes[1][1])


def _around(road: Road, u: float, turn: float, reach: Sequence[float]) -> Tuple[float, float]:
    """Return half length and half width of what contains an object at ``u``, turned from the road's heading."""
    heading = math.atan(road.curvature * (u - road.vertex))
    long = reach[0] * abs(math.cos(heading + turn)) + reach[1] * abs(math.sin(heading + turn))
    wide = (reach[0] * abs(math.sin(turn)) + reach[1] * abs(math.cos(turn))) / math.cos(heading)
    return long, wide + 0.5 * abs(road.curvature) * long * long


@kernel()
def _free(rows: np.ndarray, count: int, box: np.ndarray, start: float, end: float) -> bool:
    """Tell whether ``box`` meets none of the first ``count`` rows between two times; columns as in Space.rows."""
    for i in range(count):
        first, last = start, end
        for axis in range(2):
            apart, room = rows[i, axis] - box[axis], rows[i, axis + 2] + box[axis + 2]
            rate = rows[i, axis + 4] - box[axis + 4]
            if abs(rate) < 1e-9:
                if abs(apart) >= room:
                    last = first
            else:
                enter, leave = (-room - apart) / rate, (room - apart) / rate
                first, last = max(first, min(enter, leave)), min(last, max(enter, leave))
        if first < last:
            return False
    return True


class Space:
    """The places that objects take, as boxes in road coordinates that move at constant rates."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.count = 0
        self.rows = np.empty((512, 6))  # u, s, half length, half width, du, ds
        self._box = np.empty(6)

    def take(self, path: Path, long: float, wide: float) -> None:
        if self.count == len(self.rows):
            self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self.rows[self.count] = path.u, path.s, long, wide, path.du, path.ds
        self.count += 1

    def free(self, path: Path, long: float, wide: float, gap: float) -> bool:
        """Tell whether a box on this path stays ``gap`` metres away from all others during the whole scene."""
        self._box[:] = path.u, path.s, long + gap, wide + gap, path.du, path.ds
        return bool(_free(self.rows, self.count, self._box, -BEFORE, self.seconds))


class Traffic:
    """Draws the lanes of a street, the strips beside them for cycles and walkers, and the paths of what moves."""

    def __init__(self, rng: Rng, layout: Layout, road: Road, speed: float, seconds: float) -> None:
        self.rng, self.layout, self.seconds = rng, layout, seconds
        bend = abs(road.curvature)
        self.fastest = math.sqrt(SIDEWAYS / bend) if bend else math.inf
        self.lanes = self._lanes(min(speed, self.fastest))
        side = -self._side_of_lane()
        strips = [layout.ego_s + side * (CORRIDOR + a) for a in (rng.uniform(0.9, 1.4), rng.uniform(2.7, 3.2))]
        strips = [s for s in strips if abs(s) < layout.half - 0.5 and self._clear(s)]
        walks = [side * (layout.edge(side) - rng.uniform(0.55, 0.9)) for side in (1, -1)]
        self.tracks = [(s, self._sign() * rng.uniform(2.5, 5.5)) for s in strips[:1]]
        self.walks = [(s, self._sign() * rng.uniform(0.8, 1.6)) for s in (*strips[1:], *walks)]
        kinds = ((self.lanes[1:], LANE), (self.tracks, TRACK), (self.walks, TRACK)) if seconds > RESERVE else ()
        self.reserved = [(s, half) for lanes, half in kinds for s, _ in lanes]

    def _sign(self) -> float:
        return 1.0 if self.rng.random() < 0.5 else -1.0

    def _side_of_lane(self) -> float:
        """Return the side of the ego, 1 left, -1 right, on which a lane is, or either one."""
        return math.copysign(1.0, self.lanes[1][0] - self.layout.ego_s) if len(self.lanes) > 1 else self._sign()

    def _clear(self, s: float) -> bool:
        """Tell whether a strip at ``s`` leaves the lanes free."""
        return all(abs(s - lane) > LANE + TRACK + 0.7 for lane, _ in self.lanes)

    def _lanes(self, speed: float) -> List[Tuple[float, float]]:
        """Return the s and the rate of the ego's lane, whose traffic keeps its distance, and of one beside it.

        The second is left out where the carriageway has no room for it.
        """
        rng, layout = self.rng, self.layout
        lanes, first = [(layout.ego_s, speed)], self._sign()
        for side in (first, -first):
            s = layout.ego_s + side * (CORRIDOR + LANE + rng.uniform(0.0, 0.8))
            if layout.median and abs(s - layout.median_s) < layout.median + LANE:
                s = layout.median_s + side * (layout.median + LANE + rng.uniform(0.1, 0.4))
            if side * s < layout.half - LANE:
                rate = rng.uniform(4.0, 9.0) if rng.random() > 0.12 else 0.0
                lanes.append((s, self.direction(s) * min(rate, self.fastest)))
                break
        return lanes

    def direction(self, s: float) -> float:
        """Return 1 on the ego's side of the road's middle (or median), -1 on the other."""
        middle = self.layout.median_s if self.layout.median else 0.0
        side = self.layout.ego_s - middle
        return 1.0 if (s - middle) * side >= 0 else -1.0

    def blocked(self, s: float, wide: float) -> bool:
        """Tell whether what stands at ``s`` would be in a lane that the scene needs."""
        return any(abs(s - middle) < wide + half for middle, half in self.reserved)

    def drive(self, where: Callable[[], float]) -> Callable[[], Tuple[float, float, float]]:
        """Draw a lane and return what draws s, du, ds in it; a scene of one frame needs none, but any place."""
        rng = self.rng
        if self.seconds:
            s, rate = self.lanes[int(rng.integers(len(self.lanes)))]
            return lambda: (s + rng.uniform(-0.1, 0.1), rate, 0.0)
        rate = rng.uniform(3.0, 9.0) if rng.random() > 0.1 else 0.0

        def anywhere() -> Tuple[float, float, float]:
            s = where()
            for _ in range(8):
                if abs(s - self.layout.median_s) > self.layout.median + LANE:
                    break
                s = where()
            return s, self.direction(s) * rate, 0.0

        return anywhere

    def ride(self, where: Callable[[], float]) -> Callable[[], Tuple[float, float, float]]:
        """Like ``drive``, for cycles."""
        return self._own_or_shared(where, self.tracks, self._sign() * self.rng.uniform(2.0, 6.0), 0.0)

    def walk(self, where: Callable[[], float]) -> Callable[[], Tuple[float, float, float]]:
        """Like ``drive``, for pedestrians, some of whom cross the street."""
        rng = self.rng
        pace, way = rng.uniform(0.7, 1.7), rng.normal(0, 0.12) + (math.pi if rng.random() < 0.5 else 0.0)
        if rng.random() < 0.25:
            way += math.pi / 2
        return self._own_or_shared(where, self.walks, pace * math.cos(way), pace * math.sin(way))

    def _own_or_shared(
        self, where: Callable[[], float], strips: Sequence[Tuple[float, float]], du: float, ds: float
    ) -> Callable[[], Tuple[float, float, float]]:
        rng = self.rng
        if not strips or rng.random() < math.exp(-self.seconds / FREE):
            return lambda: (where(), du, ds)
        s, rate = strips[0 if rng.random() < NEAREST else int(rng.integers(len(strips)))]
        return lambda: (s, rate, 0.0)


@dataclass(frozen=True)
class Movers:
    """The M objects that move, and their K primitives in their own frames."""

    things: np.ndarray  # (M,) int64, index of Street.things
    paths: np.ndarray  # (M, 4) u, s, du, ds
    rows: np.ndarray  # (K,) int64, rows of Street.prims
    owners: np.ndarray  # (K,) int64, index of ``things``
    local: np.ndarray  # (K, 3) centres in the object's frame, metres

    def poses(self, road: Road, seconds: float) -> Tuple[np.ndarray, np.ndarray]:
        """Return x, y, z of the ground below, yaw (M, 4), and the velocities (M, 2) in the scene frame."""
        u, s = (self.paths[:, :2] + self.paths[:, 2:] * seconds).T
        du, ds = self.paths[:, 2], self.paths[:, 3]
        rise = ds + road.curvature * (u - road.vertex) * du
        y = s + 0.5 * road.curvature * (u - road.vertex) ** 2
        return np.stack([u, y, road.height(u, s), np.arctan2(rise, du)], 1), np.stack([du, rise], 1)
