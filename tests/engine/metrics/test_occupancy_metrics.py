"""Metrics of dense grids against values worked out by hand."""

from __future__ import annotations

import math
from typing import Optional

import pytest
import torch
from torch import Tensor

from tpvformer.engine.metrics import confusion_matrix
from tpvformer.engine.metrics.occupancy import class_iou, mean_of_present, mean_reference, sc_iou
from tpvformer.engine.metrics.rays import THRESHOLDS, Area, cast, lidar_directions, ray_counts

pytestmark = pytest.mark.usefixtures("quick")
K, EMPTY, IGNORE = 5, 4, 0
CLASSES = (1, 2, 3)
#                      x=0              x=1
TRUTH = torch.tensor([[[1, 1], [2, 4]], [[4, 4], [0, 2]]])
GUESS = torch.tensor([[[1, 2], [2, 2]], [[4, 1], [1, 4]]])
CPU = torch.device("cpu")
AREA = Area.of((80, 80, 8), (-20.0, -20.0, -2.0, 20.0, 20.0, 2.0), CPU)  # voxels of 0.5 m


def counted(guess: Tensor, truth: Tensor, ignore: int = IGNORE) -> Tensor:
    return confusion_matrix(guess, truth, K, ignore)


def test_a_grid_of_eight_by_hand() -> None:
    """Class 1: 1 right of {two true, two guessed} = 1/3. Class 2: 1 of {2, 3} = 1/4. Class 3 is absent.
    Occupied: 4 true (one ignored voxel left out), 5 guessed, 3 both = 3/6."""
    matrix = counted(GUESS, TRUTH)
    iou = class_iou(matrix, CLASSES)
    assert iou.tolist()[:2] == pytest.approx([100 / 3, 25])
    assert iou[2].isnan()
    assert mean_of_present(iou).item() == pytest.approx((100 / 3 + 25) / 2)
    assert mean_reference(iou).item() == pytest.approx((100 / 3 + 25 + 100) / 3)
    assert sc_iou(matrix, EMPTY).item() == pytest.approx(50)


def test_the_ignored_label_may_lie_outside_the_classes() -> None:
    """With 255 for the unknown voxel, class 0 is a class like any other."""
    matrix = counted(GUESS, torch.where(TRUTH == 0, 255, TRUTH), 255)
    assert torch.equal(matrix, counted(GUESS, TRUTH))
    assert class_iou(counted(GUESS, TRUTH, 255), (0,)).item() == 0


def test_perfect_empty_and_constant_predictions() -> None:
    perfect = counted(TRUTH, TRUTH)
    assert mean_of_present(class_iou(perfect, CLASSES)).item() == sc_iou(perfect, EMPTY).item() == 100
    nothing = counted(torch.full_like(TRUTH, EMPTY), TRUTH)
    assert mean_of_present(class_iou(nothing, CLASSES)).item() == sc_iou(nothing, EMPTY).item() == 0
    # always 2: right twice in seven voxels that count; all seven occupied, four of them truly
    constant = counted(torch.full_like(TRUTH, 2), TRUTH)
    assert class_iou(constant, CLASSES)[1].item() == pytest.approx(200 / 7)
    assert mean_of_present(class_iou(constant, CLASSES)).item() == pytest.approx(100 / 7)
    assert sc_iou(constant, EMPTY).item() == pytest.approx(400 / 7)


def test_nothing_to_score_is_not_a_number() -> None:
    none = torch.zeros(K, K, dtype=torch.int64)
    assert sc_iou(none, EMPTY).isnan()
    assert mean_of_present(class_iou(none, CLASSES)).isnan()
    assert mean_reference(class_iou(none, CLASSES)).item() == 100


def test_random_predictions_score_as_chance_says() -> None:
    """Uniform truth and guesses over K classes: IoU = p / (2 - p), p = 1/K; occupied: q^2 / (1 - (1-q)^2), q = 4/5.

    The deviation of an IoU u/v of n voxels is, by the delta method, sqrt(u/v (1 - u/v) / (n v)).
    """
    n = 40_000
    generator = torch.Generator().manual_seed(3)
    guess, truth = (torch.randint(0, K, (n,), generator=generator) for _ in range(2))
    matrix = counted(guess, truth, 255)
    for found, share, union in (
        *((iou, 1 / (2 * K - 1), (2 * K - 1) / K**2) for iou in class_iou(matrix, range(K)).tolist()),
        (sc_iou(matrix, EMPTY).item(), 2 / 3, 24 / 25),
    ):
        sigma = 100 * math.sqrt(share * (1 - share) / (n * union))
        assert abs(found - 100 * share) < 3 * sigma


