"""The class of each voxel of a street, and the voxels that a sensor observes.

Each voxel is sampled at the centres of its 3x3x3 parts. A sample belongs to the object whose solid contains it. Boxes,
ellipsoids and frusta are full, leaves have no gaps; where objects overlap, the last one made counts. Else the sample
belongs to the ground if it is within half a part of the ground's height: below that surface is free space, as in labels
made from points. A voxel with any such sample is occupied. Its class is the most frequent one of its samples, the
smallest of equally frequent ones. The labels are complete: they include what no sensor observes.

A voxel is observed by a sensor if one of its rays runs through it before, or where, it meets the first surface.
"""

from __future__ import annotations

import math
from typing import Sequence, Tuple

import numpy as np

from tpvformer.data.street.camera import IMAGE_REACH
from tpvformer.data.street.lidar import LIDAR_REACH
from tpvformer.data.street.raycast import (
    BOX,
    COS,
    FRUSTUM,
    HX,
    HY,
    HZ,
    KERB,
    LABEL,
    RAISED,
    REGION,
    SHAPE,
    SIN,
    TAPER,
    X,
    Y,
    Z,
    build_bins,
    cast,
    region_at,
)
from tpvformer.data.street.rig import FIRINGS, Camera, beam_elevations
from tpvformer.data.street.world import Street
from tpvformer.geometry import lattice
from tpvformer.labels import EMPTY, RAW_TO_CLASS
from tpvformer.runtime.compiling import inner, kernel

PARTS = 3  # a voxel's samples along each axis
VIEW = (400, 225)  # rays of a camera across and down: 0.15 m apart at 40 m
_NOTHING = 255
_CLASSES = np.array(RAW_TO_CLASS, np.uint8)


@inner()
def _inside(prim: np.ndarray, x: float, y: float, z: float) -> bool:
    """Tell whether a primitive contains a local point (metres from its centre)."""
    px, py, pz = x / prim[HX], y / prim[HY], z / prim[HZ]
    if abs(px) > 1 or abs(py) > 1 or abs(pz) > 1:
        return False
    shape = int(prim[SHAPE])
    if shape == BOX:
        return True
    if shape == FRUSTUM:  # as in raycast.meet: the radius shrinks from 1 at the bottom to 1 - taper at the top
        r = 1 - prim[TAPER] * (1 + pz) / 2
        return px * px + py * py <= r * r
    return px * px + py * py + pz * pz <= 1


@kernel()
def _sample(
    parts: np.ndarray,
    prims: np.ndarray,
    road: np.ndarray,
    rects: np.ndarray,
    to_scene: np.ndarray,
    to_grid: np.ndarray,
    low: np.ndarray,
    edge: np.ndarray,
    classes: np.ndarray,
) -> None:
    """Fill ``parts`` (3X,3Y,3Z) with classes; the centre of element i is low + (i + 0.5) edge in the grid's frame."""
    nx, ny, nz = parts.shape
    for i in range(nx):
        for j in range(ny):
            a, b = low[0] + (i + 0.5) * edge[0], low[1] + (j + 0.5) * edge[1]
            for k in range(nz):
                c = low[2] + (k + 0.5) * edge[2]
                z = to_scene[2, 0] * a + to_scene[2, 1] * b + to_scene[2, 2] * c + to_scene[2, 3]
                if -edge[2] < z < road[KERB] + edge[2]:
                    x = to_scene[0, 0] * a + to_scene[0, 1] * b + to_scene[0, 2] * c + to_scene[0, 3]
                    y = to_scene[1, 0] * a + to_scene[1, 1] * b + to_scene[1, 2] * c + to_scene[1, 3]
                    row, _ = region_at(x, y, road, rects)
                    height = road[KERB] if rects[row, RAISED] > 0 else 0.0
                    if abs(z - height) <= 0.5 * edge[2]:
                        parts[i, j, k] = classes[int(rects[row, REGION])]
    first, last, centre, local = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3), np.empty(3)
    for p in range(prims.shape[0]):
        prim = prims[p]
        co, si = prim[COS], prim[SIN]
        for axis in range(3):
            g = to_grid[axis]
            centre[axis] = g[0] * prim[X] + g[1] * prim[Y] + g[2] * prim[Z] + g[3]
            reach = abs(g[0] * co + g[1] * si) * prim[HX] + abs(g[1] * co - g[0] * si) * prim[HY] + abs(g[2]) * prim[HZ]
            first[axis] = max(0, int(math.floor((centre[axis] - reach - low[axis]) / edge[axis] - 0.5)))
            size = parts.shape[axis]
            last[axis] = min(size - 1, int(math.ceil((centre[axis] + reach - low[axis]) / edge[axis] - 0.5)))
        for i in range(first[0], last[0] + 1):
            for j in range(first[1], last[1] + 1):
                for k in range(first[2], last[2] + 1):
                    a, b, c = low[0] + (i + 0.5) * edge[0], low[1] + (j + 0.5) * edge[1], low[2] + (k + 0.5) * edge[2]
                    for axis in range(3):
                        s = to_scene[axis]
                        local[axis] = s[0] * a + s[1] * b + s[2] * c + s[3] - prim[X + axis]
                    x, y = local[0] * co + local[1] * si, local[1] * co - local[0] * si
                    if _inside(prim, x, y, local[2]):
                        parts[i, j, k] = classes[int(prim[LABEL])]


