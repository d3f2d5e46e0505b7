"""Scenes that are turned, scaled and mirrored: all that a sample holds moves alike, and nothing else changes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch
from dense_tools import dense_config, write_street

from tpvformer.config import AugmentConfig, DataConfig, GridConfig
from tpvformer.data.augment import Augmentation, moved_boxes, moved_labels, scene_matrix
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.detection.corners import corners, headings
from tpvformer.data.detection.targets import BoxMap, draw_targets
from tpvformer.data.street.write import write_dataset
from tpvformer.data.types import DenseLabels, Sample
from tpvformer.geometry import transform_points
from tpvformer.viz.check_geometry import check_geometry

GRID = GridConfig(w=20, h=16, z=4)
KITTI = GridConfig(w=8, h=8, z=4, pc_range=(0.0, -25.6, -2.0, 51.2, 25.6, 4.4))
SPACE = AugmentConfig(rotation=180.0, scale=(0.9, 1.1), flip_x=True, flip_y=True)
ALL = replace(SPACE, image_resize=(0.8, 1.2), image_flip=True)
OLD = ("photometric", "keep_rows", "keep_columns", "images")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "set"
    write_dataset(folder, 2, (64, 36), 5, 3, workers=1)
    return folder


def data_config(street: Path, augment: Any = None) -> DataConfig:
    files = {f"{part}_infos": str(street / f"nuscenes_infos_{part}.pkl") for part in ("train", "val")}
    return DataConfig(root=str(street), version="v1.0-mini", mirror=True, augment=augment, even_cells=True, **files)


def opened(
    street: Path, augment: Any = None, split: str = "train", frame: Any = "lidar", mirror: bool = True, **more: Any
) -> FrameDataset:
    cfg = replace(data_config(street, augment), mirror=mirror)
    return FrameDataset(cfg, replace(GRID, frame=frame), split, 3, boxes=True, **more)


def assert_same(ours: Any, theirs: Any, without: Any = ()) -> None:
    for field in dataclasses.fields(ours):
        a, b = (getattr(held, field.name) for held in (ours, theirs))
        if field.name in without:
            continue
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        elif field.name == "past":
            for one, other in zip(a, b):
                assert_same(one, other, without)
        elif field.name == "boxes":
            for name, value in vars(a).items():
                other = vars(b)[name]
                assert value is other is None or np.array_equal(value, other, equal_nan=True), name
        else:
            assert a == b, field.name


def test_off_is_the_same_bits(street: Path) -> None:
    plain, off = opened(street, past=2), opened(street, AugmentConfig(), past=2)
    for i in (0, 2):
        assert_same(off[i], plain[i])
        assert plain[i].crops is None and plain[i].augmented is None


def test_all_else_is_drawn_as_without(street: Path) -> None:
    plain, moved = opened(street, past=2, drop_past=0.5), opened(street, ALL, past=2, drop_past=0.5)
    changed = {"grid2img", "grid_index", "voxel_labels", "voxel_coords", "point2voxel", "boxes", "crops", "augmented"}
    for epoch in range(3):
        for data in (plain, moved):
            data.set_epoch(epoch)
        for i in (1, 2):
            assert_same(moved[i], plain[i], {*changed, "now2past", "motion"})


def test_draws_follow_seed_epoch_and_sample(street: Path) -> None:
    data, again = opened(street, ALL), opened(street, ALL)
    found = []
    for epoch in range(2):
        data.set_epoch(epoch)
        again.set_epoch(epoch)
        for i in range(3):
            found.append(data[i])
            assert_same(again[i], found[-1], {"augmented"})
            assert np.array_equal(again[i].augmented, found[-1].augmented)
    matrices, crops = [s.augmented for s in found], [s.crops for s in found]
    assert all(not np.array_equal(matrices[k], m) for i, m in enumerate(matrices) for k in range(i))
    assert all(not torch.equal(crops[k], c) for i, c in enumerate(crops) for k in range(i))


def test_one_setting_does_not_change_what_another_draws() -> None:
    rngs = [np.random.RandomState(5) for _ in range(2)]
    both, turn = (
        Augmentation(cfg, GRID, rng) for cfg, rng in zip((replace(SPACE, scale=(1.0, 1.0)), AugmentConfig(180.0)), rngs)
    )
    assert both.matrix is not None and turn.matrix is not None
    assert np.allclose(np.abs(both.matrix), np.abs(turn.matrix)) and rngs[0].randint(1000) == rngs[1].randint(1000)


def test_settings_are_drawn_in_their_ranges() -> None:
    cfg = AugmentConfig(rotation=30.0, scale=(0.8, 1.2), flip_x=True)
    made = [Augmentation(cfg, GRID, np.random.RandomState(i)).matrix for i in range(400)]
    growth = np.array([np.cbrt(abs(np.linalg.det(m[:3, :3]))) for m in made if m is not None])
    turns = np.degrees([np.arctan2(m[0, 1] * -1, m[1, 1]) for m in made if m is not None])
    mirrored = np.array([np.linalg.det(m[:3, :3]) < 0 for m in made if m is not None])
    assert 0.8 <= growth.min() < 0.82 and 1.18 < growth.max() <= 1.2
    assert -30 <= turns.min() < -28 and 28 < turns.max() <= 30
    assert 0.4 < mirrored.mean() < 0.6


def test_evaluation_is_never_augmented(street: Path) -> None:
    plain, asked = opened(street, split="val", past=1), opened(street, ALL, split="val", past=1)
    for i in (0, 1):
        assert_same(asked[i], plain[i])


@pytest.mark.parametrize("grid", [GRID, KITTI], ids=["around", "ahead"])
def test_flips_twice_are_the_identity(grid: GridConfig) -> None:
    for flips in ({"flip_x": True}, {"flip_y": True}, {"flip_x": True, "flip_y": True}):
        matrix = scene_matrix(grid, **flips)
        assert np.array_equal(matrix @ matrix, np.eye(4))
        corner = np.array([grid.pc_range[:3], grid.pc_range[3:]])
        low, high = np.sort(transform_points(corner, matrix), 0)
        assert low.tolist() == list(grid.pc_range[:3]) and high.tolist() == list(grid.pc_range[3:])
        boxes = some_boxes()
        twice = moved_boxes(moved_boxes(boxes, matrix, matrix), matrix, matrix)
        for name, value in vars(boxes).items():
            assert value is None or np.allclose(vars(twice)[name], value, atol=1e-5, equal_nan=True), name
        dense = noise(grid)
        again = moved_labels(moved_labels(dense, matrix, grid, 255), matrix, grid, 255)
        assert np.array_equal(again.classes, dense.classes) and np.array_equal(again.mask, dense.mask)
        assert not np.array_equal(moved_labels(dense, matrix, grid, 255).classes, dense.classes)


def test_a_turn_is_counter_clockwise_about_the_middle() -> None:
    assert np.allclose(transform_points(np.array([[1.0, 0, 2]]), scene_matrix(GRID, 90.0)), [[0, 1, 2]])
    assert np.allclose(transform_points(np.array([[26.6, 0, 2]]), scene_matrix(KITTI, 90.0, 2.0)), [[25.6, 2, 4]])


def some_boxes() -> Boxes:
    rng = np.random.RandomState(2)
    speed = rng.uniform(-9, 9, (30, 2)).astype(np.float32)
    speed[::7] = np.nan
    return Boxes(
        rng.uniform((-40, -40, -2), (40, 40, 2), (30, 3)).astype(np.float32),
        rng.uniform(0.5, 6, (30, 3)).astype(np.float32),
        rng.uniform(-np.pi, np.pi, 30).astype(np.float32),
        speed,
        rng.randint(0, 10, 30),
    )


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_boxes_move_as_their_corners_and_paths_do(flips: Any) -> None:
    boxes, matrix = some_boxes(), scene_matrix(GRID, 33.0, 1.1, *flips)
    moved = moved_boxes(boxes, matrix, matrix)
    for ours, before in zip(corners(moved), corners(boxes)):
        expected = transform_points(before, matrix)
        apart = np.linalg.norm(ours[:, None] - expected[None], axis=-1)
        assert apart.min(1).max() < 1e-4 and sorted(apart.argmin(1)) == list(range(8))  # mirrored: left is right
    turned = transform_points(headings(boxes).reshape(-1, 3), matrix).reshape(-1, 2, 3)
    np.testing.assert_allclose(headings(moved), turned, atol=1e-4)
    later = replace(boxes, centres=boxes.centres + np.pad(boxes.velocities, ((0, 0), (0, 1))))
    step = moved_boxes(later, matrix, matrix).centres - moved.centres
    np.testing.assert_allclose(moved.velocities, step[:, :2], atol=2e-5)
    assert np.array_equal(np.isnan(moved.velocities), np.isnan(boxes.velocities))


def test_targets_of_a_mirrored_scene_are_the_mirrored_targets() -> None:
    """Rows of the map are y and columns x; a centre's offset within its cell is mirrored, too."""
    boxes, area = some_boxes(), BoxMap.over(GRID.pc_range, (64, 80))
    plain = draw_targets(boxes, area)
    for flips, axis, sine, cosine in (((True, False), 2, 1, -1), ((False, True), 1, -1, 1)):
        matrix = scene_matrix(GRID, 0.0, 1.0, *flips)
        ours = draw_targets(moved_boxes(boxes, matrix, matrix), area)
        np.testing.assert_allclose(np.flip(ours.heatmaps, axis), plain.heatmaps, atol=1e-6)
        expected = plain.values.copy()
        expected[:, 2 - axis] = 1 - expected[:, 2 - axis]
        expected[:, 8 + 2 - axis] *= -1
        expected[:, 6] *= sine
        expected[:, 7] *= cosine
        np.testing.assert_allclose(ours.values, expected, atol=1e-4)