def test_many_matrices_at_a_time_score_as_one_by_one() -> None:
    matrices = torch.randint(0, 9, (6, K, K), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_iou(matrices, CLASSES), torch.stack([class_iou(m, CLASSES) for m in matrices]))
    torch.testing.assert_close(sc_iou(matrices, EMPTY), torch.stack([sc_iou(m, EMPTY) for m in matrices]))


def wall(metres: float, label: int = 1) -> Tensor:
    """An 80x80x8 grid whose only content is a wall across x, its face ``metres`` from the origin."""
    grid = torch.full((80, 80, 8), EMPTY)
    grid[40 + round(metres * 2)] = label
    return grid


def forward_rays() -> Tensor:
    """A fan that only the wall can stop: 61 rays within 30 degrees of x, level."""
    angles = torch.linspace(-30, 30, 61).deg2rad()
    return torch.stack((angles.cos(), angles.sin(), torch.zeros(61)), 1)


def counts(guess: Tensor, truth: Tensor, ignore: int = IGNORE, directions: Optional[Tensor] = None) -> Tensor:
    directions = forward_rays() if directions is None else directions
    found = ray_counts(guess, truth, EMPTY, ignore, torch.zeros(1, 3) + 0.01, directions, AREA, K)
    assert found.shape == (1, len(THRESHOLDS) + 2, K)
    return found[0]


def test_a_wall_moved_by_one_and_a_half_metres_passes_at_two_and_four_only() -> None:
    straight = torch.tensor([[1.0, 0, 0]] * 5)
    found = counts(wall(11.5), wall(10), directions=straight)
    assert found[:, 1].tolist() == [0, 5, 5, 5, 5]
    oblique = counts(wall(11.5), wall(10))  # at 30 degrees the shift is 1.73 m along the ray
    assert oblique[:, 1].tolist() == [0, 61, 61, 61, 61]


def test_rays_by_hand() -> None:
    assert counts(wall(10), wall(10))[:, 1].tolist() == [61] * 5
    other = counts(wall(10, 2), wall(10))  # the right place, another class
    assert other[:, 1].tolist() == [0, 0, 0, 61, 0]
    assert other[:, 2].tolist() == [0, 0, 0, 0, 61]
    missed = counts(torch.full((80, 80, 8), EMPTY), wall(10))
    assert missed[:, 1].tolist() == [0, 0, 0, 61, 0]
    assert missed[4, EMPTY] == 61
    assert counts(wall(10), torch.full((80, 80, 8), EMPTY)).sum() == 0  # rays that truly leave the grid do not count
    assert counts(wall(10), wall(10, 0)).sum() == 0  # nor those that end in an ignored voxel
    assert counts(wall(10), wall(10, 0), ignore=255)[3, 0] == 61


def test_constant_and_random_answers_to_rays() -> None:
    """A wall of 640 voxels of classes 1..3, a ray for each voxel: always 2 is right wherever 2 stands; answers drawn
    at random score p / (2 - p) = 1/5, p = 1/3, with the deviation of a share of n times the union's 5/9."""
    generator = torch.Generator().manual_seed(5)
    places = torch.stack(torch.meshgrid(torch.arange(80), torch.arange(8), indexing="ij"), -1).view(-1, 2)
    ends = torch.cat((torch.full((640, 1), 10.1), (places + 0.5) * 0.5 + AREA.low[1:]), 1)
    directions = torch.nn.functional.normalize(ends - 0.01, dim=1)
    truth, guess = (wall(10) for _ in range(2))
    truth[60], guess[60] = torch.randint(1, 4, (2, 80, 8), generator=generator)
    seen = torch.bincount(truth[60].flatten(), minlength=K)
    constant = counts(wall(10, 2), truth, directions=directions)
    assert constant[3].tolist() == seen.tolist()
    assert constant[:3, 2].tolist() == [seen[2]] * 3
    assert constant[4].tolist() == [0, 0, 640, 0, 0]
    found = counts(guess, truth, directions=directions)
    iou = (found[0] / (found[3] + found[4] - found[0]))[1:4]
    assert ((iou - 0.2).abs() < 3 * (0.2 * 0.8 / (640 * 5 / 9)) ** 0.5).all()


