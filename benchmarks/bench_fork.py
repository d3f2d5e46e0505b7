"""Measure a training step of somebody's model on mmcv 1.x with tpvformer's operations and with mmcv's compiled ones.

    DIR/bin/python benchmarks/bench_fork.py --compiled mmcv/_ext.so [--repeats 7] [--out FILE]

DIR is an environment of tools/openmmlab_env.sh. ``--compiled``: mmcv 1.7.2's extension, built for the torch of DIR from
its source archive on PyPI (``pip download --no-binary :all: --no-deps mmcv-full==1.7.2``); one of its modulated
deformable convolution alone is enough. mmcv has no attention for a processor: its models call its function in plain
PyTorch there.

The model (fork_side.py) is mmdet's ResNet with DCNv2 in two stages, and layers of deformable attention to its maps and
among the queries of a plane. Two processes, one with each side's operations, take steps in turn with one thread. A
number is the median CPU time of a process; the first round compiles and is not counted. The ratio of a round is
mmcv's time by tpvformer's. Losses and gradients are compared, and both sides' DCNv2 with plain PyTorch in float64 for
an input of either memory format.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tpvformer.commands.options import positive, size  # noqa: E402
from tpvformer.engine.bench import report  # noqa: E402
from tpvformer.engine.logging.environment import environment_info  # noqa: E402
from tpvformer.ops.reference import modulated_deform_conv2d  # noqa: E402

OURS, THEIRS = "tpvformer", "mmcv"
SIDE = str(ROOT / "benchmarks/fork_side.py")
Saved = Dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", type=Path, required=True)
    parser.add_argument("--built", default="", help="how --compiled was built, for the result")
    parser.add_argument("--size", type=size, default=(384, 224))
    parser.add_argument("--cameras", type=positive, default=1)
    parser.add_argument("--depth", type=positive, default=50, help="of the ResNet")
    parser.add_argument("--side", type=positive, default=50, help="queries along a side of the plane")
    parser.add_argument("--dim", type=positive, default=64, help="channels of the queries, of 8 heads")
    parser.add_argument("--layers", type=positive, default=3)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--out", type=Path, help="also write JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(text(result))
    if args.out:
        torch.set_num_threads(1)
        given = [word for word in sys.argv[1:] if str(args.compiled) not in word and word != "--compiled"]
        sys.argv[1:] = ["--compiled", "mmcv/_ext.so", *given]  # wherever it is
        head = environment_info(torch.device("cpu"), "python benchmarks/bench_fork.py")
        shape = {name: getattr(args, name) for name in ("built", "size", "cameras", "depth", "side", "dim", "layers")}
        report.write({**head, **shape, **result}, args.out)


def start(args: argparse.Namespace, name: str, folder: Path) -> "subprocess.Popen[str]":
    settings = ["--save", str(folder / name), "--size", *(str(n) for n in args.size)]
    for option in ("depth", "side", "dim", "layers", "cameras"):
        settings += [f"--{option}", str(getattr(args, option))]
    own = ["-m", "tpvformer", "run", "--device", "cpu", SIDE, *settings]
    command = own if name == OURS else [SIDE, *settings, "--compiled", str(args.compiled.resolve())]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    env = {**os.environ, **one, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, *command], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def measure(args: argparse.Namespace, folder: Path) -> Dict[str, Any]:
    """Return times by what was run, part and side, and how far both sides differ."""
    sides = {name: start(args, name, folder) for name in (OURS, THEIRS)}
    runs: Dict[str, Dict[str, List[Dict[str, float]]]] = {}
    try:
        for what in ("step", "convolution", "attention"):
            runs[what] = {name: [] for name in sides}
            for _ in range(args.repeats + 1):
                for name, child in sides.items():
                    runs[what][name].append(ask(child, what, name))
    finally:
        for child in sides.values():
            child.kill()
            child.wait()
    times: Dict[str, Any] = {}
    for what, found in runs.items():
        parts = [part for part in found[OURS][0] if part not in ("loss", "norm", "peak_mib")]
        times[what] = {part: compared([[run[part] for run in found[name][1:]] for name in sides]) for part in parts}
    losses = {name: [run["loss"] for run in runs["step"][name]] for name in sides}
    saved = {name: torch.load(f"{folder / name}.step", weights_only=True) for name in sides}
    layouts = {name: torch.load(f"{folder / name}.convolution", weights_only=True) for name in sides}
    return {
        "cpu_s": times,
        "peak_mib": {name: max(run["peak_mib"] for run in runs["step"][name]) for name in sides},
        "losses": losses,
        "loss_gap": max(abs(a - b) / abs(b) for a, b in zip(losses[OURS], losses[THEIRS])),
        "norm_gap": abs(runs["step"][OURS][0]["norm"] / runs["step"][THEIRS][0]["norm"] - 1),
        "gradient_gap": gradient_gaps(saved[OURS], saved[THEIRS]),
        "convolution_error": {name: layout_errors(layouts[name]) for name in sides},
    }


def ask(child: "subprocess.Popen[str]", what: str, name: str) -> Dict[str, float]:
    assert child.stdin is not None and child.stdout is not None
    print(what, file=child.stdin, flush=True)
    answer = child.stdout.readline()
    if not answer:
        sys.exit(f"bench_fork: the side of {name} ended in {what}; see its error above")
    return json.loads(answer)


def compared(runs: List[List[float]]) -> Dict[str, float]:
    """Return the median of each side, and of the rounds' ratios, mmcv's time by tpvformer's."""
    ours, theirs = runs
    ratio = statistics.median(b / max(a, 1e-9) for a, b in zip(ours, theirs))
    return {OURS: statistics.median(ours), THEIRS: statistics.median(theirs), "ratio": ratio}


