"""The drop-in files and the registration inside real mmcv 1.7.2, mmdet 2.28.2 and mmsegmentation 0.30.0.

``make test-openmmlab`` makes the environment and runs this; without TPVFORMER_OPENMMLAB_PYTHON, its interpreter, all
is skipped. The environment stays stock: files are exchanged in a copy of its packages.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import fork_tools
import programs
import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("TPVFORMER_OPENMMLAB_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs TPVFORMER_OPENMMLAB_PYTHON; see tools/openmmlab_env.sh")


def start(command: List[str], site: Optional[Path], ops: str = "") -> programs.Done:
    """``command`` of the other interpreter, which finds mmcv and mmdet in ``site`` first."""
    paths = [str(path) for path in (site, ROOT) if path is not None]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env.update({"TPVFORMER_OPS": ops} if ops else {})
    return programs.run([PYTHON, *command], env=env, seconds=600)


def check(script: str, *arguments: str, site: Optional[Path] = None, ops: str = "") -> Any:
    """The result of tests/openmmlab/<script>.py; ``ops`` "reference" spares it the compilation of kernels."""
    done = start([str(ROOT / "tests/openmmlab" / f"{script}.py"), *arguments], site, ops)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def files(folder: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py*") if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the environment's mmcv and mmdet."""
    folder = tmp_path_factory.mktemp("stock")
    script = "import importlib.util as u; print(*[u.find_spec(n).origin for n in ('mmcv', 'mmdet')], sep='\\n')"
    for origin in start(["-c", script], None).stdout.split():
        package = Path(origin).parent
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", ".mim"))
    return folder


