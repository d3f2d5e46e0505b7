"""Show the head of 3-D boxes where the past has what the present has: how far each place of its map has moved.

A velocity is a displacement between two frames. What attention reads of the past is added to the features of the
present, where convolutions do not find displacements: with both frames as channels side by side, as in BEVDet4D
(arXiv:2203.17054), the velocity error did not fall. So the features of a cell are compared with those of all cells
around it in the frame before (a correlation volume, FlowNet, arXiv:1504.06852), which says where its content was. The
velocity that follows is added to the head's, as far as a learned gate lets it: metres a second are large numbers, which
the head itself learns slowly.

Legend: B batch, F past frames, Q plane cells, C channels of a plane, h, w cells of plane hw, D = (2 REACH + 1)^2.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import ModelConfig
from tpvformer.config.detection import GROUP_SIZES
from tpvformer.model.grid import own_plane_points, split_planes
from tpvformer.model.history import PlaneHistory, ground_places, known_past

REACH = 7  # cells, along either axis, between the present place of an object and its place in the frame before
_SHARPNESS = 10.0  # initial factor of the cosines before the softmax over displacements


class Compared(NamedTuple):
    """Hold what the past adds to the head: to its map, ``features`` (B,channels,h,w), and to the velocities of each
    group of classes, ``velocities`` (B,6,2,h,w) in m/s. Both are zero for a sample without a past."""

    features: Tensor
    velocities: Tensor


class DetectionHistory(nn.Module):
    """Compare plane hw with that of the newest past frame.

    The last layer starts at zero, so that a fresh module changes nothing.
    """

    cells: Tensor
    steps: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        assert cfg.detection is not None
        self.cfg = cfg
        width, grid, side = cfg.detection.channels, cfg.grid, 2 * REACH + 1
        self.match = nn.Conv2d(cfg.dim, cfg.dim, 1, bias=False)
        nn.init.dirac_(self.match.weight)
        self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS))
        self.compare = nn.Conv2d(2 * cfg.dim + side * side + 4, width, 3, padding=1)
        self.output = nn.Conv2d(width, width + len(GROUP_SIZES), 3, padding=1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("cells", own_plane_points(grid, 0), persistent=False)
        row, col = torch.meshgrid(torch.arange(side) - REACH, torch.arange(side) - REACH, indexing="ij")
        low, high, (rows, cols) = grid.pc_range[:2], grid.pc_range[3:5], grid.plane_shapes[0]
        pitch = torch.tensor([(high[0] - low[0]) / cols, (high[1] - low[1]) / rows])
        metres = torch.stack([col, row], -1).flatten(0, 1) * pitch  # (D,2), x and y
        self.register_buffer("steps", metres, persistent=False)

    def forward(self, planes: Tensor, history: PlaneHistory, dtype: Optional[torch.dtype] = None) -> Compared:
        """Return what the past adds to the head, from plane features (B,Q,C) and a history.

        ``dtype``: convolutions run under autocast in this type; None: in the planes' type.
        """
        now, then, inside, seconds, known = self._side_by_side(planes, history)
        volume = self.similarities(now, then)  # (B,D,h,w)
        chosen = (self.sharpness * volume).softmax(1)
        moved = torch.einsum("bdhw,dk->bkhw", chosen, self.steps)  # where the content was, metres from here
        velocity = -moved / seconds.clamp(min=0.05)  # m/s; frames are further apart than that
        shown = torch.cat([now, then, volume, velocity, inside, seconds.expand_as(inside)], 1)
        with torch.autocast(planes.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            found = self.output(F.relu(self.compare(shown)))
        found = found.float() * known
        features, gates = found.split([found.shape[1] - len(GROUP_SIZES), len(GROUP_SIZES)], 1)
        return Compared(features, gates[:, :, None] * velocity[:, None])

    def similarities(self, now: Tensor, then: Tensor) -> Tensor:
        """Return the cosine (B,D,h,w) of each cell of now (B,C,h,w) and the cells around it in then (B,C,h,w).

        Both have their mean over cells subtracted, which all cells share. Cells outside have 0.
        """
        h, w = now.shape[2:]
        asked = F.normalize(self.match(now - now.mean((2, 3), keepdim=True)), dim=1)
        held = F.pad(F.normalize(then - then.mean((2, 3), keepdim=True), dim=1), (REACH,) * 4)
        found: List[Tensor] = []
        for row in range(2 * REACH + 1):
            for col in range(2 * REACH + 1):
                found.append((asked * held[:, :, row : row + h, col : col + w]).sum(1))
        return torch.stack(found, 1)

    def _side_by_side(self, planes: Tensor, history: PlaneHistory) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return plane hw of now, that of the newest known frame at the same places (B,C,h,w), and of the latter
        whether a place was in its grid (B,1,h,w), its age in seconds and whether a sample has one, (B,1,1,1) each."""
        assert self.cfg.history is not None
        shape, past = self.cfg.grid.plane_shapes[0], known_past(history, self.cfg.history.max_seconds)
        newest = past.known.float().argmax(1)[:, None]  # the first that is known
        rows = torch.arange(len(planes), device=planes.device)[:, None]
        known = past.known[rows, newest][..., None, None].float()
        where = 2 * ground_places(self.cells, past.to_past[rows, newest], self.cfg.grid) - 1  # (B,1,hw,2)
        then, now = (
            split_planes(x, self.cfg)[0].mT.unflatten(2, shape) for x in (past.planes[rows, newest][:, 0], planes)
        )
        then = F.grid_sample(then, where, padding_mode="zeros", align_corners=False)[:, :, 0].unflatten(2, shape)
        inside = (where.abs() <= 1).all(-1).float().unflatten(2, shape)
        return now, then, inside, past.seconds[rows, newest][..., None, None], known
