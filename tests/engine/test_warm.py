"""Before training: kernels compiled by one process alone, as many threads in Numba as in PyTorch; and freed
memory stays with the process on glibc."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from engine_tools import CPU, POINTS, processes, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.config import DataConfig
from tpvformer.engine.device import memory
from tpvformer.engine.device.precompile import agree_on_threads, small, warm_up
from tpvformer.engine.distributed.collectives import World

numba = pytest.importorskip("numba", reason="numba is not installed")
STEP = """
import os, sys
os.environ.pop("TPVFORMER_OPS")
from pathlib import Path
from tpvformer.compat import load_config
from tpvformer.engine import train as run
from tpvformer.engine import loop as train
from tpvformer.engine.logging.log import RunLog
from tpvformer.runtime import compiling
config = load_config(sys.argv[1])
world, device, _ = run.enter("cpu")
job = run.build(config, Path(sys.argv[2]), world, device, RunLog(None, world.is_main), 1)
before = compiling.compiled()
train.run_epochs(job)
print("COMPILED", world.rank, before, compiling.compiled() - before, flush=True)
run.distributed.stop()
"""


def test_one_of_two_processes_compiles_before_the_first_step(tmp_path: Path) -> None:
    config = tiny_config(write_tiny(tmp_path / "set", POINTS), epochs=1, precision="bf16")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    file = write_config(tmp_path / "tiny.py", config)
    outputs = processes(2, STEP, str(file), str(tmp_path), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    text = "".join(outputs)
    first, second = sorted(line.split()[1:] for line in text.splitlines() if line.startswith("COMPILED"))
    assert int(first[1]) > 0
    assert first[2] == "0", "the first step found all kernels ready"
    assert second == ["1", "0", "0"], "and so did the other process"
    assert text.count("compiling CPU kernels, once") == 1 and text.count("compiled ") == 1


def test_warming_up_leaves_random_states_alone() -> None:
    config = tiny_config(DataConfig())
    before = torch.random.get_rng_state()
    warm_up(config, [None], World(), CPU)  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_small_model_keeps_what_kernels_depend_on() -> None:
    model = tiny_config(DataConfig()).model
    shrunk = small(model)
    for name in ("dim", "image_heads", "plane_heads", "image_points", "plane_points", "num_levels", "view_attn"):
        assert getattr(shrunk, name) == getattr(model, name)


def test_both_pools_of_threads_have_one_size(monkeypatch) -> None:
    before, asked = numba.get_num_threads(), []
    try:
        for count in (1, numba.config.NUMBA_NUM_THREADS, 1000):
            monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
            monkeypatch.setattr(torch, "set_num_threads", asked.append)  # 1000 threads would slow all later tests
            agree_on_threads()
            assert numba.get_num_threads() == min(count, numba.config.NUMBA_NUM_THREADS)
            assert asked[-1] == count
    finally:
        monkeypatch.undo()
        numba.set_num_threads(before)


# ---- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_glibc_takes_both_settings() -> None:
    assert memory.keep_freed_memory("cpu")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory.__wrapped__("cpu")


def test_a_process_that_trains_on_an_accelerator_is_left_alone() -> None:
    assert not memory.keep_freed_memory("meta")
