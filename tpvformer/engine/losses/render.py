"""Compute the render loss: rays through the predicted voxels must show what the same rays show in the true ones.

Voxels that hide each other are then not equally important, as they are to cross-entropy: a ray's first surface decides.
Supervision by rendered views: GaussRender (arXiv:2502.05040). Weights along a ray: Max, Optical Models for Direct
Volume Rendering (IEEE TVCG 1995), as in NeRF (arXiv:2003.08934).

Two kinds of rays are drawn anew in each step, as many of each camera and from above: through random pixels of the
cameras, and straight down through random columns of voxels. The part of a camera's ray inside the grid is divided into
equal steps, and the voxel at one place of each step is read; the places of a ray are shifted by a random part of a
step. A ray from above reads the middle of each voxel of its column.

Lengths are counted in voxels, so that a voxel is one long along each axis. Of a step of length s in a voxel that is
free with probability f, the share f^s of the light passes: 1 - f is the opacity of a voxel that a ray crosses from face
to face, whatever the number of steps. With the light T_i that reaches step i::

    w_i = T_i (1 - f_i^s)           T_(i+1) = T_i f_i^s           T_0 = 1
    semantics of class k   sum w_i p_i(k | not free)      and T_end of free space
    depth                  sum w_i x_i + T_end            x_i from 0, where the ray enters the grid, to 1, where it ends

The truth is rendered by the same formulas: f is 1 in free voxels and 0 in others, so all light ends at one depth x, in
the first voxel that is not free. Voxels whose label is unknown are transparent in both. The loss of a ray has two
parts, each from 0 to 1: half the L1 distance of the semantics, and the L1 distance of the depths of all light,
sum w_i |x_i - x| + T_end (1 - x). The latter is at least that of the mean depths, which could agree although no light
ends at the surface. The loss of a sample is the mean over its rays of cameras plus the mean over those from above.

Memory: (cameras x rays x samples + rays x Z) rows of K logits a sample, and some eight times as much in backward.

Legend: B samples, N cameras, K classes, X, Y, Z voxels, V = XYZ, R rays, S steps of a ray.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

_OPAQUE = -1e4  # logarithm of what passes through a true surface; its exponential is 0
_STILL = 1e-9  # voxels: a direction's smallest component, so that no division is by zero


class Rays(NamedTuple):
    """Hold rays in voxel units: ``origins`` (B,R,3) from the grid's low corner, unit vectors ``directions`` (B,R,3)."""

    origins: Tensor
    directions: Tensor


class Steps(NamedTuple):
    """Hold where rays read the grid: ``voxels`` (B,R,S) int64 row-major, ``places`` (B,R,S) from 0 to 1 along the ray's
    part in the grid, ``lengths`` (B,R) in voxels; 0 for a ray that misses the grid."""

    voxels: Tensor
    places: Tensor
    lengths: Tensor


class View(NamedTuple):
    """Hold what rays show: ``semantics`` (B,R,K), the share of the light that ends in each step, ``ends`` (B,R,S), and
    that which leaves the grid, ``rest`` (B,R). Both sum to 1."""

    semantics: Tensor
    ends: Tensor
    rest: Tensor

    def depth(self, places: Tensor) -> Tensor:
        """Return the mean depth (B,R) of the light as a share of the ray's part in the grid."""
        return (self.ends * places).sum(-1) + self.rest


