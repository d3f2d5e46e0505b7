"""One turn of the lidar on a street, with the ray caster that the cameras use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tpvformer.data.street.raycast import (
    GROUND,
    KERB_FACE,
    LABEL,
    OBJECT,
    REGION,
    SKY,
    build_bins,
    cast,
    noise,
)
from tpvformer.data.street.rig import BEAMS, FIRINGS, beam_elevations
from tpvformer.data.street.world import Street
from tpvformer.runtime.compiling import kernel

LIDAR_REACH = 40.0  # metres; at the real sensor's 105 m, objects are too small to be seen in small images
EGO_LABEL = 31  # raw lidarseg index of points without a return, kept near the origin
DROPOUT = 0.005  # share of the rays, at random, that return nothing
RANGE_NOISE = 0.02  # metres, half width


@dataclass(frozen=True)
class Sweep:
    """One turn of the lidar."""

    points: np.ndarray  # (N, 5) float32: x, y, z in the lidar frame (m), intensity 0..255, ring
    labels: np.ndarray  # (N,) uint8 raw lidarseg index
    objects: np.ndarray  # (N,) int32 index of Street.objects, -1 for everything else


@kernel(fastmath=True)
def _lidar(
    pose: np.ndarray,
    elevations: np.ndarray,
    prims: np.ndarray,
    road: np.ndarray,
    rects: np.ndarray,
    seed: int,
    points: np.ndarray,
    labels: np.ndarray,
    objects: np.ndarray,
) -> None:
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    starts, rows, bounds = build_bins(prims, ox, oy, oz, LIDAR_REACH)
    for f in range(FIRINGS):
        turn = math.pi - 2 * math.pi * (f + noise(seed, 1, 2)) / FIRINGS  # clockwise from above, from the left rear
        for b in range(BEAMS):
            k = f * BEAMS + b
            lx, ly, lz = (
                math.cos(elevations[b]) * math.cos(turn),
                math.cos(elevations[b]) * math.sin(turn),
                math.sin(elevations[b]),
            )
            dx = pose[0, 0] * lx + pose[0, 1] * ly + pose[0, 2] * lz
            dy = pose[1, 0] * lx + pose[1, 1] * ly + pose[1, 2] * lz
            dz = pose[2, 0] * lx + pose[2, 1] * ly + pose[2, 2] * lz
            t, hit, detail = cast(ox, oy, oz, dx, dy, dz, LIDAR_REACH, prims, road, rects, starts, rows, bounds)
            if noise(f, b, seed + 3) < DROPOUT:
                hit = SKY
            objects[k] = -1
            if hit == SKY:
                t = 0.01 * noise(f, b, seed)
                labels[k] = EGO_LABEL
                bright = 0.0
            elif hit in (GROUND, KERB_FACE):
                labels[k] = int(rects[detail, REGION])
                bright = 30.0 * noise(f, b, seed + 1)
            else:
                labels[k] = int(prims[hit, LABEL])
                objects[k] = int(prims[hit, OBJECT])
                bright = 10.0 + 70.0 * noise(f, b, seed + 1)
            if hit != SKY:
                t += RANGE_NOISE * (2 * noise(f, b, seed + 2) - 1)
            points[k, 0], points[k, 1], points[k, 2] = t * lx, t * ly, t * lz
            points[k, 3], points[k, 4] = math.floor(bright), b


def render_lidar(street: Street, sensor2scene: np.ndarray, seed: int) -> Sweep:
    """Render one motion-compensated turn of the lidar from one pose, firing by firing.

    As with the real sensor, sweeps differ by a firing or two: N is BEAMS times FIRINGS - 2 to FIRINGS.
    """
    count = FIRINGS * BEAMS
    sweep = Sweep(np.empty((count, 5), np.float32), np.empty(count, np.uint8), np.empty(count, np.int32))
    _lidar(
        sensor2scene,
        beam_elevations(),
        street.prims,
        street.road.row(),
        street.rects,
        seed,
        sweep.points,
        sweep.labels,
        sweep.objects,
    )
    kept = (FIRINGS - seed % 3) * BEAMS
    return Sweep(sweep.points[:kept], sweep.labels[:kept], sweep.objects[:kept])
