"""Building an object of the street from primitives, and drawing its colours.

An object's own frame: x forward, y left, z up from the ground below it; metres. Colours are RGB in [0, 1].
Hues are drawn at random for every object, so that only shape, size and pattern tell its class.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Dict, List, Sequence, Tuple, Union

import numpy as np

from tpvformer.data.street import raycast as rc
from tpvformer.data.street import surface as sf

Rng = np.random.Generator
Point = Tuple[float, float, float]
Color = Union[np.ndarray, Sequence[float]]
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
        at: Point,
        half: Point,
        color: Color,
        accent: Color = WHITE,
        taper: float = 0.0,
    ) -> None:
        """Add a primitive: ``at`` is the centre of its underside, ``half`` its half sizes along x, y, z."""
        x, y, z = at
        seed = 1.0 + math.floor(29999 * self.rng.random())
        row = [x, y, z + half[2], *half, 1.0, 0.0, shape, taper, self.label, texture, seed, -1]
        self.rows.append([*row, *color, *accent])

    def box(self, texture: int, at: Point, half: Point, color: Color, accent: Color = WHITE) -> None:
        self.add(rc.BOX, texture, at, half, color, accent)

    def wheels(self, radius: float, xs: Sequence[float], y: float) -> None:
        """Add a pair of wheels, left and right, at each of ``xs``."""
        for x in xs:
            for side in (y, -y):
                self.add(
                    rc.ELLIPSOID, sf.WHEEL, (x, side, 0.0), (radius, 0.14, radius), (0.3, 0.3, 0.3), (0.75, 0.75, 0.75)
                )

    @functools.cached_property
    def reach(self) -> Point:
        """Half length, half width and height of the whole object, metres; not to be asked for before it is complete."""
        rows = self.rows
        return (
            max(abs(r[rc.X]) + r[rc.HX] for r in rows),
            max(abs(r[rc.Y]) + r[rc.HY] for r in rows),
            max(r[rc.Z] + r[rc.HZ] for r in rows),
        )

    def place(self, x: float, y: float, z: float, yaw: float) -> np.ndarray:
        """Return the primitives as rows (n, PRIM_COLUMNS) in the scene frame, at this place and heading."""
        rows = np.array(self.rows)
        co, si = math.cos(yaw), math.sin(yaw)
        px, py = rows[:, rc.X].copy(), rows[:, rc.Y].copy()
        rows[:, rc.X], rows[:, rc.Y] = x + px * co - py * si, y + px * si + py * co
        rows[:, rc.Z] += z
        rows[:, rc.COS], rows[:, rc.SIN] = co, si
        return rows


def hue(rng: Rng) -> np.ndarray:
    """Draw any colour: grey, dark, pale or vivid."""
    if rng.random() < 0.35:
        return np.clip(rng.uniform(0.08, 0.85) + rng.uniform(-0.04, 0.04, 3), 0.03, 0.9)
    return rng.uniform(0.06, 0.85, 3)


def usual(rng: Rng, tones: Sequence[Sequence[float]], share: float) -> np.ndarray:
    """Draw a shade of one of ``tones`` with probability ``share``, else any colour."""
    if rng.random() > share:
        return hue(rng)
    tone = np.array(tones[int(rng.integers(len(tones)))])
    return np.clip(tone * rng.uniform(0.75, 1.25) + rng.uniform(-0.06, 0.06, 3), 0.03, 0.9)


def contrast(rng: Rng, color: np.ndarray) -> np.ndarray:
    """Draw a second colour that is clearly brighter or darker than the first."""
    if color.mean() > 0.5 or rng.random() < 0.15:
        return rng.uniform(0.03, 0.16, 3)
    return rng.uniform(0.75, 0.92) + rng.uniform(-0.05, 0.05, 3)


# objects that are annotated with boxes: raw label -> nuScenes attribute of one that stands still
ATTRIBUTES: Dict[int, str] = {
    CAR: "vehicle.parked",
    TRUCK: "vehicle.parked",
    BUS: "vehicle.parked",
    TRAILER: "vehicle.parked",
    CONSTRUCTION: "vehicle.parked",
    MOTORCYCLE: "cycle.without_rider",
    BICYCLE: "cycle.without_rider",
    ADULT: "pedestrian.standing",
    BARRIER: "",
    CONE: "",
}
# the same of one that moves
MOVING: Dict[int, str] = {
    CAR: "vehicle.moving",
    TRUCK: "vehicle.moving",
    BUS: "vehicle.moving",
    MOTORCYCLE: "cycle.with_rider",
    BICYCLE: "cycle.with_rider",
    ADULT: "pedestrian.moving",
}
