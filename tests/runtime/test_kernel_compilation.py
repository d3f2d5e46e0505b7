"""Compilation is announced, done once, and only of what is needed; a run goes on where nothing can be kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List

import programs
import pytest
from engine_tools import POINTS, environment, tiny_config, write_config
from programs import Program, Start
from tiny_nuscenes import write_tiny

pytest.importorskip("numba", reason="numba is not installed")
PATCHES = {
    "no folder": "c._CacheLocator.ensure_cache_path = lambda self: refuse(13)",
    "full": "c.IndexDataCacheFile.save = lambda self, key, data: refuse(28)",
    "damaged": "c.IndexDataCacheFile.load = lambda self, key: pickle.loads(b'half')",
    "none": "",
}
VOXELIZE = """
import os, pickle, sys
import numpy as np
import numba.core.caching as c

def refuse(number):
    raise OSError(number, os.strerror(number))

{patch}
from tpvformer.runtime import compiling
from tpvformer.data.voxels import voxelize
assert voxelize._kernel() is not None
cells = voxelize.voxelize(np.zeros((3, 3), np.float32), np.ones(3, np.uint8), (4, 4, 2), (-2, -2, -1, 2, 2, 1), 17)
assert cells.occupied.tolist() == [[1, 1, 0]], cells.occupied
print("COMPILED", compiling.compiled())
"""


def voxelizing(start: Start, cache: Path, patch: str = "none") -> Program:
    code = VOXELIZE.format(patch=PATCHES[patch])
    env = environment(NUMBA_CACHE_DIR=str(cache))
    return start([sys.executable, "-c", code], env=env)


def ended(process: Program) -> List[str]:
    """What it printed on both, after it ended well."""
    assert process.wait(600) == 0, process.err[-3000:]
    return [process.out.strip(), process.err]


def test_what_was_compiled_is_said_once_and_found_by_the_next(start: Start, tmp_path: Path) -> None:
    out, said = ended(voxelizing(start, tmp_path))
    assert out == "COMPILED 1"
    assert said.count("compiling CPU kernels, once for all runs") == 1 and "compiled 1 CPU kernel in" in said
    assert ended(voxelizing(start, tmp_path)) == ["COMPILED 0", ""]


def test_of_two_processes_one_compiles(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="files cannot be locked here")
    both = [ended(process) for process in [voxelizing(start, tmp_path) for _ in range(2)]]
    assert sorted(out for out, _ in both) == ["COMPILED 0", "COMPILED 1"]


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ("no folder", "because there is no folder to keep them in; set NUMBA_CACHE_DIR"),
        (
            "full",
            "(No space left on device): the next run compiles them again; make room there, or set NUMBA_CACHE_DIR",
        ),
        ("damaged", "cannot be read (UnpicklingError"),
    ],
)
def test_a_cache_that_fails_is_named_and_survived(start: Start, tmp_path: Path, patch: str, sentence: str) -> None:
    out, said = ended(voxelizing(start, tmp_path, patch))
    assert out == "COMPILED 1" and said.count(sentence) == 1, said


def test_a_changed_source_beside_a_kernel_is_noticed(tmp_path: Path) -> None:
    from tpvformer.runtime.compiling import _stamp

    (tmp_path / "plain.py").write_text("x = 1")
    (tmp_path / "inlined.py").write_text("import numba")
    before = _stamp.__wrapped__(str(tmp_path))
    (tmp_path / "plain.py").write_text("x = 2")
    assert _stamp.__wrapped__(str(tmp_path)) == before
    (tmp_path / "inlined.py").write_text("import numba  # changed")
    assert _stamp.__wrapped__(str(tmp_path)) != before


def test_predict_compiles_what_a_forward_pass_needs(tmp_path: Path) -> None:
    from tpvformer import TPVFormer

    config = tiny_config(write_tiny(tmp_path / "set", POINTS))
    TPVFormer(config, device="cpu").save_pretrained(tmp_path / "weights")
    file = write_config(tmp_path / "tiny.py", config)
    words = [
        "predict",
        "--py-config",
        str(file),
        "--ckpt-path",
        str(tmp_path / "weights"),
        "--index",
        "0",
        "--device",
        "cpu",
    ]
    words += ["--out", str(tmp_path / "out")]
    env = environment(NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    env.pop("TPVFORMER_OPS", None)
    run = programs.run([sys.executable, "-m", "tpvformer", *words], env=env, seconds=600)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stderr.count("compiling CPU kernels, once for all runs") == 1 and "compiled" in run.stderr
    made = {file.name.split("-")[0] for file in (tmp_path / "cache").rglob("*.nbc")}
    assert {"numba_attention._forward", "numba_dcn._columns"} <= made
    assert not [name for name in made if "backward" in name or "street" in name]
