"""How the stand-in comes into mmcv: by an import before or after it, and by overlay's file. A small mmcv of the tests
(tests/fork/site) is loaded as mmcv's own loader does it; the real one: ``make test-openmmlab``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import programs
import pytest
from engine_tools import ROOT

SITE = ROOT / "tests/fork/site"
VISION = "import sys, types; sys.modules['torchvision'] = types.SimpleNamespace(__version__='0')\n"
USE = """
import torch
from mmcv.ops import MultiScaleDeformableAttnFunction, get_compiler_version, get_compiling_cuda_version, nms
from mmcv.ops import multi_scale_deform_attn as module
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch as plain
from mmcv.utils.ext_loader import check_ops_exist

value, shapes = torch.arange(24.0).view(1, 6, 2, 2), torch.tensor([[2, 3]])
places, weights = torch.full((1, 1, 2, 1, 1, 2), 0.5), torch.ones(1, 1, 2, 1, 1)
rest = places, weights
out = MultiScaleDeformableAttnFunction.apply(value, shapes, torch.tensor([0]), *rest, 64)
assert out.tolist() == plain(value, shapes, *rest).tolist() == [[[10, 11, 12, 13]]], out
assert plain.__module__.startswith("tpvformer.") and check_ops_exist()
assert get_compiler_version().startswith("none") and get_compiling_cuda_version() == "not available"
try:
    nms(value, value, 0.5)
except RuntimeError as err:
    print(err)
"""
IMPORT = "import tpvformer.compat.mmcv_ext\n"


def run(code: str, site: Path = SITE, status: int = 0) -> programs.Done:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "TPVFORMER_OPS": "reference"}
    done = programs.run([sys.executable, "-c", VISION + code], env=env)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_imported_before_mmcv() -> None:
    done = run(f"{IMPORT}assert 'mmcv' not in sys.modules\n{USE}")
    assert done.stdout.startswith("mmcv._ext.nms is not there: tpvformer stands in")


def test_imported_after_mmcv_whose_operations_were_others(tmp_path: Path) -> None:
    """A module of the environment's own keeps the names that are not served."""
    shutil.copytree(SITE, tmp_path / "site")
    theirs = (
        "def __getattr__(name):\n    if name[0] == '_': raise AttributeError\n    return lambda *a, **k: print(name)\n"
    )
    (tmp_path / "site/mmcv/_ext.py").write_text(theirs)
    for order in (f"import mmcv.ops\n{IMPORT}", IMPORT):
        assert run(order + USE, tmp_path / "site").stdout == "nms\n", order


def test_without_it_mmcv_does_not_load() -> None:
    assert "No module named 'mmcv._ext'" in run("import mmcv.ops", status=1).stderr


def test_the_file_of_overlay_needs_no_import(tmp_path: Path) -> None:
    shutil.copytree(SITE, tmp_path / "site")
    shutil.copy(ROOT / "mmcv_need/_ext.py", tmp_path / "site/mmcv")
    assert run(USE, tmp_path / "site").stdout.startswith("mmcv._ext.nms is not there")
    assert run(IMPORT + USE, tmp_path / "site").stdout.startswith("mmcv._ext.nms is not there")


def test_a_second_import_changes_nothing() -> None:
    run(f"{IMPORT}finders = list(sys.meta_path)\ntpvformer.compat.mmcv_ext.install()\nassert sys.meta_path == finders")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
