"""Planes of past frames: read where the past has them, nothing where it has not, and a model unchanged without them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import pytest
import torch
from model_cases import BEV, CROSS, HW, SIZE, build, inputs
from torch import Tensor, nn

from tpvformer.compat import load_weights
from tpvformer.compat.checkpoints import export_reference
from tpvformer.compat.errors import CheckpointError
from tpvformer.config import Config, ConfigError, DetectionConfig, GridConfig, HistoryConfig, ModelConfig, override
from tpvformer.engine.start import HEADS
from tpvformer.model import TPVFormer
from tpvformer.model.grid import PLANE_AXES, centres, own_plane_points, query_points
from tpvformer.model.history import PlaneHistory, hw_past
from tpvformer.model.history_attention import HistoryReader
from tpvformer.model.plane_attention import HWAttention

FAMILIES = {"cross_view": CROSS, "hw": HW, "bev": BEV}


def remembering(cfg: ModelConfig, frames: int = 1) -> ModelConfig:
    return dataclasses.replace(cfg, history=HistoryConfig(frames=frames))


def motion(degrees: float, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """A vehicle's movement on the ground, (4,4) float32."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1]])


def some_history(cfg: ModelConfig, batch: int, frames: int = 1, seed: int = 7) -> PlaneHistory:
    """Random planes, another movement for each sample and frame."""
    generator = torch.Generator().manual_seed(seed)
    queries = sum(cfg.grid.plane_sizes[: len(cfg.planes)])
    moves = [[motion(4.0 + 5 * b - 3 * f, 1.5 * f - b, 2.0 * b + 0.3) for f in range(frames)] for b in range(batch)]
    ages = torch.arange(1, frames + 1).expand(batch, -1) * 0.5
    planes = torch.randn(batch, frames, queries, cfg.dim, generator=generator)
    return PlaneHistory(planes, torch.stack([torch.stack(row) for row in moves]), ages)


