"""Intersections of rays with the street: objects made of primitives, and a two-level ground with kerbs.

Everything lies in the scene frame: x roughly along the road, y left, z up, metres, ground at z = 0. The cameras and the
lidar call the same ``Bins`` and ``cast``, so a point that the lidar hits is the surface that a camera sees.

A primitive is a row of ``prims`` (columns below): a box, an ellipsoid or a vertical frustum, turned by a yaw.
A ground region is a row of ``rects`` in road coordinates (u = x, s = distance to the left of the curved middle line);
the first row that contains a place counts; raised regions are ``road[KERB]`` metres higher than the carriageway.
"""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

from tpvformer.errors import ConfigError
from tpvformer.runtime.compiling import can_keep, inner, kernel

if not can_keep():
    raise ConfigError(
        "synthetic streets are drawn by kernels that Numba compiles, and it finds no folder where it may keep them; "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    )

# columns of a primitive
X, Y, Z, HX, HY, HZ, COS, SIN, SHAPE, TAPER, LABEL, TEXTURE, SEED, OBJECT = range(14)
COLOR, ACCENT = 14, 17  # three columns each, RGB in [0, 1]
PRIM_COLUMNS = 20
BOX, ELLIPSOID, FRUSTUM, FOLIAGE = range(4)  # FOLIAGE: an ellipsoid with gaps between its leaves

# columns of a ground region
U0, U1, S0, S1, REGION, RAISED, PATTERN, GSEED, SCALE = range(9)
GCOLOR, GACCENT = 9, 12
RECT_COLUMNS = 15
CURVATURE, CENTRE, KERB = range(3)  # entries of ``road``

SKY, GROUND, KERB_FACE = -1, -2, -3  # what was hit, where it is no primitive; else the row of ``prims``
NEAR = 0.3  # metres in front of a sensor within which nothing is hit
BINS = 512  # azimuth sectors around a sensor
LEAF = 0.32  # metres, edge of a leaf cell


@inner(fastmath=True)
def noise(a: int, b: int, c: int) -> float:
    """Return a hash of three integers, uniform in [0, 1)."""
    h = (a * 374761393 + b * 668265263 + c * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 2246822519) & 0xFFFFFFFF
    return float((h >> 9) & 0x7FFFFF) / 8388608.0


@inner(fastmath=True)
def azimuth(x: float, y: float) -> float:
    """Return atan2(y, x) to 0.002 rad, several times faster (the bins have a wider margin)."""
    ax, ay = abs(x), abs(y)
    big, small = max(ax, ay), min(ax, ay)
    q = small / max(big, 1e-12)
    r = q * (0.9992150 + q * q * (-0.3211819 + q * q * (0.1462766 - 0.0389929 * q * q)))
    if ay > ax:
        r = 0.5 * math.pi - r
    if x < 0:
        r = math.pi - r
    return -r if y < 0 else r