def gradient_gaps(ours: Saved, theirs: Saved) -> Dict[str, float]:
    """Return the largest and the median difference of a parameter's gradient, relative to its largest number."""
    assert ours.keys() == theirs.keys()
    gaps = [gap(ours[name], theirs[name]) for name in ours if float(theirs[name].abs().max()) > 0]
    return {"largest": max(gaps), "median": statistics.median(gaps), "parameters": len(gaps)}


def layout_errors(saved: Saved) -> Dict[str, Dict[str, float]]:
    """Return the error of output and gradients against plain PyTorch in float64, by the input's memory format."""
    leaves = [tensor.double().requires_grad_() for tensor in saved["given"]]
    out = modulated_deform_conv2d(*leaves, None, 1, 1, 1, 1, 1)
    slope = torch.linspace(-1, 1, out.numel()).view(out.shape).double()
    wanted = [out.detach(), *torch.autograd.grad(out, leaves, slope)]
    names = ("output", "x", "offset", "mask", "weight")
    return {
        f"channels {kind}": {name: gap(a, b) for name, a, b in zip(names, saved[kind], wanted)}
        for kind in ("first", "last")
    }


def gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def text(result: Dict[str, Any]) -> str:
    rows = [["CPU seconds", OURS, THEIRS, "ratio"]]
    for what, parts in result["cpu_s"].items():
        for part, found in parts.items():
            rows.append([f"{what}, {part}", *(f"{found[name]:.3f}" for name in (OURS, THEIRS, "ratio"))])
    lines = [report.table(rows), f"peak MiB: {result['peak_mib']}"]
    lines += [f"losses differ by {result['loss_gap']:.1e}, norms of the first gradient by {result['norm_gap']:.1e}"]
    lines += [f"gradients: {result['gradient_gap']}"]
    for name, found in result["convolution_error"].items():
        for kind, errors in found.items():
            said = ", ".join(f"{part} {error:.1e}" for part, error in errors.items())
            lines.append(f"DCNv2 of {name}, {kind}: {said}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
