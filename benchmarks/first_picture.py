"""Measure the time from an empty environment to the first picture, with nothing but a wheel.

    python benchmarks/first_picture.py [--wheel FILE] [--torch torch==2.13.0] [--out FILE]

Unless a wheel is given, that of this checkout is built first, unmeasured. Then the commands of README.md run in a
temporary folder, each in a separate process: an environment, PyTorch, the wheel, and `tpvformer demo` twice, before and
after its kernels have compiled. Prints the wall time and the CPU time of each. pip's times depend on the network and
its cache, so they are printed separately.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("tpvformer", "config", "mmcv_need", "mmdet_need", "pyproject.toml", "setup.py", "README.md", "LICENSE")
INSTALLATION = ("environment", "PyTorch", "this package")
# a processor's vector instructions by Linux' names, and the variables that restrict libraries to some of them
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_FEATURES")
PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--wheel", type=Path, metavar="FILE", help="of this package (default: built from this checkout)")
PARSER.add_argument("--torch", default="torch==2.13.0", help="what pip is asked for (default: %(default)s)")
PARSER.add_argument("--out", type=Path, metavar="FILE", help="also write everything as JSON")


def commands(torch: str, wheel: str) -> List[Tuple[str, str]]:
    """Return (description, command) in the order of README.md; ``python3`` is replaced by this interpreter."""
    return [
        ("environment", "python3 -m venv .venv"),
        ("PyTorch", f".venv/bin/pip install -qq {torch}"),
        ("this package", f".venv/bin/pip install -qq {wheel}"),
        ("demo, cold", ".venv/bin/tpvformer demo"),
        ("demo, warm", ".venv/bin/tpvformer demo --seed 8002"),
    ]


def processor() -> Dict[str, str]:
    """Return the processor's name, its vector instructions, and the environment's restrictions of them."""
    found = {"processor": platform.processor() or platform.machine(), "instructions": "not known on this system"}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    values = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    found["processor"] = values.get("model name", found["processor"])
    flags = values.get("flags", values.get("Features", "")).split()
    if flags:
        found["instructions"] = " ".join(name for name in INSTRUCTIONS if name in flags) or "none of those asked for"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    return {"cores": str(cores), **found, **limits}


def main() -> int:
    args = PARSER.parse_args()
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    machine = {**processor(), "load": f"{os.getloadavg()[0]:.1f}", "python": platform.python_version()}
    print("; ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    seconds: Dict[str, Dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        env["NUMBA_CACHE_DIR"] = str(folder / "numba")  # kernels compile, as they do on a machine that never ran this
        wheel = Path(shutil.copy(args.wheel or _wheel(folder / "wheel"), folder))
        for what, command in commands(args.torch, wheel.name):
            words = command.split()
            words[0] = sys.executable if words[0] == "python3" else str(folder / words[0])
            before, begin = _cpu(), time.perf_counter()
            subprocess.run(words, cwd=folder, env=env, check=True)
            seconds[what] = {"wall": time.perf_counter() - begin, "cpu": _cpu() - before}
            print(f"== {what}: {_both(seconds[what])}   {command}", flush=True)
        assert len(list(folder.glob("out/demo-*/picture.png"))) == len(list(folder.glob("out/demo-*/page.html"))) == 2
    installation = {kind: sum(seconds[what][kind] for what in INSTALLATION) for kind in ("wall", "cpu")}
    print(f"installation {_both(installation)}; first picture after it: {_both(seconds['demo, cold'])}; ", end="")
    print(f"once kernels are compiled: {_both(seconds['demo, warm'])}")
    if args.out is not None:
        args.out.write_text(json.dumps({"machine": machine, "torch": args.torch, "seconds": seconds}, indent=1) + "\n")
    return 0


def _cpu() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _both(seconds: Dict[str, float]) -> str:
    return f"{seconds['wall']:.1f} s, {seconds['cpu']:.1f} s of CPU time"


def _wheel(folder: Path) -> Path:
    """Build the wheel from a copy, so that no files are left in the checkout."""
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
