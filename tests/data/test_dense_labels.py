"""Published dense labels: readers, the frame of the grid, and the synthetic street's own."""

from __future__ import annotations

import dataclasses
import filecmp
import os
import pickle
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch
from dense_tools import FRAMES, SEED, SIZE, dense_config, write_street

from tpvformer.config import OCCUPANCY_GRIDS, DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.nuscenes.occupancy import OccupancyLabels
from tpvformer.data.street.write import PARAMETERS, write_dataset
from tpvformer.data.types import CAMERA_BIT, LIDAR_BIT
from tpvformer.data.voxels.voxelize import grid_index, voxelize
from tpvformer.errors import ConfigError, DataError
from tpvformer.labels import CLASS_NAMES, EMPTY
from tpvformer.predict.draw import seen_from_above
from tpvformer.untrusted.pickle import load_pickle

KINDS = ("occ3d", "surroundocc")
SHAPE = (200, 200, 16)
REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", "")) / "occ3d"


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    return write_street(tmp_path_factory.mktemp("dense"))


def dataset(street: Path, kind: str, **data: Any) -> FrameDataset:
    config = dense_config(street, kind, **data)
    return FrameDataset(config.data, config.model.grid, "val", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_lidar_points_lie_in_voxels_of_their_class(street: Path, kind: str) -> None:
    data = dataset(street, kind)
    assert len(data) == FRAMES
    for i in (0, FRAMES - 1):
        sample = data[i]
        known = (sample.point_labels > 0) & (sample.point_labels < 17)
        assert known.sum() > 15_000
        x, y, z = sample.grid_index[known].T
        there = sample.voxel_labels[x, y, z]
        assert (there != EMPTY).float().mean() > 0.9, "all but range noise and gaps between leaves"
        assert (there == sample.point_labels[known]).float().mean() > 0.85
        if kind == "occ3d":
            assert sample.voxel_mask is not None
            mask = sample.voxel_mask[x, y, z]
            assert ((mask & LIDAR_BIT) > 0).float().mean() > 0.98
            seen = (sample.voxel_mask & CAMERA_BIT) > 0
            assert 0.1 < seen.float().mean() < 0.8
            assert 0.01 < (sample.voxel_labels[seen] != EMPTY).float().mean() < 0.2
        else:
            assert sample.voxel_mask is None


def test_dense_labels_change_no_other_file(street: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_dataset(plain, 3, SIZE, SEED, 2, workers=1)
    names = sorted(str(p.relative_to(plain)) for p in plain.rglob("*") if p.is_file())
    assert len(names) > 60
    changed = {PARAMETERS, "nuscenes_infos_val.pkl"}  # the latter by the fixture
    _, differ, failed = filecmp.cmpfiles(plain, street, [n for n in names if n not in changed], shallow=False)
    assert (differ, failed) == ([], [])
    more = {p.relative_to(street).parts[0] for p in street.rglob("*") if p.is_file()} - {n.split("/")[0] for n in names}
    assert more == {"gts", "surroundocc"}
    assert write_dataset(street, 3, SIZE, SEED, 2, occupancy=True) is False
    with pytest.raises(ConfigError, match="holds another synthetic set"):
        write_dataset(street, 3, SIZE, SEED, 2)


def test_both_kinds_show_one_world(street: Path) -> None:
    """The middles of Occ3D's occupied voxels, moved from the ego to the lidar frame, lie in SurroundOcc's."""
    ego, lidar = (dataset(street, kind).load_frame(0) for kind in KINDS)
    assert ego.dense is not None and lidar.dense is not None and ego.lidar2ego is not None
    low, pitch = np.array(OCCUPANCY_GRIDS["occ3d"].pc_range[:3]), 0.4
    cells = np.argwhere(ego.dense.classes == 15)
    places = np.linalg.inv(ego.lidar2ego) @ np.c_[low + (cells + 0.5) * pitch, np.ones(len(cells))].T
    area = OCCUPANCY_GRIDS["surroundocc"]
    other = grid_index(places[:3].T, area.shape, area.pc_range, divide_by_n=True)
    found = lidar.dense.classes[tuple(other.T)]
    assert (found != EMPTY).mean() > 0.95
    assert (found == 15).mean() > 0.9


def test_the_ego_grid_sees_the_same_pixels(street: Path) -> None:
    """Points in the ego frame through the folded matrix are where lidar points were through their own."""
    data = dataset(street, "occ3d")
    frame, sample = data.load_frame(1), data[1]
    assert frame.lidar2ego is not None
    points, road = frame.points[::50].astype(np.float64), frame.labels[::50] == CLASS_NAMES.index("driveable_surface")
    there = points @ frame.lidar2ego[:3, :3].T + frame.lidar2ego[:3, 3]
    assert np.allclose(np.median(there[road, 2]), 0, atol=0.3), "the ego frame stands on the ground"

    def pixels(matrices: np.ndarray, places: np.ndarray) -> np.ndarray:
        return np.einsum("nij,pj->npi", matrices, np.c_[places, np.ones(len(places))])

    assert np.allclose(pixels(frame.lidar2img, points), pixels(sample.grid2img.numpy(), there), atol=2e-2, rtol=1e-4)
    assert sample.ray_origins is not None
    assert sample.ray_origins[1].tolist() == pytest.approx([0.943713, 0, 1.84023], abs=1e-5)
    assert (sample.ray_origins.diff(dim=0)[:, 0] > 2).all(), "the drive goes forward, along the ego's x"


def test_pictures_turn_the_ego_grid() -> None:
    grid = np.zeros((4, 6, 1), np.uint8)
    grid[3, 5] = 1  # far ahead, far left
    turned = seen_from_above(grid, "ego")
    assert turned.shape == (6, 4, 1)
    assert turned[0, 3, 0] == 1
    assert seen_from_above(grid, "lidar") is grid


def test_batches_hold_masks_and_origins(street: Path) -> None:
    data = dataset(street, "occ3d")
    batch = collate([data[3], data[4]], 255)
    assert batch.voxel_mask is not None and batch.voxel_mask.shape == (2, *SHAPE)
    assert batch.ray_origins is not None and batch.ray_origins.shape == (2, 2, 3)
    assert batch.ray_lengths == [2, 1]
    assert data.scenes[3] != data.scenes[4]
    assert not dataset(street, "surroundocc").has_masks


def test_points_beyond_the_grid_carry_no_label(street: Path) -> None:
    data = dataset(street, "occ3d")
    frame, sample = data.load_frame(0), data[0]
    high = sample.grid_index[:, 2] == 15
    above = (frame.points @ frame.lidar2ego[:3, :3].T + frame.lidar2ego[:3, 3])[:, 2] > 5.4
    assert above.any()
    assert high[torch.from_numpy(above)].all()
    assert (sample.point_labels[torch.from_numpy(above)] == 255).all()


def test_whole_cells_in_both_implementations(monkeypatch) -> None:
    from tpvformer.data.voxels import voxelize as module

    points = np.random.RandomState(0).uniform(-60, 60, (500, 3)).astype(np.float32)
    labels = np.random.RandomState(1).randint(0, 17, 500).astype(np.uint8)
    area = OCCUPANCY_GRIDS["surroundocc"]
    kernel = voxelize(points, labels, area.shape, area.pc_range, 17, divide_by_n=True)
    monkeypatch.setattr(module, "_kernel", lambda: None)
    plain = voxelize(points, labels, area.shape, area.pc_range, 17, divide_by_n=True)
    assert all(np.array_equal(a, b) for a, b in zip(kernel, plain))
    assert grid_index(np.array([[0.1, -0.1, 2.99]]), area.shape, area.pc_range, True).tolist() == [[100, 99, 15]]
    assert grid_index(np.array([[50.0, -50, 3]]), area.shape, area.pc_range, True).tolist() == [[199, 0, 15]]


def test_labels_do_not_need_lidarseg(street: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(street / "samples")
    data = dataset(street, "surroundocc", root=str(tmp_path))
    assert not data.has_labels
    assert data[0].point_labels.sum() == 0
    assert (data[0].voxel_labels != EMPTY).any()


def test_the_ego_frame_needs_its_pose(street: Path, tmp_path: Path) -> None:
    infos = load_pickle(street / "nuscenes_infos_val.pkl")
    for info in infos["infos"]:
        del info["lidar2ego_rotation"]
    (tmp_path / "infos.pkl").write_bytes(pickle.dumps(infos, protocol=4))
    with pytest.raises(DataError, match=r"no lidar2ego_translation and .*, which model\.grid\.frame"):
        dataset(street, "occ3d", val_infos=str(tmp_path / "infos.pkl"))[0]
    assert len(dataset(street, "surroundocc", val_infos=str(tmp_path / "infos.pkl"))[0].ray_origins) == 1


def labels_of(kind: str, root: Path) -> OccupancyLabels:
    return OccupancyLabels(DataConfig(occupancy=kind, occupancy_root=str(root)))


def test_surroundocc_rows_become_a_grid(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    rows = np.array([[0, 0, 0, 4], [199, 3, 15, 16], [7, 8, 9, 0]], np.float32)
    np.save(tmp_path / "samples" / "a.pcd.bin.npy", rows)
    labels = labels_of("surroundocc", tmp_path)
    dense = labels.read(labels.find("t", "a.pcd.bin"), "t")
    assert dense.classes.shape == SHAPE and dense.classes.dtype == np.uint8
    assert [dense.classes[0, 0, 0], dense.classes[199, 3, 15], dense.classes[7, 8, 9]] == [4, 16, 0]
    assert (dense.classes == EMPTY).sum() == 640_000 - 3
    assert dense.mask is None


def occ3d_arrays() -> Dict[str, np.ndarray]:
    arrays = {name: np.zeros(SHAPE, np.uint8) for name in ("semantics", "mask_lidar", "mask_camera")}
    arrays["semantics"][1, 2, 3] = 17
    arrays["mask_lidar"][1] = 1
    arrays["mask_camera"][:, 2] = 1
    return arrays


def test_occ3d_arrays_become_classes_and_bits(tmp_path: Path) -> None:
    folder = tmp_path / "scene-0001" / "token"
    folder.mkdir(parents=True)
    np.savez(folder / "labels.npz", **occ3d_arrays())  # ty: ignore[invalid-argument-type]  # its stub knows one keyword
    labels = labels_of("occ3d", tmp_path)
    dense = labels.read(labels.find("token", ""), "token")
    assert dense.mask is not None
    assert (dense.classes[1, 2, 3], dense.mask[1, 2, 3], dense.mask[1, 0, 0], dense.mask[0, 2, 0]) == (17, 3, 1, 2)


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("occ3d", {"semantics": None}, "mask_lidar is missing; expected .200, 200, 16."),
        ("occ3d", {**occ3d_arrays(), "semantics": np.zeros((2, 2, 2), np.uint8)}, "semantics has shape"),
        ("occ3d", {**occ3d_arrays(), "semantics": np.full(SHAPE, 18, np.uint8)}, "classes 18 to 18; expected 0 to 17"),
        ("occ3d", b"PK\x03\x04rubbish", "is not a occ3d label file"),
        ("surroundocc", np.zeros((3, 3)), r"has shape \(3, 3\); expected \(N, 4\)"),
        ("surroundocc", np.array([[200, 0, 0, 1]]), "outside the grid"),
        ("surroundocc", np.array([[1, 0, 0, 17]]), "classes 17 to 17; expected 0 to 16"),
        ("surroundocc", np.array([[1, 0.5, 0, 1]]), "expected its whole indices"),
        ("surroundocc", b"", "is not a surroundocc label file"),
        ("surroundocc", b"version https://git-lfs.github.com/spec/v1\n", "it is no file of NumPy's"),
        ("surroundocc", np.array([{"runs": "code"}], object), "is not a surroundocc label file"),
    ],
)
def test_damaged_files_are_named_in_one_sentence(tmp_path: Path, kind: str, content: Any, words: str) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        elif isinstance(content, dict):
            np.savez(file, **{k: np.zeros(SHAPE, np.uint8) if v is None else v for k, v in content.items()})
        else:
            np.save(file, content, allow_pickle=True)
    with pytest.raises(DataError, match=words) as error:
        labels_of(kind, tmp_path).read(path, "token7")
    assert "sample token7" in str(error.value) and "\n" not in str(error.value)
    assert "pickle" not in str(error.value)  # which NumPy advises for files that it cannot read


def test_absent_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which is no folder; unpack the occ3d labels there"):
        labels_of("occ3d", tmp_path / "no")
    for kind, words in (("occ3d", "t9/labels.npz"), ("surroundocc", "samples/scan.pcd.bin.npy")):
        with pytest.raises(DataError, match=f"sample t9: no {kind} labels; expected .*{words}"):
            labels_of(kind, tmp_path).find("t9", "scan.pcd.bin")


@pytest.mark.skipif(
    not os.environ.get("TPVFORMER_REAL_DATA") or not REAL.is_dir(),
    reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real",
)
def test_a_real_occ3d_file() -> None:
    token = "29796060110c4163b07f06eff4af0753"
    labels = labels_of("occ3d", REAL)
    dense = labels.read(labels.find(token, ""), token)
    assert dense.mask is not None
    assert np.bincount(dense.classes.ravel(), minlength=18)[[0, 4, 11, 16, 17]].tolist() == [
        169, 1749, 8433, 18699, 600908
    ]  # fmt: skip
    assert ((dense.mask & LIDAR_BIT) > 0).sum() == 56601
    assert ((dense.mask & CAMERA_BIT) > 0).sum() == 43355
    unseen = dense.mask == 0
    assert (dense.classes[unseen & (dense.classes != EMPTY)] < EMPTY).all()


def test_the_configurations_name_their_grids() -> None:
    from tpvformer.compat import load_config

    for kind in KINDS:
        config = load_config(str(Path(__file__).parents[2] / "config" / f"tpv_{kind}.py"))
        assert config.data.occupancy == kind
        assert config.model.grid.shape == SHAPE
        assert GridConfig(*dataclasses.astuple(config.model.grid)) == config.model.grid


def test_a_grid_may_be_whole_voxels_of_the_labels(street: Path) -> None:
    """128 x 128 x 12 voxels: the same labels, masks and points, and rays that begin at the same places."""
    config = dense_config(street, "occ3d")
    grid = dataclasses.replace(
        config.model.grid, w=32, h=32, z=3, scale_w=4, scale_h=4, pc_range=(-25.6, -20.8, -0.2, 25.6, 30.4, 4.6)
    )
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, grid=grid))
    whole, part = (FrameDataset(c.data, c.model.grid, "val", 0)[0] for c in (config, small))
    cells = (slice(36, 164), slice(48, 176), slice(2, 14))
    assert whole.voxel_mask is not None and part.voxel_mask is not None
    assert torch.equal(part.voxel_labels, whole.voxel_labels[cells])
    assert torch.equal(part.voxel_mask, whole.voxel_mask[cells])
    assert torch.equal(part.ray_origins, whole.ray_origins)
    low, shape = torch.tensor([36, 48, 2]), torch.tensor(part.voxel_labels.shape)
    moved = whole.grid_index - low
    inside = ((moved >= 0) & (moved < shape)).all(1) & (whole.point_labels != 255)
    near = inside & (part.point_labels != 255)
    assert near.sum() > 0.999 * inside.sum() > 5000, "all but points on a border, by rounding"
    assert torch.equal(part.grid_index[near], moved[near])
    assert (part.point_labels[~inside] == 255).float().mean() > 0.999
    for words in ({"pc_range": (-25.5, -20.8, -0.2, 25.7, 30.4, 4.6)}, {"frame": "lidar"}, {"scale_z": 2}):
        with pytest.raises(ConfigError, match="set model.grid to the labels' grid, or to whole voxels of it"):
            dataclasses.replace(
                config, model=dataclasses.replace(config.model, grid=dataclasses.replace(grid, **words))
            )
