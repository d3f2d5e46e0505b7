"""The share of each annotated object that the six cameras see, for nuScenes' visibility levels.

Eight places inside every primitive of an object, weighted with the primitive's size, stand for its surface. A place is
seen if it lies inside the image of a camera and the ray from that camera to it meets this object first, at the
camera's own time. What a place's own object hides of it counts as seen, so an object in the open has 100 %.
"""

from __future__ import annotations

from typing import Dict, Sequence

import numpy as np

from tpvformer.data.street.raycast import COS, FRUSTUM, HX, HY, HZ, OBJECT, SHAPE, SIN, TAPER, X, Y, Z, build_bins, cast
from tpvformer.data.street.rig import REFERENCE_SIZE, Camera
from tpvformer.data.street.world import Street
from tpvformer.runtime.compiling import kernel

PLACES = 8  # of a primitive: 2 along x, y and z
LEVELS = (0.4, 0.6, 0.8)  # lower bounds of the second, third and fourth visibility level


@kernel(fastmath=True)
def _look(
    rows: np.ndarray,
    seen: np.ndarray,
    pose: np.ndarray,
    scene2image: np.ndarray,
    size: np.ndarray,
    reach: float,
    prims: np.ndarray,
    road: np.ndarray,
    rects: np.ndarray,
) -> None:
    """Set ``seen`` (n, PLACES) to 1 for the places of the primitives ``rows`` that one camera sees."""
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    starts, binned, bounds = build_bins(prims, ox, oy, oz, reach)
    m = scene2image
    for r in range(rows.shape[0]):
        prim = prims[rows[r]]
        if (prim[X] - ox) * pose[0, 2] + (prim[Y] - oy) * pose[1, 2] < -7.0:
            continue  # behind the camera
        for n in range(seen.shape[1]):
            if seen[r, n] > 0:
                continue
            a, b, c = n % 2 - 0.5, n // 2 % 2 - 0.5, n // 4 - 0.5
            if prim[SHAPE] == FRUSTUM:
                shrink = 1 - prim[TAPER] * (1 + c) / 2
                a, b = a * shrink, b * shrink
            a, b, c = a * prim[HX], b * prim[HY], c * prim[HZ]
            dx = prim[X] + a * prim[COS] - b * prim[SIN] - ox
            dy = prim[Y] + a * prim[SIN] + b * prim[COS] - oy
            dz = prim[Z] + c - oz
            depth = m[2, 0] * dx + m[2, 1] * dy + m[2, 2] * dz
            if depth < 0.3:
                continue
            u = (m[0, 0] * dx + m[0, 1] * dy + m[0, 2] * dz) / depth
            v = (m[1, 0] * dx + m[1, 1] * dy + m[1, 2] * dz) / depth
            if u < 0 or v < 0 or u >= size[0] or v >= size[1]:
                continue
            far = (dx * dx + dy * dy + dz * dz) ** 0.5
            q = 1.0 / far
            _, hit, _ = cast(ox, oy, oz, dx * q, dy * q, dz * q, far, prims, road, rects, starts, binned, bounds)
            if hit >= 0 and prims[hit, OBJECT] == prim[OBJECT]:
                seen[r, n] = 1


class Visibility:
    """Collects what the cameras of one key frame see of some objects."""

    def __init__(self, street: Street, things: Sequence[int], middle: Sequence[float], reach: float) -> None:
        """Prepare for the ``things`` (indices of Street.things), all within ``reach`` metres of the scene's x, y."""
        prims = street.prims
        near = np.hypot(prims[:, X] - middle[0], prims[:, Y] - middle[1]) < reach
        self.near = np.flatnonzero(near)  # what can be hit or hide
        prims = prims[self.near]
        self.rows = np.flatnonzero(np.isin(prims[:, OBJECT], np.asarray(things, np.float64)))
        self.seen, self.reach = np.zeros((len(self.rows), PLACES), np.uint8), 2 * reach
        prims = prims[self.rows]
        x, y, z = prims[:, HX], prims[:, HY], prims[:, HZ]
        self.weights, self.owners = x * y + x * z + y * z, prims[:, OBJECT].astype(np.int64)

    def look(self, street: Street, camera: Camera, sensor2scene: np.ndarray) -> None:
        """Add what a camera sees; ``street`` is that of the camera's time."""
        scene2image = camera.intrinsic(REFERENCE_SIZE) @ sensor2scene[:3, :3].T
        size, scene = np.array(REFERENCE_SIZE), (street.prims[self.near], street.road.row(), street.rects)
        _look(self.rows, self.seen, np.ascontiguousarray(sensor2scene), scene2image, size, self.reach, *scene)

    def shares(self) -> Dict[int, float]:
        """Return the share, 0 to 1, of each object."""
        whole = np.bincount(self.owners, self.weights)
        seen = np.bincount(self.owners, self.weights * self.seen.mean(1))
        return {int(i): float(seen[i] / whole[i]) for i in np.unique(self.owners)}


def level(share: float) -> int:
    """Return the number of nuScenes' visibility level, 1 to 4."""
    return 1 + sum(share >= bound for bound in LEVELS)
