"""The wheel, installed alone into a fresh environment: the demo, three lines of Python, configurations by name."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import programs
import pytest
import yaml
from engine_tools import ROOT, environment
from rig_tools import rig_of_infos

import tpvformer
from tpvformer.compat.pretrained import EMBEDDED

setuptools = pytest.importorskip("setuptools", minversion="70.1")  # the first that builds a wheel by itself
SOURCES = ("tpvformer", "config", "mmcv_need", "mmdet_need", "pyproject.toml", "setup.py", "README.md", "LICENSE")

HERE = """
import sys
from pathlib import Path

import tpvformer

assert Path(tpvformer.__file__).is_relative_to(sys.prefix), tpvformer.__file__
"""

THREE_LINES = """
import numpy as np

from tpvformer import TPVFormer

TPVFormer("debug", device="cpu").save_pretrained("model")
images = {"front": np.zeros((45, 77, 3), np.uint8)}
rig = {"front": [[60, 38, 0, 0], [0, 22, -60, -18], [0, 1, 0, 0], [0, 0, 0, 1]]}

for source in ("model", "demo"):
    model = TPVFormer.from_pretrained(source, device="cpu")
    result = model.predict(images, rig)
    print(result.voxels.labels.shape)
print(result.label([[0, 10, 0]]).shape, result.save("scene.npz"))
print(TPVFormer("config/demo.py").config.name)
"""

REAL_FRAME = """
import json
import sys

import numpy as np

from tpvformer import TPVFormer

rig, scan = sys.argv[1:]
images = json.load(open(rig))["frames"][0]["images"]
points = np.fromfile(scan, "<f4").reshape(-1, 5)

model = TPVFormer.from_pretrained("demo", device="cpu")
result = model.predict(images, rig, points)
result.save("scene.npz")

assert result.voxels.labels.shape == (128, 128, 8) and result.point_labels.shape == (len(points),)
assert np.isfinite(result.voxels.probabilities).all()
print(len(set(result.point_labels.tolist())), "classes")
"""


def run(*command: str, cwd: Path, **more: str) -> str:
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = programs.run(command, cwd=cwd, env={**env, **more})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: Any) -> Path:
    """The programs of a fresh environment that holds the wheel alone; what it depends on is lent by this one.

    Paths in a .pth file are searched, but their own .pth files are not, so an editable installation stays invisible.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a copy, so that nothing is written into the checkout
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, target)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", build, str(folder), cwd=folder / "source")
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(programs / "python"),
        "install",
        "--no-deps",
        str(wheel),
        cwd=folder,
    )
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text("\n".join(dict.fromkeys(sysconfig.get_path(k) for k in ("purelib", "platlib"))))
    return programs


@pytest.fixture(scope="module")
def installed(fresh: Path) -> Path:
    return next((fresh.parent / "lib").glob("python*/site-packages"))


def test_the_wheel_holds_all_that_it_needs(installed: Path) -> None:
    shipped = {file.name for file in (installed / "tpvformer" / "configs").glob("*.py")}
    assert shipped == {file.name for file in (ROOT / "config").glob("*.py")}
    files = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tpvformer").rglob("*.py")}
    files |= {"tpvformer/py.typed", *(f"tpvformer/weights/{name}.safetensors" for name in EMBEDDED)}
    assert all((installed / name).is_file() for name in files)
    assert not (installed / "tests").exists() and not (installed / "config").exists()
    (info,) = installed.glob("tpvformer-*.dist-info")
    assert f"\nVersion: {tpvformer.__version__}\n" in (info / "METADATA").read_text()
    assert "tpvformer = tpvformer.cli:main" in (info / "entry_points.txt").read_text()


def test_the_three_lines_run_with_the_wheel_alone(fresh: Path, tmp_path: Path) -> None:
    """So do configurations by name."""
    quick = {"TPVFORMER_OPS": "reference"}  # kernels would be compiled once more, for the files of this environment
    said = run(str(fresh / "python"), "-c", HERE + THREE_LINES, cwd=tmp_path, **quick)
    assert said.splitlines() == ["(18, 14, 5)", "(128, 128, 8)", "(1,) scene.npz", "demo"]
    assert sorted(os.listdir(tmp_path)) == ["model", "scene.npz"]


def test_the_first_picture_with_the_wheel_alone(fresh: Path, tmp_path: Path) -> None:
    """``tpvformer demo``, with which the documents begin: no network, no display, a package that may not be written."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    block = re.findall(r"```bash\n(.*?)```", index, re.S)[0]
    (line,) = [line for line in block.splitlines() if line.startswith("tpvformer ")]
    assert line.split()[1] == "demo"
    quick = {"TPVFORMER_OPS": "reference", "DISPLAY": "", "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    offline = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # where nobody listens
    (package,) = (fresh.parent / "lib").glob("python*/site-packages/tpvformer")
    before = sorted(package.rglob("*.*"))
    words = [*shlex.split(line, comments=True)[1:], "--device", "cpu"]
    unwritten = {"PYTHONDONTWRITEBYTECODE": "1"}
    said = run(str(fresh / "tpvformer"), *words, cwd=tmp_path, **quick, **offline, **unwritten)
    assert "this one frame: " in said
    (made,) = (tmp_path / "out").iterdir()
    assert sorted(file.name for file in made.iterdir()) == ["page.html", "picture.png", "prediction", "street"]
    assert sorted(package.rglob("*.*")) == before


def test_the_wheel_stays_small(fresh: Path) -> None:
    (wheel,) = fresh.parents[1].glob("*.whl")
    assert 5e6 < wheel.stat().st_size < 15e6


def test_the_source_archive_holds_the_weights(fresh: Path) -> None:
    folder = fresh.parents[1]
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", build, str(folder), cwd=folder / "source")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    weights = {f"tpvformer/weights/{name}.safetensors" for name in EMBEDDED}
    assert {*weights, "tpvformer/viz/page/viewer.html", "config/demo.py"} <= names


@pytest.mark.skipif(not os.environ.get("TPVFORMER_REAL_DATA"), reason="TPVFORMER_REAL_DATA names no nuscenes_real")
def test_the_three_lines_run_on_the_demo_s_weights_and_a_real_frame(fresh: Path, tmp_path: Path) -> None:
    """It runs: streets that a program drew taught it nothing about this one."""
    real = Path(os.environ["TPVFORMER_REAL_DATA"])
    rig = rig_of_infos(real / "infos" / "nuscenes_infos_2samples.pkl", real / "sample", tmp_path / "rig.json")
    (scan,) = (real / "sample").glob("*LIDAR_TOP*.bin")
    said = run(str(fresh / "python"), "-c", HERE + REAL_FRAME, str(rig), str(scan), cwd=tmp_path)
    assert int(said.split()[0]) > 0


def test_the_version_stands_in_one_place() -> None:
    tree = ast.parse((ROOT / "tpvformer" / "__init__.py").read_text())
    (value,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__")
    version = ast.literal_eval(value)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("pyproject.toml", "setup.py", "CITATION.cff"):
        assert f'"{version}"' not in (ROOT / name).read_text(), name


def test_the_workflows_call_what_a_merge_must_pass() -> None:
    """A release as well; its wheel is used as a newcomer uses it."""
    folder = ROOT / ".github" / "workflows"
    for file in folder.iterdir():
        jobs = yaml.safe_load(file.read_text())["jobs"].values()
        steps = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        assert (
            ".ci/run" in steps and "secrets" not in file.read_text() and "pull_request_target" not in file.read_text()
        )
    release = (folder / "release.yml").read_text()
    assert "python -m build" in release and "first_picture.py --wheel dist/tpvformer-*.whl" in release