def noise(grid: GridConfig) -> DenseLabels:
    rng = np.random.RandomState(0)
    return DenseLabels(*(rng.randint(0, top, grid.shape).astype(np.uint8) for top in (18, 4)))


@pytest.mark.parametrize("grid", [GRID, KITTI], ids=["around", "ahead"])
def test_dense_labels_are_mirrored_by_index(grid: GridConfig) -> None:
    dense = noise(grid)
    for axis, flips in enumerate(({"flip_x": True}, {"flip_y": True})):
        ours = moved_labels(dense, scene_matrix(grid, **flips), grid, 255)
        assert np.array_equal(ours.classes, np.flip(dense.classes, axis))
        assert np.array_equal(ours.mask, np.flip(dense.mask, axis))
        assert ours.classes.dtype == ours.mask.dtype == np.uint8


def test_quarter_turns_of_dense_labels_are_exact() -> None:
    dense = noise(KITTI)
    for quarters in range(-4, 5):
        ours = moved_labels(dense, scene_matrix(KITTI, 90.0 * quarters), KITTI, 255)
        assert np.array_equal(ours.classes, np.rot90(dense.classes, quarters, (0, 1)))


def test_turns_leave_some_voxels_out() -> None:
    """How many of the columns in the middle of the grid, for docs/data.md. Each column is told by its x and its y."""
    grid = GridConfig(w=200, h=200, z=1)
    x, y = (index.astype(np.uint8) for index in np.indices(grid.shape)[:2])
    lost = []
    for turn, scale in ((5.0, 1.0), (10.0, 1.0), (22.5, 1.0), (45.0, 1.0), (0.0, 0.95)):
        ours = moved_labels(DenseLabels(x, y), scene_matrix(grid, turn, scale), grid, 255)
        assert ours.mask is not None
        known = ours.classes < 200
        counts = np.bincount(ours.classes[known].astype(int) * 200 + ours.mask[known], minlength=40_000)
        lost.append(float((counts.reshape(200, 200)[60:140, 60:140] == 0).mean()))
    print("\nleft out: " + ", ".join(f"{100 * share:.1f} %" for share in lost))
    np.testing.assert_allclose(lost, [0.007, 0.025, 0.081, 0.173, 0.098], atol=0.002)