@kernel()
def _vote(parts: np.ndarray, grid: np.ndarray) -> None:
    votes = np.empty(EMPTY, np.int64)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            for k in range(grid.shape[2]):
                votes[:] = 0
                best, most = EMPTY, 0
                for n in range(PARTS**3):
                    label = parts[PARTS * i + n // PARTS**2, PARTS * j + n // PARTS % PARTS, PARTS * k + n % PARTS]
                    if label != _NOTHING:
                        votes[label] += 1
                        if votes[label] > most or (votes[label] == most and label < best):
                            best, most = label, votes[label]
                grid[i, j, k] = best


@kernel()
def _trace(
    mask: np.ndarray,
    sensor: np.ndarray,
    directions: np.ndarray,
    reach: float,
    prims: np.ndarray,
    road: np.ndarray,
    rects: np.ndarray,
    to_grid: np.ndarray,
    low: np.ndarray,
    pitch: np.ndarray,
) -> None:
    """Set ``mask`` to 1 along every ray, cell by cell, up to the first surface."""
    ox, oy, oz = sensor[0, 3], sensor[1, 3], sensor[2, 3]
    starts, rows, bounds = build_bins(prims, ox, oy, oz, reach)
    cell, step, here, way = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3), np.empty(3)
    for r in range(directions.shape[0]):
        dx = sensor[0, 0] * directions[r, 0] + sensor[0, 1] * directions[r, 1] + sensor[0, 2] * directions[r, 2]
        dy = sensor[1, 0] * directions[r, 0] + sensor[1, 1] * directions[r, 1] + sensor[1, 2] * directions[r, 2]
        dz = sensor[2, 0] * directions[r, 0] + sensor[2, 1] * directions[r, 1] + sensor[2, 2] * directions[r, 2]
        end, _, _ = cast(ox, oy, oz, dx, dy, dz, reach, prims, road, rects, starts, rows, bounds)
        for axis in range(3):
            g = to_grid[axis]
            here[axis] = g[0] * ox + g[1] * oy + g[2] * oz + g[3]
            way[axis] = g[0] * dx + g[1] * dy + g[2] * dz
            cell[axis] = int(math.floor((here[axis] - low[axis]) / pitch[axis]))
            step[axis] = 1 if way[axis] > 0 else -1
        t = 0.0
        while t <= end + 1e-3:  # 1 mm beyond the surface, so that the surface's own voxel is included
            if cell[0] < 0 or cell[1] < 0 or cell[2] < 0:
                break
            if cell[0] >= mask.shape[0] or cell[1] >= mask.shape[1] or cell[2] >= mask.shape[2]:
                break
            mask[cell[0], cell[1], cell[2]] = 1
            t, nearest = 1e9, 0
            for axis in range(3):
                if abs(way[axis]) > 1e-9:
                    wall = low[axis] + (cell[axis] + (1 if step[axis] > 0 else 0)) * pitch[axis]
                    to_wall = (wall - here[axis]) / way[axis]
                    if to_wall < t:
                        t, nearest = to_wall, axis
            cell[nearest] += step[nearest]


def fill_voxels(
    street: Street, grid2scene: np.ndarray, voxels: Tuple[int, int, int], pc_range: Sequence[float]
) -> np.ndarray:
    """Return the classes (X,Y,Z), uint8, of a grid over ``pc_range`` (metres) at pose ``grid2scene``; EMPTY if free."""
    low, pitch = lattice(pc_range, voxels)
    parts = np.full([PARTS * n for n in voxels], _NOTHING, np.uint8)
    to_grid = np.linalg.inv(grid2scene)
    scene = (street.prims, street.road.row(), street.rects, np.ascontiguousarray(grid2scene), to_grid)
    _sample(parts, *scene, low, pitch / PARTS, _CLASSES)
    grid = np.empty(voxels, np.uint8)
    _vote(parts, grid)
    return grid


def observe_by_lidar(
    mask: np.ndarray, street: Street, sensor2scene: np.ndarray, grid2scene: np.ndarray, pc_range: Sequence[float]
) -> None:
    """Set ``mask`` (X,Y,Z) uint8 to 1 where one turn of the lidar observes the voxel."""
    turn = np.arange(FIRINGS) * (2 * math.pi / FIRINGS)
    up, turn = (angle.ravel() for angle in np.meshgrid(beam_elevations(), turn))
    directions = np.stack([np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up)], 1)
    _observe(mask, street, sensor2scene, directions, LIDAR_REACH, grid2scene, pc_range)


def observe_by_camera(
    mask: np.ndarray,
    street: Street,
    camera: Camera,
    sensor2scene: np.ndarray,
    grid2scene: np.ndarray,
    pc_range: Sequence[float],
) -> None:
    """Set ``mask`` (X,Y,Z) uint8 to 1 where a camera observes the voxel, by VIEW rays through the centres of pixels."""
    u, v = (axis.ravel() + 0.5 for axis in np.meshgrid(np.arange(VIEW[0]), np.arange(VIEW[1])))
    directions = np.stack([u, v, np.ones(len(u))], 1) @ np.linalg.inv(camera.intrinsic(VIEW)).T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    _observe(mask, street, sensor2scene, directions, IMAGE_REACH, grid2scene, pc_range)


def _observe(
    mask: np.ndarray,
    street: Street,
    sensor2scene: np.ndarray,
    directions: np.ndarray,
    reach: float,
    grid2scene: np.ndarray,
    pc_range: Sequence[float],
) -> None:
    """Set ``mask`` to 1 along the rays ``directions`` (R,3), unit vectors in the sensor's frame."""
    low, pitch = lattice(pc_range, mask.shape)
    scene = (street.prims, street.road.row(), street.rects, np.linalg.inv(grid2scene))
    _trace(mask, np.ascontiguousarray(sensor2scene), np.ascontiguousarray(directions), reach, *scene, low, pitch)
