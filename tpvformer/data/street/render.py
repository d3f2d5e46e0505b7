"""Images and lidar sweeps of a street, from one ray caster.

Compiled loops without threads: many processes render many frames. A sensor's pose is sensor2scene, 4x4 float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

import numpy as np
from numba import njit

from .raycast import (
    CENTRE,
    COS,
    CURVATURE,
    FRUSTUM,
    GROUND,
    HX,
    HY,
    HZ,
    KERB_FACE,
    LABEL,
    OBJECT,
    REGION,
    SHAPE,
    SIN,
    SKY,
    X,
    Y,
    Z,
    build_bins,
    cast,
    meet,
    noise,
)
from .rig import BEAMS, FIRINGS, beam_elevations
from .surface import ground_color, object_color
from .world import Light, Street

IMAGE_REACH = 130.0  # metres
LIDAR_REACH = 55.0  # metres; a hazier day than the real sensor's 105 m keeps the points inside the usual +-51.2 m grid
EGO_LABEL = 31  # raw lidarseg index of points without a return, kept near the origin
NO_CLASS = 255  # a pixel of the sky
SHADOW_CELL = 0.3  # metres
RANGE_NOISE = 0.02  # metres, half width


@dataclass(frozen=True)
class ShadowMap:
    """Which cells of the ground the sun does not reach: (rows along x, columns along y) uint8, and the corner."""

    cells: np.ndarray
    x0: float
    y0: float


@dataclass(frozen=True)
class Sweep:
    """One turn of the lidar."""

    points: np.ndarray  # (FIRINGS * BEAMS, 5) float32: x, y, z in the lidar frame (m), intensity 0..255, ring
    labels: np.ndarray  # (FIRINGS * BEAMS,) uint8 raw lidarseg index
    objects: np.ndarray  # (FIRINGS * BEAMS,) int32 index of Street.objects, -1 for everything else


@njit(cache=True, fastmath=True)
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
    """The street's shadow map; the sun stands still, so one map serves all frames."""
    x0, y0, x1, y1 = street.bounds
    cells = np.zeros((int((x1 - x0) / SHADOW_CELL), int((y1 - y0) / SHADOW_CELL)), np.uint8)
    _shadows(street.prims, np.array(street.light.sun), cells, x0, y0)
    return ShadowMap(cells, x0, y0)


@njit(cache=True, fastmath=True)
def _lit(cells: np.ndarray, fx: float, fy: float) -> float:
    """Share of the sun that reaches a place, bilinear between cell centres."""
    i, j = int(math.floor(fx)), int(math.floor(fy))
    if i < 0 or j < 0 or i + 1 >= cells.shape[0] or j + 1 >= cells.shape[1]:
        return 1.0
    p, q = fx - i, fy - j
    dark = (cells[i, j] * (1 - q) + cells[i, j + 1] * q) * (1 - p)
    dark += (cells[i + 1, j] * (1 - q) + cells[i + 1, j + 1] * q) * p
    return 1.0 - dark


