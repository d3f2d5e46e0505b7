"""Rendering a camera's image of a street. The compiled loops use one thread, because processes render the frames."""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

from tpvformer.data.street.raycast import (
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
    REGION,
    SHAPE,
    SIN,
    SKY,
    X,
    Y,
    Z,
    build_bins,
    cast,
    noise,
)
from tpvformer.data.street.shadows import SHADOW_CELL, ShadowMap, lit_share
from tpvformer.data.street.surface import ground_color, object_color
from tpvformer.data.street.world import Light, Street
from tpvformer.runtime.compiling import kernel

IMAGE_REACH = 130.0  # metres
NO_CLASS = 255  # label of a pixel of the sky


@kernel(fastmath=True)
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
                    lit = lit_share(cells, (x - corner[0]) / SHADOW_CELL - 0.5, (y - corner[1]) / SHADOW_CELL - 0.5)
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


def _light_row(light: Light, gain: np.ndarray) -> np.ndarray:
    return np.array([*light.sun, light.ambient, light.haze, light.grain, *light.horizon, *light.zenith, *gain])


def render_camera(
    street: Street,
    shadows: ShadowMap,
    sensor2scene: np.ndarray,
    intrinsic: np.ndarray,
    size: Tuple[int, int],
    gain: np.ndarray,
    seed: int,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render the image of one camera.

    Args: ``size`` is (width, height) pixels; ``gain`` (3,) the exposure of red, green, blue; ``seed`` seeds the noise.
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
        street.road.row(),
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
