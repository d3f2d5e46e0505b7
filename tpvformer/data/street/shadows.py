"""Shadows on the ground. The sun does not move during a scene, so what stands still has one map for all frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tpvformer.data.street.raycast import (
    COS,
    HX,
    HY,
    HZ,
    SIN,
    X,
    Y,
    Z,
    meet,
)
from tpvformer.data.street.world import Street
from tpvformer.runtime.compiling import inner, kernel

SHADOW_CELL = 0.3  # metres
LONGEST = 8.0  # metres: a bus is 3.4 m high and the sun at least 26 degrees above the horizon
FAR = 50.0  # metres: farther shadows of what moves are not drawn
WIDEST = 1.1  # more than the tangent of half the field of view of any camera


@dataclass(frozen=True)
class ShadowMap:
    """The shaded cells of the ground: (rows along x, columns along y) uint8, and the grid's lower corner."""

    cells: np.ndarray
    x0: float
    y0: float

    def with_movers(self, street: Street, camera2scene: np.ndarray) -> ShadowMap:
        """Return the map with the shadows that a camera can see of what moves, where it is in ``street``.

        Left out is what is farther from the camera's field of view than a shadow is long, or more than FAR away.
        """
        prims = street.prims[street.movers.rows]
        depth = (prims[:, [X, Y]] - camera2scene[:2, 3]) @ camera2scene[:2, 2]
        aside = np.abs((prims[:, [X, Y]] - camera2scene[:2, 3]) @ camera2scene[:2, 0])
        prims = prims[(depth > -LONGEST) & (depth < FAR) & (aside < WIDEST * np.maximum(depth, 0) + 1.5 * LONGEST)]
        if not len(prims):
            return self
        cells = self.cells.copy()
        _shadows(prims, street.light.sun, cells, self.x0, self.y0)
        return ShadowMap(cells, self.x0, self.y0)


@kernel(fastmath=True)
def _shadows(prims: np.ndarray, sun: np.ndarray, cells: np.ndarray, x0: float, y0: float) -> None:
    flat = math.sqrt(sun[0] * sun[0] + sun[1] * sun[1])
    for i in range(prims.shape[0]):
        prim = prims[i]
        radius = math.sqrt(prim[HX] ** 2 + prim[HY] ** 2)
        length = (prim[Z] + prim[HZ]) * flat / sun[2]
        ex, ey = -sun[0] / max(flat, 1e-9) * length, -sun[1] / max(flat, 1e-9) * length
        i0 = max(int((prim[X] + min(ex, 0.0) - radius - x0) / SHADOW_CELL), 0)
        i1 = min(int((prim[X] + max(ex, 0.0) + radius - x0) / SHADOW_CELL) + 1, cells.shape[0] - 1)
        j0 = max(int((prim[Y] + min(ey, 0.0) - radius - y0) / SHADOW_CELL), 0)
        j1 = min(int((prim[Y] + max(ey, 0.0) + radius - y0) / SHADOW_CELL) + 1, cells.shape[1] - 1)
        co, si = prim[COS], prim[SIN]
        bx, by = sun[0] * co + sun[1] * si, sun[1] * co - sun[0] * si
        for a in range(i0, i1 + 1):
            for b in range(j0, j1 + 1):
                if cells[a, b] == 0:
                    cx, cy = x0 + (a + 0.5) * SHADOW_CELL - prim[X], y0 + (b + 0.5) * SHADOW_CELL - prim[Y]
                    t, _ = meet(prim, cx * co + cy * si, cy * co - cx * si, -0.2 - prim[Z], bx, by, sun[2], 1e6)
                    if t > 0:
                        cells[a, b] = 1


def cast_shadows(street: Street) -> ShadowMap:
    """Compute the shadow map of what stands still on a street."""
    x0, y0, x1, y1 = street.bounds
    cells = np.zeros((int((x1 - x0) / SHADOW_CELL), int((y1 - y0) / SHADOW_CELL)), np.uint8)
    still = np.delete(street.prims, street.movers.rows, axis=0)
    _shadows(still, street.light.sun, cells, x0, y0)
    return ShadowMap(cells, x0, y0)


@inner(fastmath=True)
def lit_share(cells: np.ndarray, fx: float, fy: float) -> float:
    """Return the share of sunlight at a place, 0 to 1, bilinear between cell centres."""
    i, j = int(math.floor(fx)), int(math.floor(fy))
    if i < 0 or j < 0 or i + 1 >= cells.shape[0] or j + 1 >= cells.shape[1]:
        return 1.0
    p, q = fx - i, fy - j
    dark = (cells[i, j] * (1 - q) + cells[i, j + 1] * q) * (1 - p)
    dark += (cells[i + 1, j] * (1 - q) + cells[i + 1, j + 1] * q) * p
    return 1.0 - dark