@njit(cache=True, fastmath=True)
def _camera(
    pose: np.ndarray,
    m: np.ndarray,
    prims: np.ndarray,
    road: np.ndarray,
    rects: np.ndarray,
    cells: np.ndarray,
    corner: np.ndarray,
    light: np.ndarray,
    seed: int,
    image: np.ndarray,
    labels: np.ndarray,
    depth: np.ndarray,
) -> None:
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    starts, rows, bounds = build_bins(prims, ox, oy, oz, IMAGE_REACH)
    sun = light[0:3]
    ambient, haze, grain = light[3], light[4], light[5]
    for v in range(image.shape[0]):
        for u in range(image.shape[1]):
            a, b = u + 0.5, v + 0.5
            dx = m[0, 0] * a + m[0, 1] * b + m[0, 2]
            dy = m[1, 0] * a + m[1, 1] * b + m[1, 2]
            dz = m[2, 0] * a + m[2, 1] * b + m[2, 2]
            q = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
            dx, dy, dz = dx * q, dy * q, dz * q
            t, hit, detail = cast(ox, oy, oz, dx, dy, dz, IMAGE_REACH, prims, road, rects, starts, rows, bounds)
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            depth[v, u] = t * q  # along the optical axis: the ray's z component is 1 before it is normalised
            if hit == SKY:
                k = max(0.0, min(1.0, 2.5 * dz))
                c0 = light[6] * (1 - k) + light[9] * k
                c1 = light[7] * (1 - k) + light[10] * k
                c2 = light[8] * (1 - k) + light[11] * k
                labels[v, u] = NO_CLASS
                shade, fog = 1.0, 1.0
            else:
                fog = 1.0 / (1.0 + (t * haze) ** 2)
                if hit in (GROUND, KERB_FACE):
                    rect = rects[detail]
                    labels[v, u] = int(rect[REGION])
                    s = y - 0.5 * road[CURVATURE] * (x - road[CENTRE]) ** 2
                    c0, c1, c2 = ground_color(rect, x, s, hit, 1.0 / (1.0 + (t / 18.0) ** 2))
                    lit = _lit(cells, (x - corner[0]) / SHADOW_CELL - 0.5, (y - corner[1]) / SHADOW_CELL - 0.5)
                    shade = ambient + (1 - ambient) * lit * (sun[2] if hit == GROUND else 0.4)
                else:
                    prim = prims[hit]
                    labels[v, u] = int(prim[LABEL])
                    co, si = prim[COS], prim[SIN]
                    lx, ly = (x - prim[X]) * co + (y - prim[Y]) * si, (y - prim[Y]) * co - (x - prim[X]) * si
                    lz = z - prim[Z]
                    nx, ny, nz = 0.0, 0.0, 0.0
                    if detail == 0:
                        nx = 1.0 if lx > 0 else -1.0
                    elif detail == 1:
                        ny = 1.0 if ly > 0 else -1.0
                    elif detail == 2:
                        nz = 1.0 if lz > 0 else -1.0
                    else:
                        nx, ny = lx / prim[HX] ** 2, ly / prim[HY] ** 2
                        nz = 0.0 if prim[SHAPE] == FRUSTUM else lz / prim[HZ] ** 2
                        n = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
                        nx, ny, nz = nx * n, ny * n, nz * n
                    sx, sy = sun[0] * co + sun[1] * si, sun[1] * co - sun[0] * si
                    face = detail
                    if detail == 3:  # texture a round body along its wider side, as if it were a box
                        face = 0 if abs(lx) * prim[HY] > abs(ly) * prim[HX] else 1
                    c0, c1, c2 = object_color(prim, lx, ly, lz, face)
                    facing = nx * sx + ny * sy + nz * sun[2]
                    shade = ambient * (0.8 + 0.2 * nz) + (1 - ambient) * max(0.0, facing)
            shake = grain * (noise(u, v, seed) + noise(u, v, seed + 77) - 1.0)
            c0 = (c0 * shade * fog + light[6] * (1 - fog)) * light[12] + shake
            c1 = (c1 * shade * fog + light[7] * (1 - fog)) * light[13] + shake
            c2 = (c2 * shade * fog + light[8] * (1 - fog)) * light[14] + shake
            image[v, u, 2] = int(min(255.0, max(0.0, 255.0 * c0)))
            image[v, u, 1] = int(min(255.0, max(0.0, 255.0 * c1)))
            image[v, u, 0] = int(min(255.0, max(0.0, 255.0 * c2)))


def _light_row(light: Light, gain: Tuple[float, float, float]) -> np.ndarray:
    return np.array([*light.sun, light.ambient, light.haze, light.grain, *light.horizon, *light.zenith, *gain])


def render_camera(
    street: Street,
    shadows: ShadowMap,
    sensor2scene: np.ndarray,
    intrinsic: np.ndarray,
    size: Tuple[int, int],
    gain: Tuple[float, float, float],
    seed: int,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one camera sees.

    Args: ``size`` is (width, height) pixels, ``gain`` the exposure of red, green, blue, ``seed`` that of the grain.
    Returns the image (H, W, 3) uint8 BGR, the raw lidarseg index of every pixel (H, W) uint8 (NO_CLASS for sky), and
    the depth along the optical axis (H, W) float32 in metres.
    """
    width, height = size
    image = np.empty((height, width, 3), np.uint8)
    labels = np.empty((height, width), np.uint8)
    depth = np.empty((height, width), np.float32)
    _camera(
        sensor2scene,
        sensor2scene[:3, :3] @ np.linalg.inv(intrinsic),
        street.prims,
        street.road,
        street.rects,
        shadows.cells,
        np.array([shadows.x0, shadows.y0]),
        _light_row(street.light, gain),
        seed,
        image,
        labels,
        depth,
    )
    return image, labels, depth


@njit(cache=True, fastmath=True)
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
            if noise(f, b, seed + 3) < 0.005:  # one firing in 200 returns nothing
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
    """One motion-compensated turn of the lidar from one pose; N is always FIRINGS * BEAMS, firing by firing."""
    count = FIRINGS * BEAMS
    sweep = Sweep(np.empty((count, 5), np.float32), np.empty(count, np.uint8), np.empty(count, np.int32))
    _lidar(
        sensor2scene,
        beam_elevations(),
        street.prims,
        street.road,
        street.rects,
        seed,
        sweep.points,
        sweep.labels,
        sweep.objects,
    )
    return sweep