def test_distances_are_to_the_wall_entered() -> None:
    directions = forward_rays()
    classes, far = cast(wall(10)[None], EMPTY, torch.zeros(61, 3) + 0.01, directions, AREA)
    assert (classes == 1).all()
    torch.testing.assert_close(far[0], 9.99 / directions[:, 0])
    classes, far = cast(wall(-10)[None], EMPTY, torch.zeros(61, 3) + 0.01, directions, AREA)
    assert (classes == EMPTY).all()
    torch.testing.assert_close(far[0], 19.99 / directions[:, 0])  # to the grid's own wall
    outside = torch.tensor([[-25.0, 0.3, 0.3], [-25.0, 21.0, 0.0], [25.0, 0.3, 0.3]])
    classes, far = cast(wall(10)[None], EMPTY, outside, torch.tensor([[1.0, 0, 0]] * 3), AREA)
    assert classes[0].tolist() == [1, EMPTY, EMPTY]
    assert far[0].tolist() == pytest.approx([35, 0, 0])


def test_rays_meet_what_small_steps_meet() -> None:
    """Against marching by 2 mm through a random grid."""
    generator = torch.Generator().manual_seed(1)
    grid = torch.where(torch.rand(12, 9, 7, generator=generator) < 0.1, 2, EMPTY)
    area = Area.of((12, 9, 7), (-3.0, -2.0, -1.0, 3.0, 2.5, 2.5), CPU)
    origins = torch.tensor([0.12, 0.31, 0.23]).expand(400, 3)
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=1)
    classes, far = cast(grid[None], EMPTY, origins, directions, area)
    t = torch.arange(0, 8, 0.002)
    places = origins[:, None] + directions[:, None] * t[:, None]
    cells = ((places - area.low) / ((area.high - area.low) / area.cells)).floor().long()
    inside = ((cells >= 0) & (cells < area.cells)).all(-1)
    x, y, z = cells.clamp(min=0).unbind(-1)
    met = inside & (grid[x.clamp(max=11), y.clamp(max=8), z.clamp(max=6)] != EMPTY)
    hit = met.any(1)
    assert 0.2 < hit.float().mean() < 0.9
    assert (classes[0] == torch.where(hit, 2, EMPTY)).float().mean() > 0.99  # a march can step over a corner
    both = hit & (classes[0] == 2)
    assert (far[0][both] - t[met.int().argmax(1)][both]).abs().median() < 0.003


def test_the_query_rays() -> None:
    rays = lidar_directions()
    assert rays.shape == (39 * 360, 3)
    torch.testing.assert_close(rays.norm(dim=1), torch.ones(len(rays)))
    down = rays[::360][:10]
    torch.testing.assert_close(down[:, 0] / -down[:, 2], torch.arange(1.0, 11))
    assert 0.21 <= math.asin(rays[:, 2].max()) < 0.225


def test_rings_and_origins_add_up() -> None:
    generator = torch.Generator().manual_seed(2)
    truth, guess = (torch.where(torch.rand(80, 80, 8, generator=generator) < 0.01, 1, EMPTY) for _ in range(2))
    origins = torch.tensor([[0.1, 0.1, 0.1], [5.0, -3.0, 0.4]])
    rays = lidar_directions()[::7]
    rings = ray_counts(guess, truth, EMPTY, IGNORE, origins, rays, AREA, K, edges=(5.0, 10.0))
    each = [ray_counts(guess, truth, EMPTY, IGNORE, o[None], rays, AREA, K) for o in origins]
    assert rings.shape == (3, 5, K)
    assert (rings.sum((1, 2)) > 0).all()
    assert torch.equal(rings.sum(0), (each[0] + each[1])[0])
