"""Verify and measure everything on a GPU in less than 8 minutes: errors of the kernels, and times of all parts.

    python benchmarks/gpu_report.py                # on a machine with a GPU
    python benchmarks/gpu_report.py --quick        # the most valuable sections alone, in at most 150 s
    python benchmarks/gpu_report.py --device cpu   # the same code at tiny sizes, as a test of the script

Needs torch, triton, numpy, numba and opencv; nothing has to be installed or downloaded. Every section runs in a process
of its own, with a limit on its time: one that fails is reported and the others go on. When a section ends, its numbers
and everything it printed are written to <out-dir>/<date>_<device>/, and <date>_<device>.json and .md beside that folder
are written anew: a run that is killed leaves what was finished. Exits with 1 where a section failed or a kernel is
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package need not be installed

import torch  # noqa: E402
from gpu_sections import FIRST, SECTIONS  # noqa: E402
from render import markdown  # noqa: E402

from tpvformer.engine.logging.environment import environment_info  # noqa: E402
from tpvformer.files import replacing  # noqa: E402

TOTAL, QUICK_TOTAL = 465.0, 145.0  # seconds for everything
SHORTEST = 5.0  # seconds under which a section is not started
_ASKED = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"


def main() -> int:
    args = parse()
    if args.section:
        return child(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_report.py: this PyTorch sees no GPU; try the script with --device cpu, or go where one is")
        return 2
    began = time.monotonic()
    head = environment_info(torch.device(args.device), "python benchmarks/gpu_report.py")
    result: Dict[str, Any] = {
        **head,
        "toolkit": torch.version.cuda,
        "machine": machine(),
        "seconds": 0.0,
        "sections": {},
    }
    stem = free_name(args.out_dir, head, args)
    for number, name in enumerate([args.only] if args.only else FIRST if args.quick else SECTIONS, 1):
        left = (QUICK_TOTAL if args.quick else TOTAL) - (time.monotonic() - began)
        base = stem / f"{number:02d}_{name.replace(' ', '_')}"
        state = run_section(name, min(SECTIONS[name].limit, left), args, base)
        result["sections"][name], result["seconds"] = state, time.monotonic() - began
        write(stem.with_name(stem.name + ".json"), json.dumps(result, indent=1) + "\n")
        write(stem.with_name(stem.name + ".md"), markdown(result))
        print(f"{name}: {state['status']}, {len(state['lines'])} results, {state['seconds']:.0f} s", flush=True)
    print(f"{markdown(result)}\nwritten to {stem}.json and .md, sections and what they printed to {stem}/")
    states = result["sections"].values()
    wrong = [line for state in states for line in state["lines"] if not line.get("ok", True)]
    return 1 if wrong or any(state["status"] != "done" for state in states) else 0


def machine() -> List[str]:
    """Return what nvidia-smi says of each card: driver, clocks, power and temperature; empty where it is absent."""
    try:
        asked = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv"]
        done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.decode(errors="replace").strip().splitlines()


def free_name(out_dir: Path, head: Dict[str, Any], args: argparse.Namespace) -> Path:
    """Return a name in ``out_dir`` that no earlier run has taken, its folder made."""
    slug = re.sub(r"[^a-z0-9]+", "-", head["device"].lower()).strip("-")
    name = f"{head['date'][:10]}_{slug}" + ("_quick" if args.quick or args.device == "cpu" else "")
    for again in range(1, 1000):
        stem = out_dir / (name if again == 1 else f"{name}_{again}")
        if not stem.exists() and not stem.with_name(stem.name + ".json").exists():
            break
    stem.mkdir(parents=True)
    return stem


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def run_section(name: str, limit: float, args: argparse.Namespace, base: Path) -> Dict[str, Any]:
    """Run one section in its own process and write <base>.json; what it printed is in <base>.log.

    What it has found so far counts even where it does not reach its end.
    """
    began = time.monotonic()
    if limit < SHORTEST:
        return {"status": "left out: no time left", "lines": [], "said": [], "seconds": 0.0}
    base.parent.mkdir(parents=True, exist_ok=True)
    lines, said = base.with_name(base.name + ".lines"), base.with_name(base.name + ".log")
    command = [sys.executable, str(HERE / "gpu_report.py"), "--section", name, "--device", args.device]
    command += ["--lines", str(lines)]
    # a backend that is chosen by name and not available is an error; by default plain PyTorch would replace it
    forced = {"TPVFORMER_OPS": "triton"} if args.device == "cuda" else {}
    with said.open("w") as messages:
        process = subprocess.Popen(
            command, stdout=messages, stderr=messages, env={**os.environ, **forced}, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "done" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = lines.read_text().splitlines() if lines.exists() else []
    state = {
        "status": status,
        "lines": [json.loads(line) for line in found if line.endswith("}")],
        "said": said.read_text(errors="replace").strip().splitlines()[-3:],
        "seconds": time.monotonic() - began,
    }
    write(base.with_name(base.name + ".json"), json.dumps(state, indent=1) + "\n")
    lines.unlink(missing_ok=True)
    return state


def child(args: argparse.Namespace) -> int:
    """Run one section and write each of its results as soon as it is there."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    with args.lines.open("w") as file:
        for line in SECTIONS[args.section].lines(torch.device(args.device), args.device == "cpu"):
            print(json.dumps(line), file=file, flush=True)
    return 0


def end_with(parent: int) -> None:
    """End this process when its parent has ended, so that the GPU is freed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to see that it runs"
    )
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(FIRST)} alone, in at most 150 s")
    parser.add_argument("--out-dir", type=Path, default=HERE / "results", help="where files are written")
    parser.add_argument("--only", choices=list(SECTIONS), help="one section")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
