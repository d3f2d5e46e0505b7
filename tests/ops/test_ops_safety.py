"""Operations among processes and threads, and what they refuse."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from engine_tools import environment, processes
from ops_tools import NAMES, SHAPES, operations

from tpvformer import ops
from tpvformer.ops import backends, library

pytest.importorskip("numba", reason="numba is not installed")

TESTS = Path(__file__).parents[1] / "support"
START = f"""
import os, sys, warnings
sys.path.insert(0, {str(TESTS)!r})
os.environ["TPVFORMER_OPS"] = "numba"
import numba
import torch
from numba.core.errors import NumbaPerformanceWarning
from ops_tools import operations
"""
COMPILED = """
warnings.simplefilter("error", NumbaPerformanceWarning)  # a loop that was to be parallel is not
cases = operations()
expected = {name: case.results() for name, case in cases.items()}
"""
# the worker is forked after parallel kernels ran
FORKED = """
import numpy as np
from tpvformer.data.voxels import voxelize

points, labels = np.random.RandomState(0).uniform(-50, 50, (99, 3)), np.arange(99, dtype=np.uint8) % 17
bounds = (-51.2, -51.2, -5, 51.2, 51.2, 3)

class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        cells = voxelize.voxelize(points, labels, (50, 50, 8), bounds, 17)
        try:
            cases["ms_deform_attn"].results()
        except RuntimeError as err:
            refused = str(err)
        del os.environ["TPVFORMER_OPS"]
        return cells.labels, {name: case.results() for name, case in cases.items()}, refused

loader = torch.utils.data.DataLoader(Dataset(), None, num_workers=1, multiprocessing_context="fork")
grid, found, refused = next(iter(loader))
assert np.array_equal(grid, voxelize.voxelize(points, labels, (50, 50, 8), bounds, 17).labels)
assert "forked" in refused, refused
for name in cases:
    for ours, theirs in zip(found[name], expected[name]):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor

def work(_):
    for _ in range(20):
        for name, case in cases.items():
            for ours, theirs in zip(case.results(), expected[name]):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
assert numba.threading_layer() == "workqueue"
"""
PARALLEL = """
from torch import distributed, nn

class Model(nn.Module):
    def __init__(self, rank, size):
        super().__init__()
        torch.manual_seed(0)
        self.cases = operations()
        self.share = slice(rank * 2 // size, (rank + 1) * 2 // size)
        self.scales = nn.ParameterDict({n: nn.Parameter(torch.ones(len(c.leaves))) for n, c in self.cases.items()})

    def forward(self):
        total = 0.0
        for name, (run, leaves) in self.cases.items():
            total = total + self.one(run, leaves, self.scales[name]).square().mean()
        return total

    def one(self, run, leaves, scale):
        batch = run(*[leaf * s for leaf, s in zip(leaves, scale)])
        return batch[self.share]

def gradients(model, module):
    module().backward()
    return torch.cat([p.grad for p in model.parameters()])

whole = Model(0, 1)
truth = gradients(whole, whole)
distributed.init_process_group("gloo")
part = Model(distributed.get_rank(), distributed.get_world_size())
ours = gradients(part, nn.parallel.DistributedDataParallel(part))
torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first, so that kernels are compiled and the compiler's warnings are seen."""
    return tmp_path_factory.mktemp("numba")


def succeeds(code: str, cache: Path, **extra: str) -> None:
    values = environment(NUMBA_CACHE_DIR=str(cache), NUMBA_NUM_THREADS="2", **extra)
    run = programs.run([sys.executable, "-c", code], env=values)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_kernels_are_parallel_and_a_forked_loader_survives_them(cache: Path) -> None:
    succeeds(START + COMPILED + FORKED, cache)


def test_threads_of_python_may_call_at_once(cache: Path) -> None:
    """Numba's own pool ends the process when two parallel regions start at once."""
    succeeds(START + COMPILED + THREADS, cache, NUMBA_THREADING_LAYER="workqueue")


def test_two_processes_have_the_gradients_of_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    processes(2, START + PARALLEL)


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_that_was_named_serves_or_says_why_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = operations()[name]
    monkeypatch.setattr(ops, "reference", None)  # the oracle would be an AttributeError
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    assert len(operation.results()) == len(operation.leaves) + 1
    monkeypatch.setenv("TPVFORMER_OPS", "triton")
    with pytest.raises(RuntimeError, match="TPVFORMER_OPS=triton is for cuda, but the tensors are on cpu"):
        operation.run(*operation.leaves)
    monkeypatch.setenv("TPVFORMER_OPS", "fast")
    with pytest.raises(ValueError, match="expected one of reference, numba, triton"):
        operation.run(*operation.leaves)


def test_what_a_named_backend_cannot_do_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 18, 4, 4), torch.ones(1, 9, 4, 4), torch.ones(2, 3, 3, 3)]
    assert ops.modulated_deform_conv2d(*tensors, padding=1).shape == (1, 2, 4, 4)
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    with pytest.raises(RuntimeError, match="TPVFORMER_OPS=numba is set, but its kernels do not support torch.fl"):
        ops.modulated_deform_conv2d(*tensors, padding=1)


