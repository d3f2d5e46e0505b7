"""Points and voxels as binary PLY files with colours, which MeshLab, CloudCompare, Blender and Open3D read."""

from __future__ import annotations

from typing import Any, BinaryIO, Sequence

import numpy as np

from tpvformer.geometry import lattice
from tpvformer.labels import Classes
from tpvformer.viz.boxes import Lines

BAR = 0.08  # metres: width of the lines of boxes
_VERTEX = np.dtype([("place", "<f4", 3), ("color", "u1", 3), ("label", "u1")])
_FACE = np.dtype([("count", "u1"), ("corner", "<i4", 4)])
_CUBE = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
# corners of each side, counter-clockwise as seen from outside
_QUADS = np.array([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])


def write_points(file: BinaryIO, points: np.ndarray, labels: np.ndarray, classes: Classes) -> None:
    """Write points (P, 3), metres, with labels (P,): one vertex each, with its colour and its class as ``label``."""
    _write(file, points, labels, np.array(classes.colors, np.uint8)[labels], np.empty((0, 4), np.int64))


def write_voxels(
    file: BinaryIO, voxels: np.ndarray, drawn: np.ndarray, pc_range: Sequence[float], classes: Classes
) -> None:
    """Write a cube of eight vertices for each voxel of (X, Y, Z) where ``drawn``; metres in the grid's frame."""
    cells = np.argwhere(drawn)
    low, pitch = lattice(pc_range, voxels.shape)
    corners = low + (cells[:, None] + _CUBE) * pitch
    quads = (8 * np.arange(len(cells))[:, None, None] + _QUADS).reshape(-1, 4)
    labels = np.repeat(voxels[drawn], 8)
    _write(file, corners.reshape(-1, 3), labels, np.array(classes.colors, np.uint8)[labels], quads)


def write_lines(file: BinaryIO, lines: Lines) -> None:
    """Write each line as a bar of ``BAR`` metres, eight vertices and six faces, with the label of its box.

    Not every program shows a PLY file's edges; all show faces.
    """
    start, end = lines.segments[:, 0], lines.segments[:, 1]
    along = end - start
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    upright = np.abs(along[:, 2:]) > 0.9
    side = np.cross(np.where(upright, [1.0, 0, 0], [0, 0, 1.0]), along)
    side *= BAR / 2 / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    lift = np.cross(along, side)
    signs = _CUBE * 2.0 - 1
    ends = np.where(_CUBE[None, :, :1] == 0, start[:, None], end[:, None])
    ends = ends + signs[None, :, :1] * along[:, None] * BAR / 2  # bars fill the corners
    places = ends + signs[None, :, 1:2] * side[:, None] + signs[None, :, 2:] * lift[:, None]
    quads = (8 * np.arange(len(places))[:, None, None] + _QUADS).reshape(-1, 4)
    _write(file, places.reshape(-1, 3), np.repeat(lines.labels, 8), lines.colors.repeat(8, axis=0), quads)


def _write(file: BinaryIO, places: np.ndarray, labels: np.ndarray, colors: np.ndarray, quads: np.ndarray) -> None:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(places)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue", "label")]
    if len(quads):
        lines += [f"element face {len(quads)}", "property list uchar int vertex_indices"]
    vertices: Any = np.empty(len(places), _VERTEX)
    vertices["place"], vertices["label"] = places, labels
    vertices["color"] = colors
    faces: Any = np.empty(len(quads), _FACE)
    faces["count"], faces["corner"] = 4, quads
    file.write(("\n".join([*lines, "end_header"]) + "\n").encode() + vertices.tobytes() + faces.tobytes())
