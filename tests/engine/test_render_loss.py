"""The render loss: geometry and blending by hand, gradients, masks, its place among the other losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, List, Tuple

import pytest
import torch
from loss_cases import ragged_batch
from torch import Tensor
from waits import Waits

from tpvformer.config import DataConfig, GridConfig, LossConfig
from tpvformer.data.types import CAMERA_BIT
from tpvformer.engine import losses
from tpvformer.engine.losses import render
from tpvformer.engine.losses.render import Rays, Steps
from tpvformer.model import Prediction

K, FREE, UNKNOWN = 5, 4, 255
SHAPE, RANGE = (8, 6, 4), (0.0, -3.0, -1.0, 8.0, 3.0, 3.0)  # voxels of a metre
SURE = 1e4  # a logit above the others that makes its class certain


def logits_of(labels: Tensor) -> Tensor:
    """Logits (B,K,X,Y,Z) that are certain of labels (B,X,Y,Z)."""
    return SURE * torch.nn.functional.one_hot(labels.clamp(max=K - 1), K).movedim(-1, 1).float()


def scene(seed: int = 0, unknown: float = 0.0) -> Tensor:
    """Labels (2,X,Y,Z) with a tenth of the voxels occupied."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K - 1, (2, *SHAPE), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) > 0.1] = FREE
    labels[torch.rand(labels.shape, generator=generator) < unknown] = UNKNOWN
    return labels


