"""The grid of a model and the grids of published dense labels. All of it is used through ``tpvformer.config``.

Lengths are metres in the lidar frame of the data set (nuScenes: x right, y forward, z up; SemanticKITTI: x forward,
y left, z up) unless a field says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Literal, NamedTuple, Optional, Tuple

from tpvformer.config.ranges import check_grid, check_section
from tpvformer.config.words import check_words
from tpvformer.errors import ConfigError

__all__ = ["OCCUPANCY_GRIDS", "Axes", "ConfigError", "GridConfig", "OccupancyGrid"]

Axes = Literal["lidar", "ego"]  # "ego": x forward, y left, z up, on the ground under the rear axle
_ROUNDING = 1e-3  # voxels by which the border of a grid may differ from that of a voxel


@dataclass(frozen=True)
class GridConfig:
    """The three planes. ``w``, ``h``, ``z`` count cells along x, y and z of the grid's frame."""

    w: int = 200
    h: int = 200
    z: int = 16
    scale_w: int = 1  # bilinear up-sampling of the planes before they are read (test time)
    scale_h: int = 1
    scale_z: int = 1
    pc_range: Tuple[float, ...] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)  # x0, y0, z0, x1, y1, z1
    frame: Axes = "lidar"

    def __post_init__(self) -> None:
        check_section("model.grid", self)
        check_grid(self)
        check_words("model.grid", self)

    @property
    def plane_shapes(self) -> Tuple[Tuple[int, int], ...]:
        """(rows, columns) of the planes hw, zh, wz."""
        return ((self.h, self.w), (self.z, self.h), (self.w, self.z))

    @property
    def plane_sizes(self) -> Tuple[int, int, int]:
        """Cells of the planes hw, zh, wz."""
        return (self.h * self.w, self.z * self.h, self.w * self.z)

    @property
    def num_queries(self) -> int:
        return sum(self.plane_sizes)

    @property
    def shape(self) -> Tuple[int, int, int]:
        """Voxels along x, y, z of the output and of the label grid."""
        return (self.w * self.scale_w, self.h * self.scale_h, self.z * self.scale_z)

    @property
    def extent(self) -> Tuple[float, float, float]:
        """Metres covered along x, y, z."""
        r = self.pc_range
        return (r[3] - r[0], r[4] - r[1], r[5] - r[2])


class OccupancyGrid(NamedTuple):
    """The grid of published dense labels: ``shape`` (X, Y, Z) voxels over ``pc_range`` in the axes of ``frame``."""

    shape: Tuple[int, int, int]
    pc_range: Tuple[float, ...]
    frame: Axes
    classes: int  # free space among them
    empty: int  # the class of free space

    def part(self, grid: GridConfig) -> Optional[Tuple[slice, slice, slice]]:
        """Return the voxels that ``grid`` covers; None unless they are whole voxels of this grid, in its frame."""
        if grid.frame != self.frame:
            return None
        found = []
        for axis, (mine, theirs) in enumerate(zip(self.shape, grid.shape)):
            low, high = self.pc_range[axis], self.pc_range[axis + 3]
            places = [(grid.pc_range[i] - low) / (high - low) * mine for i in (axis, axis + 3)]
            first, last = round(places[0]), round(places[1])
            apart = max(abs(places[0] - first), abs(places[1] - last))
            if apart > _ROUNDING or first < 0 or last > mine or last - first != theirs:
                return None
            found.append(slice(first, last))
        return (found[0], found[1], found[2])


OCCUPANCY_GRIDS: Dict[str, OccupancyGrid] = {
    "occ3d": OccupancyGrid((200, 200, 16), (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4), "ego", 18, 17),  # voxels of 0.4 m
    "surroundocc": OccupancyGrid((200, 200, 16), (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0), "lidar", 18, 17),  # of 0.5 m
    # of 0.2 m; its lidar's x points forward, y left
    "semantickitti": OccupancyGrid((256, 256, 32), (0.0, -25.6, -2.0, 51.2, 25.6, 4.4), "lidar", 20, 0),
}