def render_losses(
    logits: Tensor,
    labels: Tensor,
    grid2img: Tensor,
    image_size: Tuple[float, float],
    pc_range: Sequence[float],
    empty: int,
    ignore: int,
    rays: int,
    samples: int,
) -> Tensor:
    """Return the render loss of each sample, (B,) of the type of ``logits``.

    logits (B,K,X,Y,Z), labels (B,X,Y,Z) int64 with ``empty`` for free space and ``ignore`` for unknown; grid2img
    (B,N,4,4) from metres in the grid's frame to pixels; image_size: (width, height) in pixels; pc_range: low x, y, z,
    high x, y, z in metres. ``rays`` of each camera and from above, ``samples`` steps of a camera's ray. Random numbers
    come from the global generator of the device.
    """
    shape = (logits.shape[2], logits.shape[3], logits.shape[4])
    with torch.autocast(logits.device.type, enabled=False):
        rows, flat = logits.permute(0, 2, 3, 4, 1).flatten(1, 3), labels.flatten(1)
        seen = camera_rays(grid2img, image_size, pc_range, shape, rays)
        shifts = torch.rand(seen.origins.shape[:2], device=logits.device)
        cameras = march(seen, shape, samples, shifts)
        above = march(rays_from_above(len(logits), shape, rays, logits.device), shape, shape[2])
        return sum_of_views(rows, flat, (cameras, above), empty, ignore)


def sum_of_views(rows: Tensor, labels: Tensor, views: Sequence[Steps], empty: int, ignore: int) -> Tensor:
    """Return the sum over views of the mean loss of their rays, (B,), for logits (B,V,K) and labels (B,V)."""
    losses = []
    for steps in views:
        truth = labels.gather(1, steps.voxels.flatten(1)).view(steps.voxels.shape)
        known = truth != ignore
        predicted = render_logits(rows, steps, known, empty)
        true = render_labels(truth, steps, known, empty, predicted)
        depth = true.depth(steps.places)
        error = (predicted.semantics - true.semantics).abs().sum(-1) / 2
        error = (
            error + (predicted.ends * (steps.places - depth[..., None]).abs()).sum(-1) + predicted.rest * (1 - depth)
        )
        counted = (steps.lengths > 0) & known.any(-1)
        losses.append((error * counted).sum(1) / counted.sum(1).clamp(min=1))
    return torch.stack(losses).sum(0)


def render_logits(rows: Tensor, steps: Steps, known: Tensor, empty: int) -> View:
    """Return what rays show in predicted voxels, logits (B,V,K). Steps (B,R,S) that are not ``known`` show nothing."""
    batch, voxels, classes = rows.shape
    first = torch.arange(batch, device=rows.device).view(-1, 1, 1) * voxels
    logits = rows.flatten(0, 1).index_select(0, (steps.voxels + first).flatten()).view(*steps.voxels.shape, classes)
    free = torch.arange(classes, device=rows.device) == empty
    others = logits.masked_fill(free, -torch.inf)
    occupied = others.logsumexp(-1)
    passing = F.logsigmoid(logits[..., empty] - occupied) * _step(steps, known, rows.dtype)
    ends, rest = _light(passing)
    classes_there = (others - occupied[..., None]).exp()
    semantics = torch.einsum("brs,brsk->brk", ends, classes_there) + rest[..., None] * free
    return View(semantics, ends, rest)


def render_labels(truth: Tensor, steps: Steps, known: Tensor, empty: int, like: View) -> View:
    """Return what rays show in true voxels, whose labels at the steps are ``truth`` (B,R,S); shapes as of ``like``."""
    met = known & (truth != empty) & (steps.lengths > 0)[..., None]
    ends, rest = _light(met.to(like.rest.dtype) * _OPAQUE)
    semantics = torch.zeros_like(like.semantics).scatter_add_(-1, torch.where(met, truth, empty), ends)
    semantics[..., empty] += rest
    return View(semantics, ends, rest)


