"""The model's promises: any batch, any grid, sparse and dense heads agree, geometry by sample; the reference's recorded
numbers, on every CPU backend."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import golden
import pytest
import torch
from model_cases import BEV, CROSS, HW, SIZE, build, inputs
from torch import Tensor

from tpvformer.config import GridConfig, ModelConfig
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer, aggregator
from tpvformer.model.aggregator import TPVAggregator
from tpvformer.model.dropout import Dropout
from tpvformer.model.grid import PLANE_AXES, cross_view_points, pillar_points

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("cfg", [CROSS, HW, BEV], ids=["cross_view", "hw", "bev"])
def test_a_batch_equals_its_samples(cfg: ModelConfig) -> None:
    """Two samples with different calibrations: forward and gradients as from two batches of one."""
    model = build(cfg)
    images, rigs, points = inputs(2)

    def gradients(parts: "list[slice]") -> "tuple[Tensor, Tensor, list[Tensor]]":
        model.zero_grad()
        voxels, logits = [], []
        for part in parts:
            out = model(images[part], rigs[part], points[part])
            (out.voxel_logits.square().sum() + out.point_logits.square().sum()).backward()
            voxels.append(out.voxel_logits.detach())
            logits.append(out.point_logits.detach())
        return torch.cat(voxels), torch.cat(logits), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together, apart = gradients([slice(0, 2)]), gradients([slice(0, 1), slice(1, 2)])
    torch.testing.assert_close(together[0], apart[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], apart[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][0], together[0][1], atol=1e-3)
    for a, b in zip(together[2], apart[2]):
        assert (a - b).norm() <= 1e-5 * (1 + b.norm())


@pytest.mark.parametrize("cfg", [CROSS, HW, BEV], ids=["cross_view", "hw", "bev"])
def test_sparse_and_dense_heads_agree(cfg: ModelConfig) -> None:
    model = build(cfg)
    images, rigs, points = inputs(2)
    everywhere = torch.stack(torch.meshgrid(*(torch.arange(n) for n in cfg.grid.shape), indexing="ij"), -1)
    chosen = everywhere.view(1, -1, 3).expand(2, -1, -1)
    dense = model(images, rigs, points).voxel_logits
    assert dense.shape == (2, cfg.num_classes, 18, 14, 5)
    sparse = model(images, rigs, points, voxels=chosen).voxel_logits
    torch.testing.assert_close(sparse, dense.flatten(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", [CROSS, BEV], ids=["cross_view", "bev"])
def test_dense_head_in_slabs(cfg: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or in slabs, by autograd or by the backward pass of processors: the same logits and gradients."""
    model = build(cfg)
    toward, results = torch.randn(2, cfg.num_classes, *cfg.grid.shape), []
    counted, decode = [], aggregator.decode_voxels
    monkeypatch.setattr(aggregator, "decode_voxels", lambda *parts: (counted.append(1), decode(*parts))[1])
    for by_autograd in (True, False):
        monkeypatch.setattr("torch.jit.is_tracing", lambda traced=by_autograd: traced)
        for rows in (1 << 20, 100):
            monkeypatch.setattr("tpvformer.model.aggregator.DENSE_ROWS", rows)
            monkeypatch.setattr("tpvformer.model.dense_decoder.ROWS", rows)
            model.zero_grad()
            planes = torch.randn(2, sum(cfg.grid.plane_sizes), cfg.dim, generator=torch.Generator().manual_seed(0))
            x = (planes[:, : cfg.grid.plane_sizes[0]] if cfg is BEV else planes).requires_grad_()
            logits, _ = model.aggregator(x, None, None)
            assert logits.shape == toward.shape
            (logits * toward).sum().backward()
            results.append([logits.detach(), x.grad, *(p.grad.clone() for p in model.aggregator.parameters())])
    assert len(counted) == 2
    for result in results[1:]:
        for found, expected in zip(result, results[0]):
            assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_ragged_points_and_arguments_left_alone() -> None:
    model = build(CROSS)
    images, rigs, points = inputs(2)
    before = points.clone()
    lengths = torch.tensor([9, 4])
    ragged = model(images, rigs, points, lengths).point_logits
    full = model(images, rigs, points).point_logits
    assert torch.equal(points, before)
    assert (ragged[1, :, 4:] == 0).all()
    assert torch.equal(ragged[1, :, :4], full[1, :, :4])
    assert torch.equal(ragged[0], full[0])


