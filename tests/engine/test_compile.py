"""``train.compile``: the same training from a compiled image network, and ordinary training where there is none."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config
from tiny_nuscenes import write_tiny
from torch import Tensor

from tpvformer.config import BackboneConfig, Config, DataConfig, HistoryConfig, TrainConfig
from tpvformer.data.images import preprocess, preprocess_tensor
from tpvformer.engine import train as run
from tpvformer.engine.bench import inputs, step
from tpvformer.engine.device.compile import compile_network, wanted
from tpvformer.engine.forward import predict
from tpvformer.engine.losses import total_loss
from tpvformer.model import TPVFormer
from tpvformer.model.history import PlaneHistory

registers = pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="torch before 2.4 is never compiled")
SIZE = (64, 36)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    """PyTorch gives up a function that it has compiled eight times, for whichever model."""
    importlib.import_module("torch._dynamo").reset()


def config(**train: Any) -> Config:
    """Tiny, with a backbone whose deformable convolutions the kernels serve."""
    base = tiny_config(DataConfig(workers=0), **train)
    backbone = BackboneConfig(blocks=(1, 1, 1, 1), base_width=16, dcn_stages=(4,), frozen_stages=1, bn3_init=0.2)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, backbone=backbone))


def two_models(cfg: Config) -> Tuple[TPVFormer, TPVFormer]:
    """Twins. Fresh offsets would point exactly at pixels, where their gradients jump."""
    twins = run.build_model(cfg, CPU), run.build_model(cfg, CPU)
    for model in twins:
        inputs.roughen(model)
    return twins


def losses_and_gradients(
    model: TPVFormer, config: Config, points: int = 300, history: Optional[PlaneHistory] = None
) -> List[Tensor]:
    batch = inputs.random_batch(config, SIZE, points)
    model.zero_grad(set_to_none=True)
    loss = total_loss(predict(model, batch, config, history=history), batch, config.loss, config.data)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@registers
@pytest.mark.parametrize(
    ("precision", "recompute", "norm"),
    [("fp32", "none", "batch"), ("bf16", TrainConfig().recompute, "frozen"), ("fp32", "blocks", "frozen")],
)
def test_a_compiled_image_network_trains_alike(precision: str, recompute: str, norm: str) -> None:
    cfg = config(precision=precision, recompute=recompute)
    backbone = dataclasses.replace(cfg.model.backbone, norm=norm)
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, backbone=backbone))
    plain, model = two_models(cfg)
    said: List[str] = []
    compiled = compile_network(model, CPU, say=said.append, backend="aot_eager")
    random_state = torch.random.get_rng_state()
    for _ in range(2):
        for ours, theirs in zip(losses_and_gradients(model, cfg), losses_and_gradients(plain, cfg)):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        model.eval(), plain.eval()
        with torch.no_grad():
            batch = inputs.random_batch(cfg, (96, 36), 300)  # another size, as evaluation may have
            assert torch.equal(predict(model, batch, cfg).voxel_logits, predict(plain, batch, cfg).voxel_logits)
        model.train(), plain.train()
    assert compiled.active, said
    assert torch.equal(torch.random.get_rng_state(), random_state)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # running statistics too


@registers
@pytest.mark.parametrize(("precision", "view_attn"), [("fp32", "cross_view"), ("bf16", "cross_view"), ("fp32", "hw")])
def test_the_whole_network_is_three_graphs_without_a_break(precision: str, view_attn: str, monkeypatch: Any) -> None:
    """Preprocessing, network up to the planes, aggregator: as on CUDA, here with its preprocessing and by aot_eager."""
    monkeypatch.setattr(preprocess, "pixels_opencv", preprocess_tensor)
    cfg = config(precision=precision, recompute="none")
    dims = (6, 6, 4) if view_attn == "cross_view" else (8, 8)
    changed = dataclasses.replace(cfg.model, view_attn=view_attn, position_dims=dims, dropout=0.0)
    cfg = dataclasses.replace(cfg, model=changed)
    plain, model = two_models(cfg)
    said: List[str] = []
    random_state = torch.random.get_rng_state()
    compiled = compile_network(model, CPU, say=said.append, whole=True, backend="aot_eager")
    counters = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    for points in (300, 300, 200):
        ours, theirs = losses_and_gradients(model, cfg, points), losses_and_gradients(plain, cfg, points)
        for mine, other in zip(ours, theirs):
            # bf16 is rounded in another order where the encoder's kernels run in another grouping
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert compiled.active and not said, said
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 3, "other numbers of voxels compile nothing anew"
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert list(model.state_dict()) == list(plain.state_dict())


@registers
@pytest.mark.parametrize("view_attn", ["cross_view", "hw"])
def test_planes_of_the_past_are_part_of_the_graph(view_attn: str) -> None:
    """With a past and without one, which are two graphs; other planes and other movements are the same graph."""
    cfg = config(precision="fp32", recompute="none")
    dims = (6, 6, 4) if view_attn == "cross_view" else (8, 8)
    changed = dataclasses.replace(
        cfg.model, view_attn=view_attn, position_dims=dims, dropout=0.0, history=HistoryConfig(frames=2)
    )
    cfg = dataclasses.replace(cfg, model=changed)
    plain, model = two_models(cfg)
    if view_attn == "cross_view":
        for twin in (plain, model):
            torch.manual_seed(1)
            for p in twin.history.parameters():
                p.data.add_(torch.randn_like(p) * 0.1)
    said: List[str] = []
    compiled = compile_network(model, CPU, say=said.append, whole=True, backend="aot_eager")
    counters = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    for age in (0.5, None, 0.7, torch.inf):
        history = None
        if age is not None:
            shift = torch.eye(4).repeat(1, 2, 1, 1)
            shift[..., 0, 3] = 10 * age
            planes = torch.randn(1, 2, cfg.model.grid.num_queries, cfg.model.dim)
            history = PlaneHistory(planes, shift, torch.full((1, 2), float(age)))
        for mine, other in zip(*(losses_and_gradients(m, cfg, history=history) for m in (model, plain))):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert compiled.active and not said, said
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 6, "preprocessing, aggregator, planes with a past and without"


@registers
def test_a_part_that_does_not_compile_leaves_the_others_compiled(monkeypatch: Any) -> None:
    monkeypatch.setattr(preprocess, "pixels_opencv", preprocess_tensor)
    cfg = config(recompute="none")
    _, model = two_models(cfg)
    monkeypatch.setattr(model.aggregator, "forward", refuse)
    said: List[str] = []
    compiled = compile_network(model, CPU, say=said.append, whole=True, backend="aot_eager")
    monkeypatch.undo()
    monkeypatch.setattr(preprocess, "pixels_opencv", preprocess_tensor)
    for _ in range(2):
        losses_and_gradients(model, cfg)
    assert [part.active for part in compiled.parts] == [True, False, True] and not compiled.active
    assert len(said) == 1 and said[0].startswith("train.compile: the aggregator stays uncompiled (")


def test_the_default_compiles_on_cuda_alone() -> None:
    cuda = torch.device("cuda", 0)
    assert wanted(None, cuda) and not wanted(None, CPU)
    assert not wanted(False, cuda) and wanted(True, CPU)
    assert TrainConfig().compile is None


@registers
@pytest.mark.usefixtures("quick")
def test_many_processes_compile_within_ddp(tmp_path: Path) -> None:
    """What DDP does to a graph that is compiled inside its forward pass, in a world of one."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    try:
        cfg = config(recompute="blocks")
        plain, model = two_models(cfg)
        said: List[str] = []
        compile_network(model, CPU, say=said.append, backend="aot_eager")
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        batch = inputs.random_batch(cfg, SIZE, 300)
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            total_loss(predict(parallel, batch, cfg), batch, cfg.loss, cfg.data).backward()
        expected = losses_and_gradients(plain, cfg)[1:]
        for ours, theirs in zip((p.grad for p in model.parameters() if p.grad is not None), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not said, said
    finally:
        torch.distributed.destroy_process_group()


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no compiler here\nat all")


def fail_when_called(*_: Any, **__: Any) -> Any:
    return refuse


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stand_in", [refuse, fail_when_called])
def test_where_nothing_compiles_training_goes_on(tmp_path: Path, monkeypatch, stand_in: Any) -> None:
    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(torch.library, "custom_op", None, raising=False)
    results = []
    for compile_it in (True, False):
        cfg = tiny_config(write_tiny(tmp_path / "set", POINTS), epochs=1, compile=compile_it)
        results.append(run.train(cfg, tmp_path / str(compile_it), "cpu"))
    assert results[0]["evaluation"] == results[1]["evaluation"]
    assert results[0]["final_loss"] == results[1]["final_loss"]
    text = next((tmp_path / "True").glob("2*.log")).read_text()
    assert text.count("stays uncompiled (RuntimeError: no compiler here at all)") == 1


def test_a_torch_that_cannot_register_operations_says_so(monkeypatch) -> None:
    monkeypatch.delattr(torch.library, "custom_op", raising=False)
    said: List[str] = []
    model = run.build_model(config(), CPU)
    assert not compile_network(model, CPU, say=said.append).active
    assert len(said) == 1
    assert "2.4 or later can" in said[0]


@registers
def test_the_benchmark_of_a_step_compiles_too(monkeypatch) -> None:
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: real(function, **{**options, "backend": "aot_eager"})
    )
    cfg = config(compile=True)
    bench = step.StepBench(cfg, CPU, itertools.repeat(inputs.random_batch(cfg, SIZE, 300)))
    bench.deformable_convolutions()
    for by_part in (False, True):
        bench.step(by_part)
    assert bench.model.image_network is not None and bench.model.image_network.active
