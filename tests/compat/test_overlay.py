"""``tpvformer overlay`` on stand-ins of mmcv and mmdet: refusals, bytes given back, interruptions."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Dict, List, Set

import programs
import pytest

from tpvformer import cli
from tpvformer.compat import overlay

ROOT = Path(__file__).parents[2]

# What other modules of mmcv and mmdet import from the four files, or reach for on their classes.
EXPORTS: Dict[str, Set[str]] = {
    "mmcv_need/distributed.py": {
        *("MMDistributedDataParallel", "MMDistributedDataParallel.to_kwargs", "MMDistributedDataParallel.scatter"),
        *("MMDistributedDataParallel.train_step", "MMDistributedDataParallel.val_step"),
        *("MMDistributedDataParallel._run_ddp_forward", "ScatterInputs", "scatter_kwargs"),
    },
    "mmcv_need/modulated_deform_conv.py": {
        *("modulated_deform_conv2d", "ModulatedDeformConv2d", "ModulatedDeformConv2dPack"),
        *("ModulatedDeformConv2dPack._version", "ModulatedDeformConv2dPack._load_from_state_dict"),
        *(f"ModulatedDeformConv2dFunction.{name}" for name in ("symbolic", "forward", "backward", "_output_size")),
        *(f"ModulatedDeformConv2dFunction.{name}" for name in ("_calculate_sort_index", "_npu_forward")),
        *("ModulatedDeformConv2dFunction._npu_backward", "ModulatedDeformConv2dPack_MLU"),
    },
    "mmcv_need/optimizer.py": {
        *("OptimizerHook", "GradientCumulativeOptimizerHook", "Fp16OptimizerHook"),
        *("GradientCumulativeFp16OptimizerHook", "GradScaler", "wrap_fp16_model", "allreduce_grads", "LossScaler"),
        *("_BatchNorm", "HOOKS", "OptimizerHook.clip_grads", "OptimizerHook.detect_anomalous_parameters"),
        *("OptimizerHook.after_train_iter", "GradientCumulativeOptimizerHook.after_train_iter"),
        *("Fp16OptimizerHook.after_train_iter", "GradientCumulativeFp16OptimizerHook.after_train_iter"),
        *("Fp16OptimizerHook.copy_grads_to_fp32", "Fp16OptimizerHook.copy_params_to_fp16"),
        *("GradientCumulativeOptimizerHook.has_batch_norm", "Fp16OptimizerHook.before_run"),
    },
    "mmdet_need/resnet.py": {
        *("ResNet", "ResNetV1d", "BasicBlock", "Bottleneck", "BasicBlock.expansion", "Bottleneck.expansion"),
        *(f"ResNet.{name}" for name in ("arch_settings", "make_res_layer", "make_stage_plugins", "norm1", "train")),
        *("ResNet._make_stem_layer", "ResNet._freeze_stages", "ResNet.forward", "Bottleneck.make_block_plugins"),
        *("Bottleneck.forward_plugin", "Bottleneck.norm3", "Bottleneck.forward", "BasicBlock.forward"),
    },
}


def bound(body: List[ast.stmt], prefix: str = "") -> Set[str]:
    """Names that statements bind, those of classes with the class's name before them."""
    names: Set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            names |= bound(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If):
            names |= bound(node.body + node.orelse, prefix)
        elif isinstance(node, ast.Assign):
            names |= {prefix + target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {prefix + (alias.asname or alias.name) for alias in node.names}
    return names


@pytest.mark.parametrize("source", sorted(EXPORTS))
def test_every_name_that_others_import_is_there(source: str) -> None:
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    assert EXPORTS[source] <= bound(tree.body), EXPORTS[source] - bound(tree.body)
    assert source in [item.source for item in overlay.DROP_INS]


@pytest.mark.parametrize("source", sorted(EXPORTS))
def test_importing_a_drop_in_needs_no_accelerator(source: str) -> None:
    """Vendors' modules and tpvformer itself are imported inside functions, if at all."""
    for node in ast.parse((ROOT / source).read_text(encoding="utf-8")).body:
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not {module.split(".")[0] for module in modules} & {"mx_driving", "torch_npu", "tpvformer"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in mmcv and mmdet; the files to exchange count as the published ones."""
    known = []
    for item in overlay.DROP_INS:
        if not item.published:
            known.append(item)
            continue
        target = tmp_path / item.package / item.target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(f"# {item.target}\n".encode())
        known.append(item._replace(published=hashlib.sha256(target.read_bytes()).hexdigest()))
    for name, version in overlay.VERSIONS.items():
        (tmp_path / name / "version.py").write_text(f"raise_if_run = 1 / 0\n__version__ = '{version}'\n")
    monkeypatch.setattr(overlay, "DROP_INS", tuple(known))
    return tmp_path


def contents(folder: Path) -> Dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def states(site: Path) -> List[str]:
    return [place.state for place in overlay.find(site / "mmcv", site / "mmdet")]


def run(action: str, site: Path) -> int:
    return cli.main(["overlay", action, "--mmcv", str(site), "--mmdet", str(site / "mmdet")])


def test_there_and_back(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(site)
    os.chmod(site / "mmcv/parallel/distributed.py", 0o640)
    assert run("check", site) == 1
    assert run("apply", site) == 0
    assert "5 of 5 files exchanged" in capsys.readouterr().out
    for item in overlay.DROP_INS:
        assert (site / item.package / item.target).read_bytes() == (ROOT / item.source).read_bytes()
    assert (site / "mmcv/parallel/distributed.py").stat().st_mode & 0o777 == 0o640
    after = contents(site)
    assert run("apply", site) == 0 and contents(site) == after, "applying twice changed something"
    assert run("check", site) == 0
    out = capsys.readouterr().out
    assert "0 of 5 files exchanged" in out and out.count("  ours  ") == 10
    assert run("revert", site) == 0 and contents(site) == before
    assert run("revert", site) == 0 and contents(site) == before
    assert "0 of 5 files given back" in capsys.readouterr().out


def test_one_package_alone(site: Path) -> None:
    assert cli.main(["overlay", "apply", "--mmdet", str(site)]) == 0
    assert states(site) == [overlay.STOCK] * 3 + [overlay.OURS, overlay.STOCK]
    assert cli.main(["overlay", "check", "--mmdet", str(site)]) == 0


def test_another_version_is_refused(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "mmcv/version.py").write_text("__version__ = '1.6.0'\n")
    before = contents(site)
    assert run("apply", site) == 2 and contents(site) == before
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "mmcv 1.6.0; expected 1.7.2" in message


def test_a_folder_that_is_something_else(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["overlay", "check", "--mmcv", str(site / "mmcv/ops")]) == 2
    assert "holds no mmcv; expected the package's folder" in capsys.readouterr().err


def test_nothing_installed_and_nothing_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overlay, "_installed", lambda name: None)
    assert cli.main(["overlay", "check"]) == 2
    assert "say where they are with --mmcv and --mmdet" in capsys.readouterr().err


def test_an_installed_package_is_found_without_importing_it(site: Path) -> None:
    script = (
        "import sys; from tpvformer.compat import overlay as o; print(o._installed('mmcv').name, 'mmcv' in sys.modules)"
    )
    (site / "mmcv/__init__.py").write_text("raise RuntimeError('imported')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    done = programs.run([sys.executable, "-c", script], env=env, check=True)
    assert done.stdout.split() == ["mmcv", "False"]


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_changes_of_others_are_kept(site: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first apply, and after it."""
    changed = site / "mmcv/runner/hooks/optimizer.py"
    if action == "revert":
        assert run("apply", site) == 0
    changed.write_bytes(changed.read_bytes() + b"# mine\n")
    before = contents(site)
    assert run("check", site) == 1 and states(site)[2] == overlay.CHANGED
    assert run(action, site) == 2 and contents(site) == before
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"{changed} was changed" in message


def test_a_missing_file_is_named(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "mmdet/models/backbones/resnet.py").unlink()
    before = contents(site)
    assert run("apply", site) == 2 and contents(site) == before
    assert "resnet.py is missing" in capsys.readouterr().err
    assert states(site)[3] == overlay.MISSING


def newer_sources(folder: Path) -> Path:
    """Our files as a later version might have them."""
    for item in overlay.DROP_INS:
        (folder / item.source).parent.mkdir(parents=True, exist_ok=True)
        (folder / item.source).write_bytes((ROOT / item.source).read_bytes() + b"# newer\n")
    return folder


def test_an_older_drop_in_is_replaced(
    site: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(site)
    assert run("apply", site) == 0
    monkeypatch.setattr(overlay, "SOURCES", newer_sources(tmp_path_factory.mktemp("newer")))
    assert set(states(site)) == {overlay.OLDER}
    assert run("apply", site) == 0 and set(states(site)) == {overlay.OURS}
    assert run("revert", site) == 0 and contents(site) == before


def test_windows_line_ends_are_still_the_published_file(site: Path) -> None:
    target = site / "mmcv/parallel/distributed.py"
    target.write_bytes(target.read_bytes().replace(b"\n", b"\r\n"))
    before = contents(site)
    assert set(states(site)) == {overlay.STOCK}
    assert run("apply", site) == 0 and run("revert", site) == 0 and contents(site) == before


def test_copied_by_hand_there_is_nothing_to_give_back(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "mmcv/parallel/distributed.py").write_bytes((ROOT / "mmcv_need/distributed.py").read_bytes())
    assert run("revert", site) == 2
    assert "without distributed.py.before-tpvformer beside it; reinstall mmcv 1.7.2" in capsys.readouterr().err


def test_a_reinstalled_package_is_stock_again(site: Path) -> None:
    """What an installer leaves lying beside its files does not stop anything."""
    before = contents(site)
    assert run("apply", site) == 0
    for name, content in before.items():
        (site / name).write_bytes(content)
    assert states(site) == [overlay.STOCK] * 4 + [overlay.OURS], "no installer removes what it did not write"
    assert run("apply", site) == 0 and run("revert", site) == 0 and contents(site) == before


@pytest.mark.parametrize("failing", range(14))
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"]
)
def test_a_failure_half_way_leaves_everything_as_it_was(
    site: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    before = contents(site)
    replace, calls = os.replace, []

    def fails(*args: Any) -> None:
        calls.append(args)
        if len(calls) == failing + 1:
            raise error
        replace(*args)

    monkeypatch.setattr(os, "replace", fails)
    assert run("apply", site) in (2, 130)
    assert contents(site) == before


@pytest.mark.parametrize("older", [False, True], ids=["from stock", "from an older file"])
@pytest.mark.parametrize("survived", range(14))
def test_killed_half_way_it_can_be_finished_or_undone(
    site: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, survived: int, older: bool
) -> None:
    """A process that is killed cleans up nothing: what it has written stays."""
    before = contents(site)
    if older:
        assert run("apply", site) == 0
        monkeypatch.setattr(overlay, "SOURCES", newer_sources(tmp_path_factory.mktemp("newer")))
    put, calls = overlay._put, []

    def killed(path: Path, content: Any) -> None:
        calls.append(path)
        if len(calls) <= survived:
            put(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(overlay, "_put", killed)
        run("apply", site)
    assert overlay.CHANGED not in states(site)
    half = contents(site)
    assert run("apply", site) == 0 and set(states(site)) == {overlay.OURS}
    for item in overlay.DROP_INS:
        record = site / item.package / f"{item.target}.by-tpvformer"
        assert record.read_text() == hashlib.sha256((site / item.package / item.target).read_bytes()).hexdigest()
    assert run("revert", site) == 0 and contents(site) == before
    for name, content in half.items():
        (site / name).write_bytes(content)
    assert run("revert", site) == 0 and contents(site) == before


def test_an_added_file_of_somebody_else_is_left_alone(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "mmcv/_ext.py").write_text("# mine\n")
    before = contents(site)
    assert run("apply", site) == 2 and contents(site) == before
    assert "_ext.py is not of mmcv 1.7.2, nor ours; remove it" in capsys.readouterr().err
    assert run("revert", site) == 0 and contents(site) == before


def test_compiled_operations_are_left_alone(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / f"mmcv/_ext{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    assert run("apply", site) == 0 and run("check", site) == 0
    assert "4 of 4 files exchanged" in capsys.readouterr().out and not (site / "mmcv/_ext.py").exists()


def test_files_lie_beside_the_package_in_a_wheel_too() -> None:
    """What ``overlay.SOURCES`` relies on; setup.py names the folders, test_package.py installs them."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert 'include=["tpvformer*", "mmcv_need", "mmdet_need"]' in text
    assert {item.source.split("/")[0] for item in overlay.DROP_INS} == {"mmcv_need", "mmdet_need"}