def test_fewer_cameras_and_no_points() -> None:
    model = build(CROSS)
    images, rigs, _ = inputs(1, cameras=2)
    out = model(images, rigs)
    assert out.point_logits is None
    assert torch.isfinite(out.voxel_logits).all()


def test_plane_upsampling_changes_the_output_grid_only() -> None:
    model = build(CROSS)
    wide = build(dataclasses.replace(CROSS, grid=dataclasses.replace(CROSS.grid, scale_w=2, scale_h=3, scale_z=2)))
    wide.load_state_dict(model.state_dict())
    images, rigs, points = inputs(1)
    scale = torch.tensor([2.0, 3.0, 2.0])
    assert wide(images, rigs).voxel_logits.shape[2:] == (36, 42, 10)
    planes = torch.randn(1, CROSS.grid.num_queries, CROSS.dim)
    maps = wide.aggregator.plane_maps(planes)
    assert [tuple(m.shape[2:]) for m in maps] == [(42, 36), (10, 42), (36, 10)]
    assert wide(images, rigs, points * scale).point_logits.shape == (1, 17, 9)


def test_image_head_reads_the_pixel_that_shows_a_voxel() -> None:
    """A map that says where each of its cells lies: a voxel's logits are the position of its centre in the image."""
    cfg = dataclasses.replace(CROSS, image_head=True)
    model, plain = build(cfg), build(CROSS)
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        "image_head.classifier.weight", "image_head.classifier.bias"
    }  # fmt: skip
    images, rigs, _ = inputs(2)
    voxels = torch.randint(0, 5, (2, 40, 3)) * torch.tensor([4, 3, 1])
    assert len(model(images, rigs, voxels=voxels)) == 2, "training alone uses it"
    model.train()
    assert len(model(images, rigs, torch.zeros(2, 0, 3))) == 2, "a dense head has too many voxels"
    out = model(images, rigs, voxels=voxels).image
    assert out.logits.shape == (2, 6, 17, 40) and out.visible.any() and not out.visible.all()
    rows, columns = SIZE[0] // 8, SIZE[1] // 8
    features = torch.zeros(2, 6, cfg.dim, rows, columns)
    features[:, :, 0] = torch.arange(columns) + 0.5
    features[:, :, 1] = torch.arange(rows)[:, None] + 0.5
    with torch.no_grad():
        model.image_head.classifier.weight.copy_(torch.eye(17, cfg.dim))
        model.image_head.classifier.bias.zero_()
    out = model.image_head(features, voxels, model.encoder.pc_range, rigs, SIZE)
    low, extent = torch.tensor(cfg.grid.pc_range[:3]), torch.tensor(cfg.grid.extent)
    metres = low + (voxels + 0.5) / torch.tensor(cfg.grid.shape) * extent
    pixels = torch.einsum("bnij,bmj->bnmi", rigs, torch.cat([metres, torch.ones(2, 40, 1)], 2))
    u, v, depth = pixels[..., 0] / pixels[..., 2], pixels[..., 1] / pixels[..., 2], pixels[..., 2]
    seen = (depth > 0) & (u > 0) & (u < SIZE[1]) & (v > 0) & (v < SIZE[0])
    assert torch.equal(out.visible, seen)
    inner = seen & (u > 4) & (u < SIZE[1] - 4) & (v > 4) & (v < SIZE[0] - 4)  # the border is half a cell of zeros
    assert inner.any()
    torch.testing.assert_close(out.logits[:, :, 0][inner], u[inner] / 8, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.logits[:, :, 1][inner], v[inner] / 8, rtol=1e-4, atol=1e-4)