def _light(passing: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the light (B,R,S) that ends in each step and that (B,R) which leaves the grid.

    ``passing`` (B,R,S) are logarithms of the share that passes each step.
    """
    passed = passing.cumsum(-1)
    reaching = F.pad(passed[..., :-1], (1, 0)).exp()
    return reaching * -torch.expm1(passing), passed[..., -1].exp()


def _step(steps: Steps, known: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the length (B,R,S) of each step in voxels, 0 where it is not known."""
    return (steps.lengths[..., None] / steps.voxels.shape[-1] * known).to(dtype)


def march(rays: Rays, shape: Tuple[int, int, int], samples: int, shifts: Optional[Tensor] = None) -> Steps:
    """Divide the part of each ray inside the grid ``shape`` into ``samples`` steps.

    ``shifts`` (B,R) from 0 to 1 are the read places within the steps; None: their middles.
    """
    near, far = torch.zeros_like(rays.origins[..., 0]), torch.full_like(rays.origins[..., 0], torch.inf)
    directions = torch.where(rays.directions.abs() < _STILL, _STILL, rays.directions)
    for axis, cells in enumerate(shape):
        inverse = 1 / directions[..., axis]
        walls = -rays.origins[..., axis] * inverse, (cells - rays.origins[..., axis]) * inverse
        near, far = torch.maximum(near, torch.minimum(*walls)), torch.minimum(far, torch.maximum(*walls))
    lengths = (far - near).clamp(min=0)
    shift = 0.5 if shifts is None else shifts[..., None]
    places = (torch.arange(samples, device=near.device) + shift) / samples
    places = places.expand(*near.shape, samples)
    along = near[..., None] + lengths[..., None] * places
    voxels = torch.zeros((), dtype=torch.int64, device=near.device)
    for axis, cells in enumerate(shape):
        at = rays.origins[..., axis, None] + directions[..., axis, None] * along
        voxels = voxels * cells + at.clamp(0, cells - 1).long()  # rounding may leave the grid by a hair
    return Steps(voxels, places, lengths)


def camera_rays(
    grid2img: Tensor, image_size: Tuple[float, float], pc_range: Sequence[float], shape: Tuple[int, int, int], rays: int
) -> Rays:
    """Draw ``rays`` pixels of each camera; return the rays through them, (B, N x rays). Arguments as above."""
    pixels = torch.rand(*grid2img.shape[:2], rays, 2, device=grid2img.device)
    low, pitch = _lattice(tuple(pc_range), shape, grid2img.device)
    origins, directions = pixel_rays(
        grid2img, torch.stack((pixels[..., 0] * image_size[0], pixels[..., 1] * image_size[1]), -1)
    )
    directions = directions / pitch
    origins = ((origins - low) / pitch)[:, :, None].expand_as(directions)
    return Rays(origins.flatten(1, 2), F.normalize(directions, dim=-1).flatten(1, 2))


def pixel_rays(grid2img: Tensor, pixels: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the centres (B,N,3) of cameras and the directions (B,N,R,3) through pixels (B,N,R,2), metres a depth of 1.

    The inverse of a 3x3 matrix is written out: its columns are products of the rows, which every device can compute.
    """
    a, b, c = grid2img[..., :3, :3].unbind(-2)
    columns = torch.stack((_cross(b, c), _cross(c, a), _cross(a, b)), -1)
    inverse = columns / (a * columns[..., 0]).sum(-1)[..., None, None]
    centres = -(inverse @ grid2img[..., :3, 3:])[..., 0]
    return centres, F.pad(pixels, (0, 1), value=1.0) @ inverse.transpose(-1, -2)


def rays_from_above(batch: int, shape: Tuple[int, int, int], rays: int, device: torch.device) -> Rays:
    """Draw ``rays`` columns of voxels; return rays down through their middles."""
    x, y = (torch.randint(cells, (batch, rays), device=device) + 0.5 for cells in shape[:2])
    origins = torch.stack((x, y, torch.full_like(x, shape[2])), -1)
    down = torch.zeros_like(origins)
    down[..., 2] = -1
    return Rays(origins, down)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(a, b, dim=-1)


@lru_cache(maxsize=4)  # cached: each copy from the host may synchronise with the device
def _lattice(pc_range: Tuple[float, ...], shape: Tuple[int, int, int], device: torch.device) -> Tuple[Tensor, Tensor]:
    """Return the low corner (3,) and the size of a voxel (3,), metres."""
    low, high = (torch.tensor(pc_range[i : i + 3], dtype=torch.float32, device=device) for i in (0, 3))
    return low, (high - low) / torch.tensor(shape, device=device)
