"""The ground of a street: carriageway, median, verges, sidewalks, the area beyond them, and sometimes a junction.

Regions are strips and patches in road coordinates (u along the road, s to its left, metres). The classes' colour ranges
overlap; paving, lane marks and position tell the classes apart.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import numpy as np

from tpvformer.data.street import raycast as rc
from tpvformer.data.street import surface as sf
from tpvformer.data.street.builder import Rng

DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN = 24, 25, 26, 27  # raw lidarseg indices
MARGIN = 62.0  # metres of street before and after the stretch that is driven
FAR = 1e9
KERB_HEIGHT = 0.14
CORRIDOR = 2.3  # metres on either side of the ego's path that stay free


class Layout:
    """One random cross section and its ground regions."""

    def __init__(self, rng: Rng, travel: float) -> None:
        self.rng, self.travel = rng, travel
        self.half = rng.uniform(6.5, 9.5)  # of the carriageway
        self.walks = (rng.uniform(2.2, 4.2), rng.uniform(2.2, 4.2))  # sidewalk widths, left and right
        self.verges = [rng.uniform(1.4, 2.6) if rng.random() < 0.35 else 0.0 for _ in range(2)]
        self.median = rng.uniform(0.8, 1.6) if rng.random() < 0.6 else 0.0  # half width
        self.median_s = rng.uniform(-0.25, 0.25) * self.half
        self.junction = (0.0, 0.0)  # middle and half width of a crossing street
        if rng.random() < 0.45:
            self.junction = (rng.uniform(-30, travel + 30), rng.uniform(4, 6.5))
        self.paint: Dict[int, np.ndarray] = {
            DRIVEABLE: _tint(rng, 0.18, 0.42, 0.025),
            SIDEWALK: _tint(rng, 0.42, 0.75, 0.07),
            OTHER_FLAT: _tint(rng, 0.25, 0.65, 0.1),
            TERRAIN: _soil(rng),
        }
        self.style: Dict[int, Tuple[int, float]] = {  # pattern and the size of its repeats in metres
            DRIVEABLE: (sf.ASPHALT, rng.uniform(3.1, 3.7)),
            SIDEWALK: (sf.SLABS, rng.uniform(0.7, 1.3)),
            OTHER_FLAT: (sf.STRIPES if rng.random() < 0.6 else sf.CHEQUERS, rng.uniform(1.3, 2.0)),
            TERRAIN: (sf.GRASS, 1.0),
        }
        self.rects: List[List[float]] = []
        self._junction()
        self._carriageway()
        for side in (1, -1):
            self._beside(side)
        self._add(TERRAIN, (-FAR, FAR), (-FAR, FAR))
        self.ego_s = self._lane()

    def edge(self, side: int) -> float:
        """Return the metres from the middle of the road to the sidewalk's outer edge; side +1 left, -1 right."""
        k = 0 if side > 0 else 1
        return self.half + self.verges[k] + self.walks[k]

    def walk(self, side: int) -> float:
        """Return the width of the sidewalk on that side in metres."""
        return self.walks[0 if side > 0 else 1]

    def _add(self, label: int, u: Tuple[float, float], s: Tuple[float, float], pattern: int = -1) -> None:
        """Append a region; where regions overlap, the first one counts."""
        style, scale = self.style[label]
        seed = float(self.rng.integers(1, 30000))
        color = self.paint[label] * self.rng.uniform(0.92, 1.08)
        accent = np.full(3, 0.85 if label == DRIVEABLE or color.mean() < 0.55 else 0.12)
        raised = float(label != DRIVEABLE)
        shape = [*u, min(s), max(s), label, raised, style if pattern < 0 else pattern, seed, scale]
        self.rects.append([*shape, *color, *accent])

    def _junction(self) -> None:
        u, wide = self.junction
        if not wide:
            return
        if self.rng.random() < 0.6:
            for near in (u - wide - 3.6, u + wide + 0.8):
                self._add(DRIVEABLE, (near, near + 2.8), (-self.half, self.half), sf.ZEBRA)
        self._add(DRIVEABLE, (u - wide, u + wide), (-FAR, FAR))
        self.rects[-1][rc.SCALE] = FAR  # no lane marks across the junction

    def _carriageway(self) -> None:
        if self.median:
            label = OTHER_FLAT if self.rng.random() < 0.75 else TERRAIN
            self._add(label, (-FAR, FAR), (self.median_s - self.median, self.median_s + self.median))
        self._add(DRIVEABLE, (-FAR, FAR), (-self.half, self.half))

    def _beside(self, side: int) -> None:
        """Add verge, sidewalk and patches of paving beyond it."""
        rng = self.rng
        verge = self.verges[0 if side > 0 else 1]
        kerb = self.half + verge
        if verge:
            label = TERRAIN if rng.random() < 0.5 else OTHER_FLAT
            self._add(label, (-FAR, FAR), (side * self.half, side * kerb))
        self._add(SIDEWALK, (-FAR, FAR), (side * kerb, side * self.edge(side)))
        u = -MARGIN
        while u < self.travel + MARGIN:
            long = rng.uniform(9, 20)
            if rng.random() < 0.4:
                label = OTHER_FLAT if rng.random() < 0.8 else SIDEWALK
                out = self.edge(side) + rng.uniform(4, 12)
                self._add(label, (u, u + long), (side * self.edge(side), side * out))
            u += long

    def _lane(self) -> float:
        """Draw the ego's s: on the carriageway, clear of the kerbs."""
        gap = CORRIDOR + 0.3
        side = 1 if self.rng.random() < 0.5 else -1
        outer = side * (self.half - gap)
        inner = self.median_s + side * (self.median + gap) if self.median else -outer
        return self.rng.uniform(min(inner, outer), max(inner, outer))


def _tint(rng: Rng, low: float, high: float, spread: float) -> np.ndarray:
    return np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0.05, 0.85)


def _soil(rng: Rng) -> np.ndarray:
    """Draw the colour of grass, dry grass, earth or gravel."""
    tones = np.array([[0.28, 0.42, 0.16], [0.52, 0.46, 0.3], [0.38, 0.3, 0.22], [0.45, 0.44, 0.42]])
    tone = tones[int(rng.choice(4, p=[0.65, 0.15, 0.15, 0.05]))]
    return np.clip(tone * rng.uniform(0.75, 1.3) + rng.uniform(-0.05, 0.05, 3), 0.05, 0.8)
