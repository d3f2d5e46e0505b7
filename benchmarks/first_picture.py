"""How long a newcomer waits: from an empty environment to the first picture, with a wheel and released weights.

    python benchmarks/first_picture.py --model out/tpvformer-demo/model.safetensors [--torch torch==2.13.0]

Builds the wheel of this checkout first, which does not count. Then, in a folder that is deleted in the end, the
commands of README.md, each a process of its own, with the wall time it took. What pip downloads depends on the network
and its cache, so its times stand apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "tpvformer-demo.safetensors"  # its name as a release file
PACKAGED = ("tpvformer", "config", "mmcv_need", "mmdet_need", "pyproject.toml", "setup.py", "README.md", "LICENSE")
PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--model", type=Path, required=True, help="what `make demo` leaves for a release")
PARSER.add_argument("--torch", default="torch==2.13.0", help="what pip is asked for (default: %(default)s)")


def commands(torch: str, wheel: str) -> List[Tuple[str, str]]:
    """(what, command) in the order of README.md; ``python3`` stands for this interpreter."""
    return [
        ("environment", "python3 -m venv .venv"),
        ("PyTorch", f".venv/bin/pip install -qq {torch}"),
        ("this package", f".venv/bin/pip install -qq {wheel}"),
        ("a street", ".venv/bin/tpvformer synth --out street --scenes 2 --frames 1 --size 288x160"),
        (
            "prediction",
            f".venv/bin/tpvformer predict --ckpt-path {WEIGHTS} --rig street/rig.json --out out",
        ),
        ("picture", ".venv/bin/tpvformer view out --png pictures"),
        ("page", ".venv/bin/tpvformer view out --html out.html"),
    ]


def main() -> int:
    args = PARSER.parse_args()
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        env["NUMBA_CACHE_DIR"] = str(folder / "numba")  # kernels compile, as they do on a machine that never ran this
        wheel = _wheel(folder / "wheel")
        shutil.copy(args.model, folder / WEIGHTS)
        shutil.copy(wheel, folder)
        seconds: Dict[str, float] = {}
        for what, command in commands(args.torch, wheel.name):
            words = command.split()
            words[0] = sys.executable if words[0] == "python3" else str(folder / words[0])
            begin = time.perf_counter()
            subprocess.run(words, cwd=folder, env=env, check=True)
            seconds[what] = time.perf_counter() - begin
            print(f"{what:<14} {seconds[what]:6.1f} s   {command}", flush=True)
        assert list((folder / "pictures").glob("*.png")) and (folder / "out.html").is_file()
    pip = sum(seconds[what] for what in ("environment", "PyTorch", "this package"))
    look = sum(seconds[what] for what in ("a street", "prediction", "picture"))
    print(f"first picture after {pip + look:.0f} s: {pip:.0f} s of installation, {look:.0f} s of this package")
    return 0


def _wheel(folder: Path) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    sys.exit(main())