def test_wrong_arguments_say_what_was_expected() -> None:
    model = build(CROSS)
    images, rigs, points = inputs(1)
    with pytest.raises(ValueError, match=r"expected \(batch, cameras, 3, height, width\)"):
        model(images[0], rigs, points)
    with pytest.raises(ValueError, match="lidar2img has shape"):
        model(images, rigs[:, :3], points)
    with pytest.raises(ValueError, match="points have shape"):
        model(images, rigs, points[..., :2])
    with pytest.raises(ConfigError, match="add up to dim"):
        dataclasses.replace(CROSS, position_dims=(6, 6, 6))


def test_geometry_has_its_axes_in_place() -> None:
    """On a grid with three different sides: the cell (row 2, column 3) of every plane."""
    grid = GridConfig(w=7, h=5, z=4)
    cells = (grid.w, grid.h, grid.z)
    start = 0
    cross = cross_view_points(grid, 3)
    for plane, (row, col) in enumerate(PLANE_AXES):
        cell = 2 * cells[col] + 3
        point = pillar_points(grid, plane, 6)[cell]
        across = 3 - row - col
        assert torch.allclose(point[:, row], torch.tensor(2.5 / cells[row]))
        assert torch.allclose(point[:, col], torch.tensor(3.5 / cells[col]))
        extent = grid.extent[across]
        assert torch.allclose(point[[0, -1], across], torch.tensor([0.5 / extent, 1 - 0.5 / extent]))
        own = cross[start + cell, plane]
        assert torch.allclose(own, torch.tensor([3.5 / cells[col], 2.5 / cells[row]]).expand(3, 2))
        start += grid.plane_sizes[plane]


def test_frozen_batch_norm_stays() -> None:
    model = TPVFormer(CROSS).train()
    before = model.backbone.layer2[0].bn1.running_mean.clone()
    images, rigs, _ = inputs(1)
    model(images, rigs)
    assert torch.equal(model.backbone.layer2[0].bn1.running_mean, before)
    learning = TPVFormer(dataclasses.replace(CROSS, backbone=dataclasses.replace(CROSS.backbone, norm="batch"))).train()
    learning(images, rigs)
    assert not torch.equal(learning.backbone.layer2[0].bn1.running_mean, before)
    assert torch.equal(learning.backbone.layer1[0].bn1.running_mean, torch.zeros(16)), "stage 1 is frozen"


def test_image_autocast_keeps_geometry_in_fp32() -> None:
    model = build(CROSS)
    images, rigs, points = inputs(1)
    exact = model(images, rigs, points)
    model.image_autocast = torch.bfloat16
    close = model(images, rigs, points)
    assert close.point_logits.dtype == torch.float32
    error = (close.point_logits - exact.point_logits).abs().max()
    assert 0 < error < 0.15 * exact.point_logits.std() + 0.05


