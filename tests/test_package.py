"""The wheel, away from the checkout: the three lines of Python, and configurations by name."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from engine_tools import ROOT, environment

import tpvformer

setuptools = pytest.importorskip("setuptools", minversion="64")  # what builds the wheel
SOURCES = ("tpvformer", "config", "mmcv_need", "mmdet_need", "pyproject.toml", "setup.py", "README.md", "LICENSE")

THREE_LINES = """
import sys
from pathlib import Path

import numpy as np

import tpvformer
from tpvformer import TPVFormer

assert Path(tpvformer.__file__).is_relative_to(sys.argv[1]), tpvformer.__file__
TPVFormer("debug", device="cpu").save_pretrained("model")
images = {"front": np.zeros((45, 77, 3), np.uint8)}
rig = {"front": [[60, 38, 0, 0], [0, 22, -60, -18], [0, 1, 0, 0], [0, 0, 0, 1]]}

model = TPVFormer.from_pretrained("model", device="cpu")
result = model.predict(images, rig)
print(result.label([[0, 10, 0]]).shape, result.save("scene.npz"), result.voxels.labels.shape)
print(TPVFormer("config/demo.py").config.name)
"""


def run(*command: str, cwd: Path, path: str) -> str:
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env={**env, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: Any) -> Path:
    """A folder that the wheel was installed into; built from a copy, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, target)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", build, str(folder), cwd=folder / "source", path="")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")  # a wheel of pure Python is installed by this
    return folder / "site"


def test_the_wheel_holds_all_that_it_needs(installed: Path) -> None:
    shipped = {file.name for file in (installed / "tpvformer" / "configs").iterdir()}
    assert shipped == {file.name for file in (ROOT / "config").glob("*.py")}
    files = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tpvformer").rglob("*.py")} | {"tpvformer/py.typed"}
    assert all((installed / name).is_file() for name in files)
    assert not (installed / "tests").exists() and not (installed / "config").exists()
    (info,) = installed.glob("tpvformer-*.dist-info")
    assert f"\nVersion: {tpvformer.__version__}\n" in (info / "METADATA").read_text()
    assert "tpvformer = tpvformer.cli:main" in (info / "entry_points.txt").read_text()


def test_the_three_lines_run_with_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    """So do configurations by name."""
    said = run(sys.executable, "-c", THREE_LINES, str(installed), cwd=tmp_path, path=str(installed))
    assert said.splitlines() == ["(1,) scene.npz (18, 14, 5)", "demo"]
    assert sorted(os.listdir(tmp_path)) == ["model", "scene.npz"]


def test_the_version_stands_in_one_place() -> None:
    tree = ast.parse((ROOT / "tpvformer" / "__init__.py").read_text())
    (value,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__")
    version = ast.literal_eval(value)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("pyproject.toml", "setup.py", "CITATION.cff"):
        assert f'"{version}"' not in (ROOT / name).read_text(), name


def test_the_workflow_calls_what_a_merge_must_pass() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run" in text and "secrets" not in text and "pull_request_target" not in text