def test_voxels_from_outside_are_ignored() -> None:
    dense = noise(KITTI)
    turned = moved_labels(dense, scene_matrix(KITTI, 45.0), KITTI, 255)
    lost = turned.classes == 255
    assert lost[0, 0].all() and lost[-1, -1].all() and not lost[3:5, 3:5].any() and 0.1 < lost.mean() < 0.25
    assert not turned.mask[lost].any() and turned.mask[~lost].any()
    shrunk = moved_labels(dense, scene_matrix(KITTI, 0.0, 0.5), KITTI, 255).classes
    assert (shrunk[:2] == 255).all() and (shrunk[2:6, 2:6, 1:3] < 18).all()
    assert moved_labels(replace(dense, mask=None), scene_matrix(KITTI, 45.0), KITTI, 255).mask is None


@pytest.mark.parametrize("frame", ["lidar", "ego"])
def test_points_boxes_and_projections_move_alike(street: Path, frame: str) -> None:
    """By the definition of A: p is seen where A p is after it, and lies in the voxel of A p."""
    plain, moved = opened(street, frame=frame), opened(street, SPACE, frame=frame)
    for i in range(3):
        before, after = plain[i], moved[i]
        matrix = after.augmented
        assert matrix is not None and torch.equal(before.images, after.images)
        points = np.random.RandomState(0).uniform(-30, 30, (50, 3))
        for old, new in zip(before.grid2img.double().numpy(), after.grid2img.double().numpy()):
            seen = np.concatenate([points, np.ones((50, 1))], 1) @ old.T
            again = np.concatenate([transform_points(points, matrix), np.ones((50, 1))], 1) @ new.T
            np.testing.assert_allclose(again, seen, rtol=1e-4, atol=2e-2)
        assert torch.equal(before.point_labels, after.point_labels)
        assert not torch.equal(before.grid_index, after.grid_index)
        scan = transform_points(moved.load_frame(i).points, plain_frame(moved, i))
        low, high = np.array(GRID.pc_range[:3]), np.array(GRID.pc_range[3:])
        cells = np.floor((transform_points(scan, matrix) - low) / (high - low) * GRID.shape)
        inside = ((cells >= 0) & (cells < GRID.shape)).all(1)
        same = (after.grid_index.numpy() == cells)[inside].all(1)
        assert inside.sum() > 1000 and same.mean() > 0.9999  # float32 at a border
        assert_boxes(before, after, matrix)