def cameras(batch: int = 2) -> Tensor:
    """Two cameras (B,2,4,4) of 40 x 30 pixels at the low x side and in the middle, which look along x and -x."""
    lens = torch.tensor([[20.0, 0, 20, 0], [0, 20, 15, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    found = []
    for turn, place in ((1.0, (0.5, 0.2, 1.1)), (-1.0, (4.2, -0.3, 0.7))):
        view = torch.tensor([[0, -turn, 0, 0], [0, 0, -1, 0], [turn, 0, 0, 0], [0, 0, 0, 1.0]])
        move = torch.eye(4)
        move[:3, 3] = -torch.tensor(place)
        found.append(lens @ view @ move)
    return torch.stack(found).expand(batch, -1, -1, -1)


CAMERAS = cameras()


def rendered(logits: Tensor, labels: Tensor, rays: int = 32, samples: int = 24, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return render.render_losses(logits, labels, CAMERAS[: len(labels)], (40, 30), RANGE, FREE, UNKNOWN, rays, samples)


def along_x(samples: int) -> Steps:
    """One ray of one sample through the middles of voxels (., 2, 1)."""
    rays = Rays(torch.tensor([[[0.0, 2.5, 1.5]]]), torch.tensor([[[1.0, 0, 0]]]))
    return render.march(rays, SHAPE, samples)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_wall_by_hand(parts: int) -> None:
    """The wall is voxels 5, 6, 7 of class 1, each free with probability q, whatever the number of steps in a voxel."""
    q = 0.3
    labels = torch.full((1, *SHAPE), FREE)
    logits = logits_of(labels)
    logits[:, :, 5:] = torch.tensor([0, (1 - q), 0, 0, q]).log().view(1, K, 1, 1, 1)
    steps = along_x(8 * parts)
    assert steps.lengths.item() == 8
    rows = logits.permute(0, 2, 3, 4, 1).flatten(1, 3)
    view = render.render_logits(rows, steps, torch.ones_like(steps.voxels, dtype=torch.bool), FREE)
    torch.testing.assert_close(view.semantics[0, 0], torch.tensor([0, 1 - q**3, 0, 0, q**3]))
    kept = q ** (1 / parts)  # of the light, in each of the 3 x parts steps of the wall
    share = [(1 - kept) * kept**i for i in range(3 * parts)]
    depth = sum(w * (5 + (i + 0.5) / parts) / 8 for i, w in enumerate(share)) + q**3
    assert view.depth(steps.places).item() == pytest.approx(depth, rel=1e-6)


def test_a_wall_in_front_of_cameras() -> None:
    """The true depth of each ray is that of the plane x = 6, by less than a step."""
    labels = torch.full((1, *SHAPE), FREE)
    labels[:, 6:] = 2
    matrices = cameras(1)[:, :1]
    torch.manual_seed(0)
    rays = render.camera_rays(matrices, (40, 30), RANGE, SHAPE, 300)
    shifts = torch.rand(1, 300)
    steps = render.march(rays, SHAPE, 64, shifts)
    truth = labels.flatten(1).gather(1, steps.voxels.flatten(1)).view(steps.voxels.shape)
    known = torch.ones_like(truth, dtype=torch.bool)
    like = render.View(torch.zeros(1, 300, K), torch.zeros(1, 300, 64), torch.zeros(1, 300))
    view = render.render_labels(truth, steps, known, FREE, like)
    depth = view.depth(steps.places)
    ahead = (6 - 0.5) / rays.directions[..., 0]  # metres along the ray, as the camera is at x = 0.5
    meets = ahead < steps.lengths - steps.lengths / 64
    assert 0.15 < meets.float().mean() < 0.95, "some rays leave by the sides, the floor and the roof"
    late = depth * steps.lengths - ahead
    assert (late[meets] > -1e-4).all() and (late[meets] < steps.lengths[meets] / 64 + 1e-4).all()
    assert (view.semantics[..., 2][meets] == 1).all()
    misses = ahead > steps.lengths
    assert misses.any() and (view.semantics[..., FREE][misses] == 1).all() and (depth[misses] == 1).all()


def test_rays_pass_through_the_points_of_their_pixels() -> None:
    from tpvformer.engine.bench.inputs import nuscenes_rig

    matrices = torch.from_numpy(nuscenes_rig((1600, 900))).float()[None]
    points = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(0)) * 20
    seen = torch.einsum("nij,npj->npi", matrices[0], torch.nn.functional.pad(points, (0, 1), value=1.0))
    depth = seen[..., 2:3]
    centres, directions = render.pixel_rays(matrices, (seen[..., :2] / depth)[None])
    found = centres[0, :, None] + directions[0] * depth
    assert (depth.abs() > 1).float().mean() > 0.9
    assert (found - points)[depth[..., 0].abs() > 1].abs().max() < 2e-3, "metres, in fp32"


def test_rays_from_above_read_each_voxel_of_a_column() -> None:
    torch.manual_seed(0)
    steps = render.march(render.rays_from_above(2, SHAPE, 7, torch.device("cpu")), SHAPE, SHAPE[2])
    assert (steps.lengths == SHAPE[2]).all()
    z = steps.voxels % SHAPE[2]
    assert (z == torch.tensor([3, 2, 1, 0])).all()
    columns = steps.voxels // SHAPE[2]
    assert (columns == columns[..., :1]).all() and len(columns[..., 0].unique()) > 5


def test_the_truth_against_itself_is_zero() -> None:
    labels = scene(unknown=0.2)
    assert rendered(logits_of(labels), labels).tolist() == [0, 0]
    assert (rendered(logits_of(scene(1)), labels) > 0.1).all()


def test_the_gradient_moves_the_first_surface_towards_the_truth() -> None:
    labels = torch.full((1, *SHAPE), FREE)
    labels[:, 5:] = 1
    logits = torch.zeros(1, K, *SHAPE)
    logits[:, FREE, :5] = 3  # fog in front of a wall
    logits.requires_grad_()
    rows = logits.permute(0, 2, 3, 4, 1).flatten(1, 3)
    steps = along_x(8)
    loss = render.sum_of_views(rows, labels.flatten(1), [steps], FREE, UNKNOWN)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    first, before = gradient[0, :, 5, 2, 1], gradient[0, :, 2, 2, 1]
    assert first[1] < 0 and first[FREE] > 0 and (first[[0, 2, 3]] > 0).all(), "of class 1, and not free"
    assert before[FREE] < 0 and (before[[0, 2, 3]] > 0).all(), "free in front of it"
    assert gradient[0, :, :, 3].abs().max() == 0, "voxels beside the ray are not read"
    values: List[float] = []
    for _ in range(30):
        loss = rendered(logits, labels, seed=len(values))
        values.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 30 * gradient).detach().requires_grad_()
    assert values[-1] < 0.4 * values[0]


def test_gradcheck() -> None:
    torch.manual_seed(3)
    labels = scene(2, unknown=0.1)[:, :4, :3, :3].contiguous()
    shape = (4, 3, 3)
    matrices, pc_range = cameras(2), (0.0, -3.0, -1.0, 8.0, 3.0, 3.0)
    rays = render.camera_rays(matrices, (40, 30), pc_range, shape, 3)
    seen = render.march(rays, shape, 5, torch.rand(rays.origins.shape[:2]))
    above = render.march(render.rays_from_above(2, shape, 3, torch.device("cpu")), shape, 3)
    rows = torch.randn(2, 36, K, dtype=torch.float64, requires_grad=True)

    def loss(values: Tensor) -> Tensor:
        return render.sum_of_views(values, labels.flatten(1), (seen, above), FREE, UNKNOWN)

    assert torch.autograd.gradcheck(loss, (rows,), fast_mode=True)


def test_a_sample_of_a_batch_counts_as_alone() -> None:
    labels, logits = scene(4, unknown=0.1), torch.randn(2, K, *SHAPE)
    torch.manual_seed(0)
    rays = render.camera_rays(cameras(), (40, 30), RANGE, SHAPE, 9)
    steps = render.march(rays, SHAPE, 12, torch.rand(2, 18))
    rows = logits.permute(0, 2, 3, 4, 1).flatten(1, 3)
    both = render.sum_of_views(rows, labels.flatten(1), [steps], FREE, UNKNOWN)
    for i in range(2):
        one = Steps(*(part[i : i + 1] for part in steps))
        alone = render.sum_of_views(rows[i : i + 1], labels[i : i + 1].flatten(1), [one], FREE, UNKNOWN)
        torch.testing.assert_close(alone[0], both[i])


def test_unknown_voxels_do_not_matter() -> None:
    labels = scene(5, unknown=0.3)
    logits = torch.randn(2, K, *SHAPE)
    other = torch.where((labels == UNKNOWN)[:, None], torch.randn(2, K, *SHAPE), logits)
    assert torch.equal(rendered(other, labels), rendered(logits, labels))
    assert not torch.equal(rendered(other, scene(5)), rendered(logits, scene(5)))
    assert rendered(logits, torch.full_like(labels, UNKNOWN)).tolist() == [0, 0]


def test_what_is_read_is_bounded(monkeypatch) -> None:
    read: List[int] = []
    march = render.march

    def counted(*args: Any) -> Steps:
        steps = march(*args)
        read.append(steps.voxels.numel())
        return steps

    monkeypatch.setattr(render, "march", counted)
    rendered(torch.randn(2, K, *SHAPE), scene(), rays=10, samples=7)
    assert read == [2 * 2 * 10 * 7, 2 * 10 * SHAPE[2]], "cameras x rays x samples, rays x Z, whatever X and Y"


def test_fp32_under_autocast() -> None:
    labels, logits = scene(6), torch.randn(2, K, *SHAPE)
    plain = rendered(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = rendered(logits, labels)
    assert within.dtype == torch.float32 and torch.equal(within, plain)


def dense_case() -> Tuple[Prediction, Any, LossConfig, DataConfig, GridConfig]:
    batch = replace(ragged_batch(), grid2img=cameras()[:, :1] * 1.0)
    batch.voxel_mask = torch.full(batch.voxel_labels.shape, CAMERA_BIT, dtype=torch.uint8)
    prediction = Prediction(torch.randn(2, K, 3, 2, 2, requires_grad=True), None)
    grid = GridConfig(w=3, h=2, z=2, pc_range=(0.0, -1.0, -1.0, 3.0, 1.0, 1.0))
    return prediction, batch, LossConfig("voxel", "voxel"), DataConfig(fill_label=FREE, ignore_label=UNKNOWN), grid


def test_it_is_added_in_training_alone() -> None:
    prediction, batch, loss, data, grid = dense_case()
    torch.manual_seed(1)
    plain, drawn = losses.total_loss(prediction, batch, loss, data), torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn, "off: no random number is drawn"
    on = replace(loss, render=3.0, render_rays=8, render_samples=6)
    torch.manual_seed(1)
    more = losses.total_loss(prediction, batch, on, data, grid)
    torch.manual_seed(1)
    labels = batch.voxel_labels.long()
    alone = render.render_losses(
        prediction.voxel_logits, labels, batch.grid2img, (4, 4), grid.pc_range, FREE, UNKNOWN, 8, 6
    )
    torch.testing.assert_close(more, plain + 3 * alone.mean())
    evaluated = [losses.sample_losses(prediction, batch, cfg, data) for cfg in (loss, on)]
    assert torch.equal(*evaluated), "off in evaluation"


def test_the_visibility_mask_counts() -> None:
    prediction, batch, loss, data, grid = dense_case()
    on = replace(loss, segmentation=1.0, render=1.0, render_rays=8, render_samples=6)
    masked = replace(data, occupancy="occ3d", occupancy_mask="camera")

    def value() -> Tensor:
        torch.manual_seed(2)
        return losses.total_loss(prediction, batch, on, masked, grid)

    seen = value()
    torch.manual_seed(2)
    assert seen == losses.total_loss(prediction, batch, on, data, grid)
    batch.voxel_mask[:, 1:] = 0
    hidden = value()
    assert hidden != seen and math.isfinite(hidden.item())
    batch.voxel_mask[:] = 0
    assert value() == 0


def test_nothing_waits_for_the_device() -> None:
    logits, labels = torch.randn(2, K, *SHAPE, requires_grad=True), scene(7, unknown=0.1)
    rendered(logits, labels)  # copies the lattice once
    with Waits() as waits:
        loss = rendered(logits, labels).mean()
    assert waits.found == [] and loss.requires_grad