def trained(cfg: ModelConfig) -> TPVFormer:
    """A model whose attention to the past no longer starts at zero."""
    model = build(cfg)
    generator = torch.Generator().manual_seed(1)
    if model.history is not None:
        with torch.no_grad():
            for p in model.history.parameters():
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def logits(model: TPVFormer, batch: int = 2, history: Optional[PlaneHistory] = None) -> Tensor:
    images, rigs, points = inputs(batch, 2)
    given = {} if history is None else {"history": history}
    prediction = model(images, rigs, points, **given)
    return torch.cat([prediction.voxel_logits.flatten(1), prediction.point_logits.flatten(1)], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_history_it_is_the_model_of_one_frame(family: str) -> None:
    cfg = FAMILIES[family]
    torch.manual_seed(3)
    plain = TPVFormer(cfg).eval()
    torch.manual_seed(3)
    model = TPVFormer(remembering(cfg)).eval()
    ours, theirs = model.state_dict(), plain.state_dict()
    assert list(theirs) == [name for name in ours if not name.startswith("history.")]
    assert (len(ours) > len(theirs)) == (family == "cross_view"), "an hw model reads the past with what it has"
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    with torch.no_grad():
        assert torch.equal(logits(model), logits(plain))
        images, rigs, points = inputs(2, 2)
        assert len(plain(images, rigs, points)) == 2
        after = model(images, rigs, points).history
    assert after.planes.shape == (2, 1, sum(cfg.grid.plane_sizes[: len(cfg.planes)]), cfg.dim)
    assert torch.equal(after.planes[:, 0], plain.planes(images, rigs)) and not after.planes.requires_grad
    assert torch.equal(after.to_past[:, 0], torch.eye(4).expand(2, 4, 4)) and not after.seconds.any()


def test_a_fresh_attention_changes_nothing() -> None:
    cfg = remembering(CROSS)
    model = build(cfg)
    with torch.no_grad():
        assert torch.equal(logits(model, history=some_history(cfg, 2)), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_past_that_a_sample_lacks_changes_nothing(family: str) -> None:
    """No frame, one too old, one of the future, planes and poses of nothing; beside a sample that has a past."""
    cfg = remembering(FAMILIES[family])
    model, history = trained(cfg), some_history(cfg, 2)
    with torch.no_grad():
        alone = logits(model)
        for age in (math.inf, math.nan, 2.01, -0.1):
            unread = history._replace(seconds=torch.full((2, 1), age))
            torch.testing.assert_close(logits(model, history=unread), alone, rtol=0, atol=1e-5)
        mixed = history.of_samples(torch.tensor([True, False]))
        mixed.planes[1], mixed.to_past[1] = torch.nan, torch.inf
        found = logits(model, history=mixed)
        assert (found[0] - alone[0]).abs().max() > 1e-3
        torch.testing.assert_close(found[1], alone[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2])
def test_hw_with_the_present_as_its_past_is_static(frames: int) -> None:
    """The same planes at the same place: BEVFormer's attention to the past is the attention of one frame."""
    cfg = remembering(HW, frames)
    torch.manual_seed(0)
    attention = HWAttention(cfg).eval()
    nn.init.normal_(attention.offsets.weight, std=0.2)
    nn.init.normal_(attention.logits.weight, std=0.2)
    x, position = torch.randn(2, cfg.grid.num_queries, cfg.dim), torch.randn(cfg.grid.plane_sizes[0], cfg.dim)
    cells = own_plane_points(cfg.grid, 0)
    still = torch.eye(4).expand(2, frames, 4, 4)
    history = PlaneHistory(x[:, None].expand(-1, frames, -1, -1), still, torch.full((2, frames), 0.5))
    past = hw_past(history, cfg, cells)
    found, expected = attention(x, position, cells, past), attention(x, position, cells)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    elsewhere = hw_past(history._replace(to_past=motion(0, 5.0, 3.0).expand(2, frames, 4, 4)), cfg, cells)
    assert (attention(x, position, cells, elsewhere) - expected).abs().max() > 0.01


# ---- exact places: a known field on the planes, an attention that returns what it reads

Field = Callable[[int, Tensor, Tensor], Tensor]  # plane, normalised column and row (...) -> (..., C)


def linear_field(plane: int, col: Tensor, row: Tensor) -> Tensor:
    a, b, c = torch.linspace(-1, 1, 16), torch.linspace(2, -1, 16), torch.linspace(0, 1, 16)
    return col[..., None] * a * (plane + 1) + row[..., None] * b + c + plane


def smooth_field(plane: int, col: Tensor, row: Tensor) -> Tensor:
    phase = torch.linspace(0, 3, 16) + plane
    return torch.sin(3 * col[..., None] + phase) * torch.cos(2 * row[..., None] - phase)


def field_planes(grid: GridConfig, field: Field) -> Tensor:
    """The planes (Q,C) that hold a field at the middles of their cells."""
    cells, parts = (grid.w, grid.h, grid.z), []
    for plane, (row, col) in enumerate(PLANE_AXES):
        rows, cols = torch.meshgrid(centres(cells[row]).float(), centres(cells[col]).float(), indexing="ij")
        parts.append(field(plane, cols, rows).flatten(0, 1))
    return torch.cat(parts)


def plain_reader(cfg: ModelConfig) -> HistoryReader:
    """An attention that returns the mean of what its anchors meet on the three planes."""
    reader = HistoryReader(cfg).eval()
    (attention,) = reader.layers
    with torch.no_grad():
        for plane in range(3):
            attention.offsets[plane].bias.zero_()
            attention.value[plane].weight.copy_(torch.eye(cfg.dim))
            attention.output[plane].weight.copy_(torch.eye(cfg.dim))
    return reader


def read_past(reader: HistoryReader, history: PlaneHistory) -> Tensor:
    cfg = reader.cfg
    x = torch.randn(len(history.planes), cfg.grid.num_queries, cfg.dim)
    past = reader.look(history)[0]
    assert past is not None
    return past.attention.read(x, torch.zeros(cfg.grid.num_queries, cfg.dim), past.frames)


def expected_field(grid: GridConfig, field: Field, to_past: Tensor, anchors: int) -> Tuple[Tensor, Tensor]:
    """What each query should read (Q,C), and which queries have no anchor in the outer half of a border cell (Q,)."""
    points = query_points(grid, anchors)
    low, high = (torch.tensor(edge, dtype=torch.float64) for edge in (grid.pc_range[:3], grid.pc_range[3:]))
    metres = low + points * (high - low)
    moved = metres @ to_past[:3, :3].double().T + to_past[:3, 3].double()
    at = (moved - low) / (high - low)
    inside = ((at >= 0) & (at <= 1)).all(-1)
    half = 0.5 / torch.tensor([grid.w, grid.h, grid.z]) - 1e-5
    whole = ((at >= half) & (at <= 1 - half)).all(-1)
    at = at.float()
    total = sum(field(plane, at[..., col], at[..., row]) for plane, (row, col) in enumerate(PLANE_AXES))
    return (total * inside[..., None]).sum(1) / (3 * anchors), (whole | ~inside).all(-1)


@pytest.mark.parametrize("backend", ["reference", ""])
@pytest.mark.parametrize("degrees", [0.0, 2.0, 10.0, 30.0])
def test_a_field_is_read_exactly_under_any_movement(
    degrees: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear interpolation of a linear field has no error, whatever the yaw; two samples move in different ways."""
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    cfg = remembering(dataclasses.replace(CROSS, layers=("self_cross",)))
    moves = [motion(degrees, 3.7, -4.2), motion(-degrees, -8.0, 5.0)]
    planes = field_planes(cfg.grid, linear_field)
    history = PlaneHistory(planes.expand(2, 1, -1, -1), torch.stack(moves)[:, None], torch.full((2, 1), 0.5))
    found = read_past(plain_reader(cfg), history)
    for sample, move in enumerate(moves):
        expected, sure = expected_field(cfg.grid, linear_field, move, cfg.plane_anchors)
        sizes = [int(part.sum()) for part in sure.split(cfg.grid.plane_sizes)]
        assert sizes[0] > 50 and sum(sizes) > 100, sizes
        torch.testing.assert_close(found[sample][sure], expected[sure], rtol=0, atol=1e-5)


@pytest.mark.parametrize("degrees", [3.0, 25.0])
def test_the_error_of_a_smooth_field_falls_with_the_size_of_the_cells(degrees: float) -> None:
    move, errors = motion(degrees, 1.3, 2.2), []
    for factor in (1, 2, 4):
        grid = GridConfig(w=12 * factor, h=10 * factor, z=4 * factor)
        cfg = remembering(dataclasses.replace(CROSS, layers=("self_cross",), grid=grid))
        history = PlaneHistory(field_planes(grid, smooth_field)[None, None], move[None, None], torch.tensor([[0.5]]))
        expected, sure = expected_field(grid, smooth_field, move, cfg.plane_anchors)
        gaps = (read_past(plain_reader(cfg), history)[0] - expected)[sure]
        errors.append(float(gaps.detach().square().mean().sqrt()))
    assert 0.01 > errors[0] > errors[1] and errors[2] < errors[0] / 8, errors


def test_outside_of_the_past_is_zero() -> None:
    """Beyond its edge in any axis; of a query half of whose anchors are inside, those anchors are read."""
    cfg = remembering(dataclasses.replace(CROSS, layers=("self_cross",)))
    reader, ones = plain_reader(cfg), torch.ones(1, 1, cfg.grid.num_queries, cfg.dim)
    with torch.no_grad():
        for layer in reader.layers[0].output:
            layer.bias.fill_(3.0)
    reads = {}
    for name, move in {"far": motion(0, 500.0), "above": motion(0, z=50.0), "half": motion(0, z=4.0)}.items():
        reads[name] = read_past(reader, PlaneHistory(ones, move[None, None], torch.tensor([[0.5]])))[0]
    assert not reads["far"].any() and not reads["above"].any()
    hw = reads["half"].split(cfg.grid.plane_sizes)[0] - 3.0
    torch.testing.assert_close(hw, torch.full_like(hw, 0.5), rtol=0, atol=1e-5)
    cells = own_plane_points(HW.grid, 0)
    past = hw_past(PlaneHistory(ones, motion(0, 500.0)[None, None], torch.ones(1, 1)), remembering(HW), cells)
    assert not past.read.any() and (past.places[..., 0] > 1).all()


def test_several_frames_share_what_they_saw() -> None:
    """The mean over the frames that saw a query; frames that did not, or are not known, have no part."""
    cfg = remembering(dataclasses.replace(CROSS, layers=("self_cross",)), 3)
    reader, history = plain_reader(cfg), some_history(cfg, 2, 3)
    alone = [read_past(reader, PlaneHistory(*(part[:, f : f + 1] for part in history))) for f in range(3)]
    seen = [
        reader.look(PlaneHistory(*(part[:, f : f + 1] for part in history)))[0].frames.share[:, 0] for f in range(3)
    ]
    expected = sum(alone) / sum(seen).clamp(min=1)
    torch.testing.assert_close(read_past(reader, history), expected, rtol=0, atol=1e-5)
    first = history.of_samples(torch.tensor([[True, False, False]]).expand(2, -1))
    torch.testing.assert_close(read_past(reader, first), alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "frames"), [("cross_view", 3), ("hw", 3), ("bev", 1)])
def test_samples_of_a_batch_do_not_meet(family: str, frames: int) -> None:
    cfg = remembering(FAMILIES[family], frames)
    model, history = trained(cfg), some_history(cfg, 2, frames)
    images, rigs, points = inputs(2, 2)
    with torch.no_grad():
        both = model(images, rigs, points, history=history)
        for b in range(2):
            own = slice(b, b + 1)
            one = model(images[own], rigs[own], points[own], history=PlaneHistory(*(part[own] for part in history)))
            torch.testing.assert_close(one.voxel_logits[0], both.voxel_logits[b], rtol=0, atol=1e-4)
    assert both.history.planes.shape[1] == frames


def gradients(model: TPVFormer, history: Optional[PlaneHistory]) -> List[Tensor]:
    model.zero_grad(set_to_none=True)
    out = logits(model, history=history)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_present_and_the_new_parts_learn_the_past_does_not(family: str) -> None:
    cfg = remembering(FAMILIES[family])
    model, history = trained(cfg), some_history(cfg, 2)
    history.planes.requires_grad_()
    gradients(model, history)
    assert history.planes.grad is None
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.grad.isfinite().all(), name
            assert p.grad.any() or not name.startswith(("history", "encoder.layers", "neck")), name
    gradients(model.train(), None)  # as processes that average gradients expect
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["cross_view", "hw"])
def test_recomputed_gradients_are_the_same(family: str) -> None:
    cfg = remembering(FAMILIES[family], 2)
    model, history = trained(cfg), some_history(cfg, 2, 2)
    kept = gradients(model, history)
    for mode in ("cheap", "blocks"):
        model.recompute(mode)
        for found, expected in zip(gradients(model, history), kept):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["cross_view", "hw"])
def test_operations_agree_about_the_past(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and plain PyTorch, with gradients: references differ between samples and frames."""
    cfg = remembering(FAMILIES[family], 2)
    model, history = trained(cfg), some_history(cfg, 2, 2)
    found = gradients(model, history)
    monkeypatch.setenv("TPVFORMER_OPS", "reference")
    for ours, theirs in zip(found, gradients(model, history)):
        assert float((ours - theirs).norm() / theirs.norm().clamp(min=1e-6)) < 1e-3


@pytest.mark.parametrize("family", ["cross_view", "hw"])
def test_half_precision(family: str) -> None:
    cfg = remembering(FAMILIES[family])
    model, history = trained(cfg), some_history(cfg, 2)
    with torch.no_grad():
        whole = logits(model, history=history)
        model.image_autocast = torch.bfloat16
        half = logits(model, history=history)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            everything = logits(model, history=history)
    for found in (half, everything):
        assert 1e-6 < float((found - whole).norm() / whole.norm()) < 0.1


def test_with_the_head_of_boxes() -> None:
    cfg = dataclasses.replace(remembering(CROSS), detection=DetectionConfig(channels=8, group_channels=8, blocks=0))
    model, history = trained(cfg), some_history(cfg, 2)
    images, rigs, points = inputs(2, 2)
    with torch.no_grad():
        one, other = model(images, rigs, points, history=history), model(images, rigs, points)
    assert one.history is not None and not torch.equal(one.detection.heatmaps, other.detection.heatmaps)


def test_a_drive_is_remembered_frame_by_frame() -> None:
    """Three frames of a drive: what comes out goes in again, moved; the oldest of more than two is forgotten."""
    cfg = remembering(CROSS, 2)
    model, history = trained(cfg), None
    images, rigs, points = inputs(1, 2)
    step, planes = motion(3.0, 0.2, 4.0), []
    with torch.no_grad():
        for _ in range(3):
            moved = None if history is None else history.moved(step[None], torch.tensor([0.5]))
            history = model(images, rigs, points, history=moved).history
            planes.append(history.planes[0, 0])
    assert torch.equal(history.planes[0, 1], planes[1]) and len(history.planes[0]) == 2
    torch.testing.assert_close(history.to_past[0], torch.stack([torch.eye(4), step]))
    assert history.seconds.tolist() == [[0.0, 0.5]]
    later = history.moved(step[None], torch.tensor([0.5]))
    torch.testing.assert_close(later.to_past[0, 1], step @ step)
    assert later.seconds.tolist() == [[0.5, 1.0]]
    assert not torch.equal(planes[0], planes[2])


def test_histories_that_do_not_fit() -> None:
    images, rigs, points = inputs(1, 2)
    model, history = build(remembering(CROSS)), some_history(CROSS, 1)
    with pytest.raises(ValueError, match="without model.history"):
        build(CROSS)(images, rigs, points, history=history)
    with pytest.raises(ValueError, match=r"history.planes have shape .*1 to 1 frames"):
        model(images, rigs, points, history=some_history(CROSS, 1, 2))
    with pytest.raises(ValueError, match=r"history.to_past has shape \(1, 1, 3, 4\); expected \(1, 1, 4, 4\)"):
        model(images, rigs, points, history=history._replace(to_past=history.to_past[:, :, :3]))
    with pytest.raises(ValueError, match=r"history.seconds has shape \(2, 1\)"):
        model(images, rigs, points, history=history._replace(seconds=torch.ones(2, 1)))
    with pytest.raises(ConfigError, match="model.history.frames is 4; expected 3 at most"):
        override(Config(name="x"), ["model.history.frames=4"])
    assert override(Config(name="x"), ["model.history.max_seconds=1"]).model.history == HistoryConfig(1, 1.0)


def test_weights_of_one_frame_open_in_a_model_that_remembers(tmp_path: Path) -> None:
    plain, cfg = build(CROSS), remembering(CROSS)
    torch.save(plain.state_dict(), tmp_path / "one.pth")
    model = TPVFormer(cfg).eval()
    with pytest.raises(CheckpointError, match="tensors of this model are not in the tpvformer file: history"):
        load_weights(model, tmp_path / "one.pth")
    report = load_weights(model, tmp_path / "one.pth", fresh=HEADS)
    assert report.missing and all(name.startswith("history.") for name in report.missing)
    with torch.no_grad():
        assert torch.equal(logits(model, history=some_history(cfg, 2)), logits(plain))
    hw = TPVFormer(remembering(HW)).eval()
    torch.save(build(HW).state_dict(), tmp_path / "hw.pth")
    assert not load_weights(hw, tmp_path / "hw.pth").missing
    with pytest.raises(CheckpointError, match="no attention to the past"):
        export_reference(model)
    assert export_reference(hw)


def test_only_the_attention_to_the_past_learns_where_the_rest_is_frozen() -> None:
    model = trained(remembering(CROSS))
    model.freeze(("backbone", "neck", "encoder", "aggregator"))
    model.train()
    gradients(model, some_history(CROSS, 2))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"history"}
    model.freeze(("history",))
    assert SIZE and not any(p.requires_grad for p in model.history.parameters())