def test_aggregator_is_the_published_formula() -> None:
    """Up-sampled planes, summed, decoded layer by layer; points at i / n of each plane, zeros outside."""
    grid = dataclasses.replace(CROSS.grid, scale_w=2, scale_h=3, scale_z=2)
    torch.manual_seed(0)
    aggregator = TPVAggregator(dataclasses.replace(CROSS, grid=grid))
    planes = torch.randn(2, grid.num_queries, CROSS.dim)
    n_x, n_y, n_z = grid.shape

    def resized(x: Tensor, shape: "tuple[int, int]", size: "tuple[int, int]") -> Tensor:
        maps = x.transpose(1, 2).unflatten(2, shape)
        return torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    sizes = ((n_y, n_x), (n_z, n_y), (n_x, n_z))
    parts = planes.split(grid.plane_sizes, 1)
    hw, zh, wz = (resized(x, shape, size) for x, shape, size in zip(parts, grid.plane_shapes, sizes))
    feature = (
        hw.permute(0, 3, 2, 1)[:, :, :, None] + zh.permute(0, 3, 2, 1)[:, None] + wz.permute(0, 2, 3, 1)[:, :, None]
    )
    expected = aggregator.classifier(aggregator.decoder(feature)).permute(0, 4, 1, 2, 3)

    points = torch.rand(2, 7, 3) * torch.tensor([n_x, n_y, n_z])
    points[:, 0] = 0  # half of its weight falls outside
    x, y, z = (points / torch.tensor([n_x, n_y, n_z]) * 2 - 1).unbind(-1)
    sampled = sum(
        torch.nn.functional.grid_sample(m, torch.stack(uv, -1)[:, None], align_corners=False)[:, :, 0]
        for m, uv in ((hw, (x, y)), (zh, (y, z)), (wz, (z, x)))
    )
    at_points = aggregator.classifier(aggregator.decoder(sampled.transpose(1, 2))).transpose(1, 2)

    voxel_logits, point_logits = aggregator(planes, points, None)
    torch.testing.assert_close(voxel_logits, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(point_logits, at_points, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["cheap", "blocks"])
@pytest.mark.parametrize("cfg", [CROSS, HW, BEV], ids=["cross_view", "hw", "bev"])
def test_recomputation_changes_no_gradient(cfg: ModelConfig, mode: str) -> None:
    """The same gradients as with everything kept, dropout included."""
    images, rigs, points = inputs(1)
    results = []
    for chosen in ("none", mode):
        model = build(dataclasses.replace(cfg, dropout=0.1)).train()
        model.recompute(chosen)
        torch.manual_seed(1)
        out = model(images, rigs, points)
        (out.voxel_logits.square().mean() + out.point_logits.square().mean()).backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, grad in results[0].items():
        assert (results[1][name] - grad).norm() <= 1e-5 * grad.norm(), name


def test_recomputation_counts_a_batch_once() -> None:
    """The running statistics of norms that learn are those of one pass."""
    cfg = dataclasses.replace(CROSS, backbone=dataclasses.replace(CROSS.backbone, norm="batch"))
    statistics = []
    for mode in ("none", "blocks"):
        model = build(cfg).train()
        model.recompute(mode)
        model(*inputs(1)).voxel_logits.mean().backward()
        statistics.append(model.backbone.layer3[0].bn2.running_mean)
    assert torch.equal(*statistics)


def test_unknown_recomputation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of none, cheap, blocks"):
        build(HW).recompute("everything")


def test_dropout_keeps_its_share_and_its_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 999)
    dropout = Dropout(0.1)
    y = dropout(x)
    assert abs(float((y == 0).float().mean()) - 0.1) < 1e-3
    assert abs(float(y.mean()) - 1) < 2e-3
    assert torch.equal(dropout.eval()(x), x)


# ---- the reference's recorded numbers


DATA = Path(__file__).parents[1] / "golden_data"
CONFIGS = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("name", ["tiny10", "tiny04"])
def test_recorded_case(name: str, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    status = golden.main([str(DATA / f"{name}_96x160"), str(DATA / "config" / f"{name}.json")])
    rows = capsys.readouterr().out
    assert status == 0, rows
    assert rows.count(" ok\n") > 100


@pytest.mark.parametrize("name", ["tiny10", "tiny04", "tpv_lidarseg_dim64", "tpv04_occupancy"])
def test_keys(name: str, capsys: pytest.CaptureFixture) -> None:
    config = DATA / "config" / f"{name}.json" if name.startswith("tiny") else CONFIGS / f"{name}.py"
    status = golden.main(["keys", str(DATA / "manifest" / f"{name}.json"), str(config)])
    assert status == 0, capsys.readouterr().out