def test_a_backend_that_cannot_be_had_is_replaced_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> Any:
        raise RuntimeError("cannot cache function")

    expected = operations()["ms_deform_attn"].results()
    monkeypatch.setattr(backends.importlib, "import_module", broken)
    monkeypatch.setattr(backends, "_problems", {})
    for _ in range(2):
        for ours, theirs in zip(operations()["ms_deform_attn"].results(), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [r.getMessage() for r in caplog.records] == [
        "numba kernels are not available (cannot cache function); plain PyTorch is used instead"
    ]
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    with pytest.raises(RuntimeError, match="are not available: cannot cache function"):
        operations()["ms_deform_attn"].results()


def test_kernels_never_read_beyond_their_tensors() -> None:
    operation = operations()["cross_view_attention"]
    value, offsets, weights = operation.leaves
    anchors = torch.rand(7, 3, 2, 2)
    wrong = {
        "value has 36 tokens": (value[:, 1:], anchors, offsets, weights),
        "offsets has shape": (value, anchors, offsets[..., :3, :], weights),
        "anchors has shape": (value, anchors[:6], offsets, weights),
        "weights has shape": (value[:, :, :1], anchors, offsets, weights),
        "4 points a level cannot be shared among 3 anchors": (value, anchors[:, :, [0, 1, 1]], offsets, weights),
    }
    for message, (v, a, o, w) in wrong.items():
        with pytest.raises(ValueError, match=message):
            ops.cross_view_attention(v, SHAPES, a, o, w)
    x, shifts, mask, kernel, bias = operations()["modulated_deform_conv2d"].leaves
    with pytest.raises(ValueError, match="offset has shape"):
        ops.modulated_deform_conv2d(x, shifts, mask, kernel, bias, padding=0)


def test_tensors_of_any_type_and_no_tensors_at_all() -> None:
    value, offsets, weights = operations()["cross_view_attention"].leaves
    anchors = torch.rand(7, 3, 2, 2)
    expected = ops.cross_view_attention(value, SHAPES, anchors, offsets, weights)
    ours = ops.cross_view_attention(value, SHAPES, anchors.double(), offsets.double(), weights.double())
    torch.testing.assert_close(ours, expected)
    assert ops.cross_view_attention(value, SHAPES, anchors[:0], offsets[:, :0], weights[:, :0]).shape == (2, 0, 16)
    x, shifts, mask, kernel, bias = operations()["modulated_deform_conv2d"].leaves
    assert ops.modulated_deform_conv2d(x[:0], shifts[:0], mask[:0], kernel, bias, padding=1).shape == (0, 4, 6, 5)


def test_more_cameras_than_bits_are_the_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    value, anchors = torch.rand(1, 64, 4, 1, 4), torch.rand(1, 64, 1, 1, 2)
    visible = torch.ones(1, 64, 1, dtype=torch.bool)
    for cameras in (library.MAX_CAMERAS, library.MAX_CAMERAS + 1):
        given = value[:, :cameras], ((2, 2),), anchors[:, :cameras], visible[:, :cameras]
        rest = torch.zeros(1, 1, 1, 1, 2, 2), torch.ones(1, 1, 1, 1, 2)
        ours, theirs = (module.image_cross_attention(*given, *rest) for module in (ops, ops.reference))
        torch.testing.assert_close(ours, theirs)
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    with pytest.raises(RuntimeError, match="do not support"):
        ops.image_cross_attention(*given, *rest)


def test_kernel_modules_take_the_same_arguments() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from tpvformer.ops import numba_attention, numba_dcn, triton_attention, triton_dcn

    for ours, theirs in ((numba_attention, triton_attention), (numba_dcn, triton_dcn)):
        for name in ("supports", "forward", "backward"):
            names = [list(inspect.signature(getattr(module, name)).parameters) for module in (ours, theirs)]
            assert names[0] == names[1], name
