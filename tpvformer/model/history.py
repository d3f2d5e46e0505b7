"""Let the queries of the present read the planes of past frames: references move, planes do not.

A rotated zh or wz plane is no longer a plane of the present grid, so the planes of a past frame stay as they were. The
places that a query asks about are moved into the frame of the past instead, which is exact for any rigid motion.

Legend: B batch, F past frames, Q queries, C channels, A anchors. Nothing is stored in the model: a history is an
argument and a result.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tpvformer.config import GridConfig, ModelConfig
from tpvformer.model.grid import PLANE_AXES, split_planes

PARKED = -1e3  # normalised; an offset would have to be a thousand planes wide to bring such a reference back


class PlaneHistory(NamedTuple):
    """Hold what a model saw before: the plane features of past frames, the newest first.

    planes (B,F,Q,C) float32. to_past (B,F,4,4) float32 takes points of the present frame's grid to those of the past
    frame's, in metres (``geometry.now_to_past``). seconds (B,F) float32: how long ago that was. A frame is read where
    0 <= seconds <= ``model.history.max_seconds``: an infinite number says that a sample has no such frame. Its planes
    and its matrix may then hold anything.
    """

    planes: Tensor
    to_past: Tensor
    seconds: Tensor

    def moved(self, motion: Tensor, seconds: Tensor) -> "PlaneHistory":
        """Return the history as a later frame sees it.

        motion (B,4,4) takes points of the later frame's grid to those of the frame that this history is seen from;
        seconds (B,) lie between the two.
        """
        product = self.to_past[..., None] * motion.to(self.to_past)[:, None, None]  # no matmul: TF32 would round it
        return PlaneHistory(self.planes, product.sum(-2), self.seconds + seconds.to(self.seconds)[:, None])

    def of_samples(self, known: Tensor) -> "PlaneHistory":
        """Return the history with the frames of samples forgotten where ``known`` (B,) or (B,F) bool is false."""
        known = known if known.dim() == 2 else known[:, None]
        return self._replace(seconds=torch.where(known, self.seconds, torch.inf))

    @staticmethod
    def stack(histories: Sequence[Optional["PlaneHistory"]]) -> Optional["PlaneHistory"]:
        """Return the histories of several samples as that of a batch; None where none of them has one.

        Each may be of several samples. Frames that others have and one lacks are not read for it, and None stands for
        one sample without any.
        """
        some = [history for history in histories if history is not None]
        if not some:
            return None
        if len(histories) == 1:
            return some[0]
        frames = max(history.planes.shape[1] for history in some)
        parts = [_filled(history, frames, some[0]) for history in histories]
        return PlaneHistory(*(torch.cat(same) for same in zip(*parts)))

    def unstack(self) -> List["PlaneHistory"]:
        """Return the history of each sample."""
        return [PlaneHistory(*(part[i : i + 1] for part in self)) for i in range(len(self.planes))]


def _filled(history: Optional[PlaneHistory], frames: int, like: PlaneHistory) -> PlaneHistory:
    """Return a history with so many frames, of which those that it lacks are unknown; ``like``: device and shapes."""
    some = PlaneHistory(*(part[:1, :0] for part in like)) if history is None else history
    batch, has = some.seconds.shape
    if has == frames:
        return some
    lost = frames - has
    planes = some.planes.new_zeros(batch, lost, *some.planes.shape[2:])
    own = torch.eye(4).to(some.to_past).expand(batch, lost, 4, 4)
    never = some.seconds.new_full((batch, lost), torch.inf)
    return PlaneHistory(*(torch.cat(pair, 1) for pair in zip(some, (planes, own, never))))


def remember(planes: Tensor, history: Optional[PlaneHistory], frames: int) -> PlaneHistory:
    """Return the history as the present frame sees it: its planes (B,Q,C), detached, and the newest of ``history``."""
    planes = planes.detach().float()[:, None]
    own = torch.eye(4, device=planes.device).expand(len(planes), 1, 4, 4)
    now = PlaneHistory(planes, own, torch.zeros(len(planes), 1, device=planes.device))
    if history is None or frames == 1:
        return now
    kept = [part[:, : frames - 1].detach() for part in history]
    return PlaneHistory(*(torch.cat([new, old.to(new)], 1) for new, old in zip(now, kept)))


def unknown(cfg: ModelConfig, batch: int, device: torch.device) -> PlaneHistory:
    """Return a history of one frame that no sample has."""
    queries = sum(cfg.grid.plane_sizes[: len(cfg.planes)])
    planes = torch.zeros(batch, 1, queries, cfg.dim, device=device)  # no views: a compiled graph is for strides too
    matrices = torch.eye(4, device=device).repeat(batch, 1, 1, 1)
    return PlaneHistory(planes, matrices, torch.full((batch, 1), torch.inf, device=device))


def check_history(history: PlaneHistory, cfg: ModelConfig, batch: int) -> None:
    """Raise ValueError for a model without a history, or for other shapes than those of its planes."""
    if cfg.history is None:
        raise ValueError("a history was given to a model without model.history")
    frames = history.planes.shape[1] if history.planes.dim() == 4 else 0
    if not 1 <= frames <= cfg.history.frames:
        raise ValueError(
            f"history.planes have shape {tuple(history.planes.shape)}; expected (batch, frames, queries, channels), "
            f"1 to {cfg.history.frames} frames (model.history.frames)"
        )
    queries = sum(cfg.grid.plane_sizes[: len(cfg.planes)])
    shapes = {"planes": (queries, cfg.dim), "to_past": (4, 4), "seconds": ()}
    for name, shape in shapes.items():
        found, expected = tuple(getattr(history, name).shape), (batch, frames, *shape)
        if found != expected:
            raise ValueError(f"history.{name} has shape {found}; expected {expected}")


class KnownPast(NamedTuple):
    """Hold a history with neutral values in frames that are not read; ``known`` (B,F) bool says which are.

    Unread planes are zero, unread matrices are the identity, unread ages are 0.
    """

    planes: Tensor
    to_past: Tensor
    seconds: Tensor
    known: Tensor


def known_past(history: PlaneHistory, max_seconds: float) -> KnownPast:
    """Return what of a history is read. It gets no gradient: the past is not trained through."""
    planes, to_past, seconds = (part.detach().float() for part in history)
    known = (seconds >= 0) & (seconds <= max_seconds)  # false for NaN
    own = torch.eye(4, device=to_past.device)
    return KnownPast(
        torch.where(known[..., None, None], planes, 0.0),
        torch.where(known[..., None, None], to_past, own),
        torch.where(known, seconds, 0.0),
        known,
    )


def moved_points(points: Tensor, to_past: Tensor, grid: GridConfig) -> Tuple[Tensor, Tensor, Tensor]:
    """Return normalised x, y, z, (B,F,..) each, at which the past has the normalised points (..,3) of the present.

    The arithmetic is elementwise in fp32: a matrix product could run in reduced precision.
    """
    low, high = grid.pc_range[:3], grid.pc_range[3:]
    x, y, z = (low[i] + points[..., i] * (high[i] - low[i]) for i in range(3))  # metres
    m = to_past.view(*to_past.shape[:2], *(1,) * (points.dim() - 1), 4, 4)
    moved = (m[..., r, 0] * x + m[..., r, 1] * y + m[..., r, 2] * z + m[..., r, 3] for r in range(3))
    x, y, z = ((axis - low[i]) / (high[i] - low[i]) for i, axis in enumerate(moved))
    return x, y, z


def ground_places(cells: Tensor, to_past: Tensor, grid: GridConfig) -> Tensor:
    """Return where the past has the ``cells`` (HW,2) of plane hw: (B,F,HW,2) as (column, row), normalised.

    Cells move in x and y alone, as those of height 0.
    """
    low, high = grid.pc_range[2], grid.pc_range[5]
    ground = torch.cat([cells, torch.full_like(cells[:, :1], -low / (high - low))], -1)
    x, y, _ = moved_points(ground, to_past, grid)
    return torch.stack([x, y], -1)


class CrossViewPast(NamedTuple):
    """Hold where the queries of a cross_view model read the past; every frame of a sample is a row of its own.

    planes (B*F,Q,C). anchors (B*F,Q,3,A,2): the moved anchors on the three planes, as ``cross_view_points`` orders
    them, those outside the grid of the past PARKED. share (B,F,Q,1): the part of a frame in what a query reads, the
    same for all frames that saw any of its anchors, else 0. time (B,F,1,C): the embedding of the frames' ages.
    """

    planes: Tensor
    anchors: Tensor
    share: Tensor
    time: Tensor


def references(points: Tensor, past: KnownPast, grid: GridConfig) -> Tuple[Tensor, Tensor]:
    """Return anchors and share of a ``CrossViewPast`` for normalised points (Q,A,3) of the present."""
    axes = moved_points(points, past.to_past, grid)  # (B,F,Q,A) each
    inside = past.known[..., None, None].expand_as(axes[0])
    for axis in axes:
        inside = inside & (axis >= 0) & (axis <= 1)
    pairs = [torch.stack([axes[col], axes[row]], -1) for row, col in PLANE_AXES]
    anchors = torch.where(inside[..., None, :, None], torch.stack(pairs, -3), PARKED)
    seen = inside.any(-1)[..., None].float()
    return anchors.flatten(0, 1), seen / seen.sum(1, keepdim=True).clamp(min=1)


class HWPast(NamedTuple):
    """Hold where the queries of an hw model read the past, plane hw alone.

    planes (B,F,HW,C). places (B,HW,F,1,2): the moved cells as (column, row), normalised. read (B,HW,C): the mean of
    the frames at these places. share (B,F): the part of a frame. any_known (B,1,1) bool: whether a sample has a past;
    otherwise its present stands in for it, as in a model without a history.
    """

    planes: Tensor
    places: Tensor
    read: Tensor
    share: Tensor
    any_known: Tensor


def hw_past(history: PlaneHistory, cfg: ModelConfig, cells: Tensor) -> HWPast:
    """Return the past of an hw model, whose ``cells`` (HW,2) are those of ``own_plane_points``."""
    assert cfg.history is not None
    past, grid = known_past(history, cfg.history.max_seconds), cfg.grid
    b, frames = past.known.shape
    places = ground_places(cells, past.to_past, grid)  # (B,F,HW,2)
    planes = split_planes(past.planes.flatten(0, 1), cfg)[0]  # (B*F,HW,C)
    maps = planes.transpose(1, 2).unflatten(2, grid.plane_shapes[0])
    where = (2 * places - 1).flatten(0, 1)[:, None]  # (B*F,1,HW,2)
    read = F.grid_sample(maps, where, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]
    share = past.known.float() / past.known.sum(1, keepdim=True).clamp(min=1)
    mean = (read.transpose(1, 2).unflatten(0, (b, frames)) * share[..., None, None]).sum(1)
    return HWPast(
        planes.unflatten(0, (b, frames)), places.transpose(1, 2)[:, :, :, None], mean, share,
        past.known.any(1)[:, None, None],
    )  # fmt: skip