@pytest.fixture(scope="module")
def exchanged(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with our files."""
    folder = tmp_path_factory.mktemp("exchanged")
    shutil.copytree(stock, folder, dirs_exist_ok=True)
    done = overlay("apply", folder)
    assert done.returncode == 0 and "5 of 5 files exchanged" in done.stdout, done.stdout + done.stderr
    return folder


def overlay(action: str, folder: Path) -> programs.Done:
    return start(["-m", "tpvformer", "overlay", action, "--mmcv", str(folder), "--mmdet", str(folder)], None)


def test_apply_and_revert_give_the_bytes_back(stock: Path, tmp_path: Path) -> None:
    before = files(stock)
    assert overlay("check", stock).stdout.count("  stock  ") == 5, "the environment itself is no longer stock"
    shutil.copytree(stock, tmp_path / "site")
    assert overlay("apply", tmp_path / "site").returncode == 0
    changed = {name for name, content in files(tmp_path / "site").items() if before.get(name) != content}
    assert len([name for name in changed if name.endswith(".py")]) == 5
    assert overlay("check", tmp_path / "site").returncode == 0
    assert overlay("revert", tmp_path / "site").returncode == 0
    assert files(tmp_path / "site") == before


def test_before_there_is_no_deformable_convolution_and_no_distributed_forward(stock: Path, tmp_path: Path) -> None:
    """What stock files do on this torch; mmcv is installed without compiled operations."""
    assert "compiled operation modulated_deform_conv_forward" in check("training", "without", site=stock)["deformable"]
    version = start(["-c", "import torch; print(*torch.__version__.split('.')[:2])"], None).stdout.split()
    result = check("ranks", "ranks", "plain", str(tmp_path / "rank"), site=stock)
    assert all("DataContainer" in text for text in result["container"])
    if [int(part) for part in version] >= [2, 1]:
        for text in result["forward"]:
            assert text.startswith("AttributeError") and "_use_replicated_tensor_module" in text


def test_runner_trains_a_deformable_resnet(exchanged: Path) -> None:
    result = check("training", "runner", site=exchanged)
    assert result["conv"] == "ModulatedDeformConv2dPack" and result["offsets_moved"]
    assert len(result["loss"]) == len(result["grad_norm"]) == 20 and min(result["grad_norm"]) > 0
    assert sum(result["loss"][-5:]) < 0.7 * sum(result["loss"][:5]), result["loss"]


def test_deformable_convolution_is_our_operation(exchanged: Path) -> None:
    result = check("training", "deform", site=exchanged)
    assert len(result["gaps"]) == 10 and max(result["gaps"].values()) <= 1e-5, result["gaps"]
    assert result["too_small"] != "fine"


@pytest.mark.parametrize("kind", ["plain", "deformable"])
def test_two_processes_train_as_one(exchanged: Path, tmp_path: Path, kind: str) -> None:
    result = check("ranks", "ranks", kind, str(tmp_path / "rank"), site=exchanged, ops="reference")
    assert result["between_ranks"] == 0
    assert result["to_single"] < 0.02 * result["moved"], result
    assert result["norms"][0] == pytest.approx(result["norms"][1], rel=1e-3)
    assert result["loss"][0] == pytest.approx(result["loss"][1], rel=1e-3)
    for step in ("train", "val", "forward", "container"):
        assert result[step] == ["fine", "fine"], (step, result[step])


def test_hooks_do_what_they_did(stock: Path, exchanged: Path) -> None:
    before, after = check("training", "hooks", site=stock), check("training", "hooks", site=exchanged)
    assert len(before.pop("idle")) == len(after.pop("idle")) == 2
    assert before.pop("names") == after.pop("names") and len(before) == 12
    for name in before:
        assert after[name]["meta"] == before[name]["meta"]
        for mine, theirs in zip(after[name]["weights"], before[name]["weights"]):
            assert mine == pytest.approx(theirs, abs=1e-6), name
        assert after[name]["norms"] == pytest.approx(before[name]["norms"], rel=1e-5)
        assert before[name]["fused"] == 0
        if name.endswith("_Fused"):
            assert after[name]["fused"] == len(after[name]["norms"]) > 0
            assert after[name]["kept"], f"{name} dropped the flat gradients"


def test_backbones_are_the_same_networks(stock: Path, exchanged: Path) -> None:
    """Names, seeded weights, modes, what learns; outputs and gradients where stock can compute them."""
    before, after = check("backbones", "backbones", site=stock), check("backbones", "backbones", site=exchanged)
    assert list(before) == list(after) and len(after) == 19
    for name in before:
        assert list(before[name]) == list(after[name]), name
        for what, theirs in before[name].items():
            mine = after[name][what]
            if what.startswith(("map", "grad")):
                assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5 * theirs[1]), (name, what)
            else:
                assert mine == theirs, (name, what)


def test_without_tpvformer_stock_operations_are_asked(stock: Path, exchanged: Path) -> None:
    before, after = check("training", "without", site=stock), check("training", "without", site=exchanged)
    assert "compiled operation modulated_deform_conv_forward" in after["deformable"]
    assert after["plain"] == before["plain"] and not after["imported"]


def test_calls_of_other_libraries_are_the_same(stock: Path, exchanged: Path) -> None:
    """torch_npu's operation (also for mmcv's DeformConv2d), the compiled extension, the exported ONNX node."""
    before, after = check("interfaces", "interfaces", site=stock), check("interfaces", "interfaces", site=exchanged)
    assert len(before["calls"]) == len(after["calls"]) > 15
    for mine, theirs in zip(after["calls"], before["calls"]):
        assert mine == theirs
    assert before["errors"] == after["errors"] == "ValueError"


@pytest.mark.parametrize("family", ["tiny10", "tiny04"])
def test_reference_configuration_is_built_and_trained(stock: Path, tmp_path: Path, family: str) -> None:
    """With stock files: the registration needs no exchange."""
    golden = ROOT / "tests/golden_data"
    tree = golden / "config" / f"{family}.mmcv.json"
    result = check("segmentor", "segmentor", str(tree), str(tmp_path), site=stock, ops="reference")
    manifest = json.loads((golden / "manifest" / f"{family}.json").read_text())
    assert result["keys"] == list(manifest["state_dict"])
    assert result["same_config"] and result["same_weights"] and result["gap"] == 0
    assert result["backbone_lr"] == pytest.approx([0.1 * json.loads(tree.read_text())["optimizer"]["lr"]])
    assert len(result["losses"]) == 3 and result["losses"][2]["loss"] < result["losses"][0]["loss"]
    assert result["read_as"] == "reference" and result["trained_gap"] == 0 and result["loaded"]
    assert "img_shape says (90, 160)" in result["unpadded"] and "train_cfg is missing" in result["no_train_cfg"]
    assert result["unknown_key"].startswith("ConfigError") and "pretraind" in result["unknown_key"]


def test_operations_of_mmcv_without_a_compiler(stock: Path, exchanged: Path) -> None:
    """Its own functions and layers, forward and backward, against ours and ``grid_sample`` in float64."""
    for site in (stock, exchanged):
        result = check("extension", "extension", site=site)
        assert len(result["attention"]) == 4 and max(result["attention"].values()) <= 1e-5, result["attention"]
        assert len(result["convolution"]) == 12 and max(result["convolution"].values()) <= 1e-5, result["convolution"]
        assert result["other"].startswith("OpsError: mmcv._ext.nms is not there")
        assert result["exists"] and result["compiler"].startswith("none (tpvformer")


def test_a_fork_trains_with_mmdet_s_resnet(tmp_path: Path) -> None:
    """tests/fork/checkout, unedited, on the real mmcv and mmdet: DCNv2 in a ResNet, attention, auto_fp16."""
    root = fork_tools.write_tables(tmp_path / "data")
    found = []
    for name, extra in (("ours", {}), ("plain", {"FORK_PLAIN": "1"})):
        arguments = ["--work_dir", str(tmp_path / name), "--root", str(root), "--backbone", "DetResNet"]
        done = fork_tools.start(["--device", "cpu"], arguments, python=PYTHON, **extra)
        assert done.returncode == 0 and "rank 0 of 1 done on cpu" in done.stdout, done.stdout + done.stderr
        found += fork_tools.results(tmp_path / name)
    ours, plain = found
    assert any("conv_offset" in name and float(grad.abs().max()) > 0 for name, grad in ours["grads"].items())
    for name, tolerance in (("output", 1e-5), ("grads", 1e-3)):  # AdamW divides by them: weights are not as near
        assert fork_tools.largest_gap(ours[name], plain[name]) <= tolerance, name
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def test_registered_layers_are_mmcvs(exchanged: Path) -> None:
    result = check("segmentor", "layers", site=exchanged, ops="reference")
    assert result["module"] == result["dcn"][1] == "tpvformer.compat.openmmlab.layers"
    for start_gap, gap in result["attention"].values():
        assert start_gap == 0 and gap < 1e-5
    assert result["dcn"][0] == 0 and result["dcn"][2] == "mmcv.ops.modulated_deform_conv"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