def plain_frame(data: FrameDataset, index: int) -> np.ndarray:
    lidar2ego = data.load_frame(index).lidar2ego
    return np.eye(4) if data.grid.frame == "lidar" or lidar2ego is None else lidar2ego


def assert_boxes(before: Sample, after: Sample, matrix: np.ndarray) -> None:
    assert before.boxes is not None and after.boxes is not None and len(before.boxes)
    np.testing.assert_allclose(after.boxes.centres, transform_points(before.boxes.centres, matrix), atol=1e-4)
    growth = np.cbrt(abs(np.linalg.det(matrix[:3, :3])))
    np.testing.assert_allclose(after.boxes.sizes, before.boxes.sizes * growth, rtol=1e-5)
    assert np.array_equal(after.boxes.labels, before.boxes.labels)


def test_a_point_of_the_world_is_followed_into_the_augmented_past(street: Path) -> None:
    """Through A T inverse(A) and the past's own projection it comes to the pixel where that camera saw it."""
    plain, moved = (opened(street, cfg, split="val", mirror=False, past=2) for cfg in (None, SPACE))
    points = np.random.RandomState(0).uniform(-30, 30, (40, 3))
    homogeneous = np.concatenate([points, np.ones((40, 1))], 1)
    for i in (1, 2):
        before, after = (data.sample(i, augment=data is moved) for data in (plain, moved))
        matrix, chain = after.augmented, np.eye(4)
        assert matrix is not None and any(past.valid for past in after.past)
        for old, new in zip(before.past, after.past):
            if not new.valid:
                continue
            chain = new.motion.double().numpy() @ chain
            np.testing.assert_allclose(chain, new.now2past, atol=2e-4)
            expected = matrix @ old.now2past.double().numpy() @ np.linalg.inv(matrix)
            np.testing.assert_allclose(new.now2past, expected, atol=1e-4)
            assert torch.equal(old.images, new.images)
            there = homogeneous @ (new.now2past.double().numpy() @ matrix).T
            for a, b in zip(old.grid2img.double().numpy(), new.grid2img.double().numpy()):
                seen = homogeneous @ (a @ old.now2past.double().numpy()).T
                np.testing.assert_allclose(there @ b.T, seen, rtol=1e-3, atol=5e-2)