@inner()
def build_bins(
    prims: np.ndarray, ox: float, oy: float, oz: float, reach: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the primitives in each azimuth sector around a sensor, nearest first.

    Returns starts (BINS + 1,) and rows (n,) int32, and bounds (P, 3): each primitive's nearest horizontal distance and
    the lowest and highest slope (rise over horizontal distance) of rays that can hit it.
    """
    count = prims.shape[0]
    bounds = np.empty((count, 3))
    first = np.empty(count, np.int64)
    last = np.empty(count, np.int64)
    for i in range(count):
        dx, dy = prims[i, X] - ox, prims[i, Y] - oy
        reach_i = math.sqrt(prims[i, HX] ** 2 + prims[i, HY] ** 2)
        d = math.sqrt(dx * dx + dy * dy)
        bounds[i, 0] = max(d - reach_i, 0.0)
        first[i] = 0
        last[i] = -1
        if bounds[i, 0] > reach:
            continue
        near, far = max(d - reach_i, 1e-3), d + reach_i
        top, low = prims[i, Z] + prims[i, HZ] - oz, prims[i, Z] - prims[i, HZ] - oz
        bounds[i, 1] = low / (near if low < 0 else far) - 1e-6
        bounds[i, 2] = top / (near if top > 0 else far) + 1e-6
        if d <= reach_i + 0.05:
            bounds[i, 1], bounds[i, 2] = -1e9, 1e9
            last[i] = BINS - 1
            continue
        middle, half = math.atan2(dy, dx), math.asin(reach_i / d) + 0.006
        first[i] = int(math.floor((middle - half + math.pi) / (2 * math.pi) * BINS))
        last[i] = min(int(math.floor((middle + half + math.pi) / (2 * math.pi) * BINS)), first[i] + BINS - 1)
    starts = np.zeros(BINS + 1, np.int32)
    for i in range(count):
        for b in range(first[i], last[i] + 1):
            starts[b % BINS + 1] += 1
    for b in range(BINS):
        starts[b + 1] += starts[b]
    rows = np.empty(starts[BINS], np.int32)
    cursor = starts[:BINS].copy()
    order = np.empty(count, np.int64)  # insertion sort: np.sort takes longer to compile than a frame takes to render
    for i in range(count):
        k = i
        while k > 0 and bounds[order[k - 1], 0] > bounds[i, 0]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = i
    for i in order:
        for b in range(first[i], last[i] + 1):
            rows[cursor[b % BINS]] = i
            cursor[b % BINS] += 1
    return starts, rows, bounds


@inner(fastmath=True)
def meet(
    prim: np.ndarray, ax: float, ay: float, az: float, bx: float, by: float, bz: float, limit: float
) -> Tuple[float, int]:
    """Return the distance along a local ray a + t b to a primitive (-1: miss) and the face: x 0, y 1, z 2, curved 3."""
    hx, hy, hz = prim[HX], prim[HY], prim[HZ]
    shape = int(prim[SHAPE])
    if shape == BOX:
        t0, t1, face = -1e9, 1e9, 0
        for k in range(3):
            a = ax if k == 0 else (ay if k == 1 else az)
            b = bx if k == 0 else (by if k == 1 else bz)
            h = hx if k == 0 else (hy if k == 1 else hz)
            if abs(b) < 1e-9:
                if abs(a) > h:
                    return -1.0, 0
            else:
                q = 1.0 / b
                ta, tb = (-h - a) * q, (h - a) * q
                if ta > tb:
                    ta, tb = tb, ta
                if ta > t0:
                    t0, face = ta, k
                t1 = min(t1, tb)
        if t0 < t1 and NEAR < t0 < limit:
            return t0, face
        return -1.0, 0
    px, py, qx, qy = ax / hx, ay / hy, bx / hx, by / hy
    if shape == FRUSTUM:
        k = prim[TAPER] / (2 * hz)
        r0, r1 = 1 - prim[TAPER] / 2 - k * az, -k * bz  # radius along the ray: r0 + t r1
        if abs(bz) > 1e-9:  # the upper or lower lid
            t = ((-hz if bz > 0 else hz) - az) / bz
            r = r0 + t * r1
            if NEAR < t < limit and (px + t * qx) ** 2 + (py + t * qy) ** 2 < r * r:
                return t, 2
        qa, qb, qc = qx * qx + qy * qy - r1 * r1, px * qx + py * qy - r0 * r1, px * px + py * py - r0 * r0
    else:
        pz, qz = az / hz, bz / hz
        qa, qb, qc = qx * qx + qy * qy + qz * qz, px * qx + py * qy + pz * qz, px * px + py * py + pz * pz - 1
    disc = qb * qb - qa * qc
    if disc <= 0 or abs(qa) < 1e-12:
        return -1.0, 0
    t = (-qb - math.sqrt(disc)) / qa
    if not NEAR < t < limit or (shape == FRUSTUM and abs(az + t * bz) > hz):
        return -1.0, 0
    if shape == FOLIAGE:
        u, v, w = (ax + t * bx) / LEAF, (ay + t * by) / LEAF, (az + t * bz) / LEAF
        if noise(int(math.floor(u)), int(math.floor(v)), int(math.floor(w)) * 31 + int(prim[SEED])) < 0.22:
            return -1.0, 0
    return t, 3


@kernel(fastmath=True)
def region_at(x: float, y: float, road: np.ndarray, rects: np.ndarray) -> Tuple[int, float]:
    """Return the row of ``rects`` at a place on the ground, and its road coordinate s. The last row covers all."""
    s = y - 0.5 * road[CURVATURE] * (x - road[CENTRE]) ** 2
    for i in range(rects.shape[0] - 1):
        if rects[i, S0] <= s < rects[i, S1] and rects[i, U0] <= x < rects[i, U1]:
            return i, s
    return rects.shape[0] - 1, s


@inner(fastmath=True)
def meet_ground(
    ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, road: np.ndarray, rects: np.ndarray
) -> Tuple[float, int, int]:
    """Return the distance to the ground along a ray that points down, GROUND or KERB_FACE, and the region's row."""
    t_high, t_low = (road[KERB] - oz) / dz, -oz / dz
    row, _ = region_at(ox + t_high * dx, oy + t_high * dy, road, rects)
    if rects[row, RAISED] > 0:
        return t_high, GROUND, row
    row, _ = region_at(ox + t_low * dx, oy + t_low * dy, road, rects)
    if rects[row, RAISED] == 0:
        return t_low, GROUND, row
    a, b = t_high, t_low  # above the carriageway at a, inside the raised ground at b: the kerb lies between
    for _ in range(10):
        middle = 0.5 * (a + b)
        row_m, _ = region_at(ox + middle * dx, oy + middle * dy, road, rects)
        if rects[row_m, RAISED] > 0:
            b, row = middle, row_m
        else:
            a = middle
    return b, KERB_FACE, row


@inner(fastmath=True)
def cast(
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    reach: float,
    prims: np.ndarray,
    road: np.ndarray,
    rects: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    bounds: np.ndarray,
) -> Tuple[float, int, int]:
    """Follow a ray (unit direction) up to ``reach`` metres.

    Returns the distance, what was hit (a row of ``prims``, GROUND, KERB_FACE or SKY) and a detail: the face of the
    primitive, or the row of ``rects``.
    """
    best = reach
    if dz < -1e-9:
        best = min(best, -oz / dz)
    found, detail = SKY, 0
    flat = math.sqrt(dx * dx + dy * dy)
    slope = dz / max(flat, 1e-9)
    sector = int((azimuth(dx, dy) + math.pi) * (BINS / (2 * math.pi))) % BINS
    for n in range(starts[sector], starts[sector + 1]):
        i = rows[n]
        if bounds[i, 0] > best * flat:
            break
        if slope < bounds[i, 1] or slope > bounds[i, 2]:
            continue
        prim = prims[i]
        cx, cy = ox - prim[X], oy - prim[Y]
        co, si = prim[COS], prim[SIN]
        t, face = meet(
            prim, cx * co + cy * si, cy * co - cx * si, oz - prim[Z], dx * co + dy * si, dy * co - dx * si, dz, best
        )
        if t > 0:
            best, found, detail = t, i, face
    if dz < -1e-9 and (road[KERB] - oz) / dz < best:
        t, kind, row = meet_ground(ox, oy, oz, dx, dy, dz, road, rects)
        if t < best or found == SKY and t <= reach:
            return t, kind, row
    return best, found, detail
