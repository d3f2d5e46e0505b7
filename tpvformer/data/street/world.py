"""The content of a street, and drawing one at random.

Scene frame: x along the road's general direction, y left, z up, metres. Road coordinates: u = x, and s = y minus the y
of the road's middle line, a parabola. The ego drives along s = ``ego_s`` from u = 0 to ``travel``. Time is in seconds
after the first key frame.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

from tpvformer.data.street import raycast as rc
from tpvformer.data.street.builder import Rng
from tpvformer.data.street.layout import KERB_HEIGHT, MARGIN, Layout
from tpvformer.data.street.motion import Movers, Road
from tpvformer.data.street.populate import Thing, populate

STEEPEST = 0.45  # slope of the parabola at the ends of the street: about 25 degrees


@dataclass(frozen=True)
class Light:
    """Sun and air of a scene; colours are red, green, blue in [0, 1]."""

    sun: np.ndarray  # (3,) unit vector towards the sun
    ambient: float  # share of the light that comes from all directions
    haze: float  # 1 / distance (m) at which half the contrast is left
    grain: float  # amplitude of the sensor noise
    horizon: np.ndarray  # (3,) colour of the sky at the horizon
    zenith: np.ndarray  # (3,) colour of the sky overhead
    exposure: np.ndarray  # (3,) gain of red, green, blue


@dataclass(frozen=True)
class Street:
    """Everything that a ray can hit, at one moment; ``raycast`` defines the columns."""

    prims: np.ndarray  # (P, PRIM_COLUMNS) float64
    rects: np.ndarray  # (R, RECT_COLUMNS) float64, first match wins
    road: Road
    things: Sequence[Thing]  # at time 0
    movers: Movers
    light: Light
    bounds: Tuple[float, float, float, float]  # x0, y0, x1, y1 of the built area
    ego_s: float

    def at(self, seconds: float) -> Street:
        """Return the street at that time; ``things`` stay as they are."""
        movers = self.movers
        if not len(movers.rows):
            return self
        poses, _ = movers.poses(self.road, seconds)
        x, y, z, yaw = poses[movers.owners].T
        co, si = np.cos(yaw), np.sin(yaw)
        a, b, c = movers.local.T
        prims = self.prims.copy()
        prims[movers.rows, rc.X], prims[movers.rows, rc.Y] = x + a * co - b * si, y + a * si + b * co
        prims[movers.rows, rc.Z] = z + c
        prims[movers.rows, rc.COS], prims[movers.rows, rc.SIN] = co, si
        return dataclasses.replace(self, prims=prims)

    def things_at(self, seconds: float) -> List[Thing]:
        """Return the annotated objects at that time."""
        things = list(self.things)
        poses, velocities = self.movers.poses(self.road, seconds)
        for i, (x, y, z, yaw), velocity in zip(self.movers.things, poses.tolist(), velocities.tolist()):
            old = things[i]
            centre = (x, y, z + old.size[2] / 2)
            things[i] = Thing(old.label, old.attribute, centre, old.size, yaw, tuple(velocity))
        return things


def _light(rng: Rng) -> Light:
    sun = np.array([rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.7, 1.6)])
    horizon = np.clip(rng.uniform(0.55, 0.85) + rng.uniform(-0.03, 0.03, 3), 0, 0.95)
    blue = np.array([rng.uniform(0.45, 1), rng.uniform(0.65, 1), 1.0])
    return Light(
        sun=sun / np.linalg.norm(sun),
        ambient=rng.uniform(0.4, 0.75),
        haze=1 / rng.uniform(120, 400),
        grain=rng.uniform(0.008, 0.022),
        horizon=horizon,
        zenith=np.clip(horizon * blue, 0, 1),
        exposure=rng.uniform(0.95, 1.4) * np.array([rng.uniform(0.92, 1.08), 1.0, rng.uniform(0.9, 1.08)]),
    )


def build_street(rng: Rng, travel: float, seconds: float = 0.0) -> Street:
    """Draw a random street along which the ego drives ``travel`` metres in ``seconds``.

    With 0 seconds it is drawn for one moment: the whole stretch is free, and what moves may collide at other times.
    """
    layout = Layout(rng, travel)
    bend = 0.0
    if rng.random() < 0.65:
        bend = math.copysign(rng.uniform(0.3, 1.0), rng.uniform(-1, 1)) * STEEPEST / (MARGIN + 30 + travel / 2)
    vertex, median = travel / 2 + rng.uniform(-30, 30), (layout.median_s, layout.median)
    road = Road(bend, vertex, KERB_HEIGHT, layout.half, median, layout.junction)
    sag = [road.middle(u) for u in (-MARGIN, travel + MARGIN, road.vertex)]
    bounds = (-MARGIN, min(sag) - 32.0, travel + MARGIN, max(sag) + 32.0)
    rects = np.array(layout.rects)
    prims, things, movers = populate(rng, layout, road, rects, travel, seconds)
    assert prims.shape[1] == rc.PRIM_COLUMNS and rects.shape[1] == rc.RECT_COLUMNS
    return Street(prims, rects, road, things, movers, _light(rng), bounds, layout.ego_s)