def test_the_augmented_past_has_crops_of_its_own(street: Path) -> None:
    sample = opened(street, ALL, past=2)[2]
    drawn = [sample.crops, *(past.crops for past in sample.past)]
    assert all(isinstance(c, torch.Tensor) and c.shape == (6, 5) for c in drawn)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    dropped = opened(street, ALL, past=2, drop_past=1.0)[2]
    assert torch.equal(dropped.crops, sample.crops) and np.array_equal(dropped.augmented, sample.augmented)
    assert all(torch.equal(past.crops, sample.crops) and not past.valid for past in dropped.past)
    assert all(torch.equal(past.now2past, torch.eye(4)) for past in dropped.past)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_street(tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize("kind", ["occ3d", "surroundocc"])
def test_lidar_points_lie_in_augmented_voxels_of_their_class(dense: Path, kind: str) -> None:
    """Two ways into the grid, by points and by voxels, agree as they do without: but for voxels cut by the turn."""
    shares: Dict[bool, float] = {}
    for augment in (False, True):
        config = dense_config(dense, kind, augment=AugmentConfig(40.0, (0.95, 1.05), True, True))
        sample = FrameDataset(config.data, config.model.grid, "val", 0).sample(0, augment)
        known = (sample.point_labels > 0) & (sample.point_labels < 17)
        x, y, z = sample.grid_index[known].T
        there = sample.voxel_labels[x, y, z]
        inside = there != config.data.ignore_label
        shares[augment] = float((there == sample.point_labels[known])[inside].float().mean())
        assert inside.sum() > 10_000
        if kind == "occ3d":
            assert sample.ray_origins is not None and sample.voxel_mask is not None
            origin = FrameDataset(config.data, config.model.grid, "val", 0)[0].ray_origins
            matrix = np.eye(4) if sample.augmented is None else sample.augmented
            np.testing.assert_allclose(sample.ray_origins, transform_points(origin.numpy(), matrix), atol=1e-5)
    print(f"\n{kind}: {100 * shares[False]:.1f} % of the points without, {100 * shares[True]:.1f} % with")
    assert shares[False] > 0.8 and shares[True] > shares[False] - 0.15


def test_points_are_painted_where_the_augmented_images_show_them(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tpvformer check-geometry --augment`` paints the points as stored, by a projection that A is part of."""
    painted: Dict[str, Any] = {}

    def paint(images: Any, points: Any, labels: Any, lidar2img: Any, *names: Any) -> np.ndarray:
        painted.update(images=images, points=points, lidar2img=lidar2img)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("tpvformer.viz.check_geometry.paint_points", paint)
    for frame in ("lidar", "ego"):
        data = opened(street, ALL, frame=frame)
        check_geometry(data, data_config(street, ALL), 1, tmp_path / "painted.png", augment=True)
        sample = data.sample(1, augment=True)
        assert sample.augmented is not None
        moved = transform_points(transform_points(painted["points"], plain_frame(data, 1)), sample.augmented)
        assert np.array_equal(painted["points"], data.load_frame(1).points)
        for ours, matrix in zip(painted["lidar2img"], sample.grid2img.double().numpy()):
            seen = np.concatenate([painted["points"], np.ones((len(moved), 1))], 1) @ ours.T
            expected = np.concatenate([moved, np.ones((len(moved), 1))], 1) @ matrix.T
            np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=0.1)
