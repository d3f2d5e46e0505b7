"""Show the head of 3-D boxes what the past held at the places of its map.

A velocity is a displacement between two frames. Convolutions see it where both frames lie side by side in the present
grid, as in BEVDet4D (arXiv:2203.17054); what attention reads of the past is added to the present, which mixes them.

Legend: B batch, F past frames, Q plane cells, C channels of a plane, h, w cells of plane hw.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import ModelConfig
from tpvformer.model.grid import own_plane_points, split_planes
from tpvformer.model.history import PlaneHistory, ground_places, known_past


class DetectionHistory(nn.Module):
    """Compare plane hw with that of the newest past frame; the result is added to the head's map.

    The last layer starts at zero, so that a fresh module changes nothing.
    """

    cells: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        assert cfg.detection is not None
        self.cfg = cfg
        width = cfg.detection.channels
        self.compare = nn.Conv2d(2 * cfg.dim + 2, width, 5, padding=2)  # vehicles drive some cells between two frames
        self.output = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("cells", own_plane_points(cfg.grid, 0), persistent=False)

    def forward(self, planes: Tensor, history: PlaneHistory, dtype: Optional[torch.dtype] = None) -> Tensor:
        """Return (B,channels,h,w), zero for a sample without a past, from plane features (B,Q,C) and a history.

        ``dtype``: convolutions run under autocast in this type; None: in the planes' type.
        """
        assert self.cfg.history is not None
        grid, past = self.cfg.grid, known_past(history, self.cfg.history.max_seconds)
        newest = past.known.float().argmax(1)[:, None]  # the first that is known
        rows = torch.arange(len(planes), device=planes.device)[:, None]
        to_past, known = past.to_past[rows, newest], past.known[rows, newest][..., None, None].float()
        where = 2 * ground_places(self.cells, to_past, grid)[:, 0] - 1  # (B,hw,2)
        then, now = (split_planes(x, self.cfg)[0].mT for x in (past.planes[rows, newest][:, 0], planes))
        then = F.grid_sample(
            then.unflatten(2, grid.plane_shapes[0]), where[:, None], padding_mode="zeros", align_corners=False
        )[:, :, 0]
        inside = (where.abs() <= 1).all(-1)[:, None].float()
        age = past.seconds[rows, newest][..., None].expand_as(inside)
        shown = torch.cat([now, then, inside, age], 1).unflatten(2, grid.plane_shapes[0])
        with torch.autocast(planes.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            found = self.output(F.relu(self.compare(shown)))
        return found.float() * known
