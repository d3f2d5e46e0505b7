"""Compare the operations with plain PyTorch, interleaved in one run: time, and memory kept for the backward pass.

    python benchmarks/bench_ops.py [--device cpu|cuda] [--quick] [--only NAME] [--images N] [--repeats N] [--out FILE]

Times are medians of the process's CPU time on one thread; on a GPU, of the time between device events with cold caches.
Outputs and gradients are compared before anything is timed; a difference ends the run with status 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before they are loaded
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch  # noqa: E402
from measure import DIRECTIONS, close, errors, interleaved, peak_bytes, saved_bytes  # noqa: E402
from op_cases import Case, Cases  # noqa: E402

from tpvformer.engine.bench import report  # noqa: E402
from tpvformer.engine.logging.environment import environment_info

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def types_of(case: Case, device: torch.device) -> List[torch.dtype]:
    """Return the types in which a case runs; on a CPU attention supports float32 only."""
    return [torch.float32] if device.type == "cpu" and "attention" in case.name else [torch.float32, torch.bfloat16]


def measure(case: Case, device: torch.device, repeats: int) -> Dict[str, Any]:
    """Measure every variant of a case: errors, times, bytes."""
    types = types_of(case, device)
    variants = {}
    for dtype in types:
        if dtype == torch.float32 or "conv" in case.name:  # grid_sample wants positions in the type of the values
            variants[f"plain {SHORT[dtype]}"] = case.variant(case.baseline, dtype)
        variants[f"ours {SHORT[dtype]}"] = case.variant(case.ours, dtype)
    result: Dict[str, Any] = {"name": case.name, "size": case.size, "error": {}, "saved_mb": {}, "peak_mb": {}}
    for dtype in types:
        name = f"ours {SHORT[dtype]}"
        oracle = case.variant(case.baseline, torch.float32, rounded=dtype == torch.bfloat16)
        found = result["error"][name] = errors(oracle, variants[name])
        result["ok"] = result.get("ok", True) and close(found, dtype)
    for name, variant in variants.items():
        result["saved_mb"][name] = saved_bytes(variant) / 1e6
        peak = peak_bytes(variant, device)
        if peak is not None:
            result["peak_mb"][name] = peak / 1e6
    result["ms"] = interleaved(variants, device, repeats)
    return result


def rows(result: Dict[str, Any]) -> List[List[str]]:
    """Return a case's rows of the table: one for each variant, with ratios to plain PyTorch in float32."""
    first = next(iter(result["ms"]))
    out = [[f"{result['name']}: {result['size']}", *("" for _ in range(7))]]
    for name, ms in result["ms"].items():
        saved, peak = result["saved_mb"][name], result["peak_mb"].get(name)
        error = max(result["error"][name].values()) if name in result["error"] else None
        out.append(
            [
                f"  {name}",
                *(f"{ms[d]:.2f}" for d in DIRECTIONS),
                f"{result['ms'][first]['both'] / max(ms['both'], 1e-6):.2f}x",
                f"{saved:.1f}",
                "" if peak is None else f"{peak:.1f}",
                "" if error is None else f"{error:.1e}",
            ]
        )
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--only", choices=Cases.NAMES, help="one operation")
    parser.add_argument("--images", type=int, default=1, help="images of the deformable convolutions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write JSON")
    return parser.parse_args()


def main() -> int:
    args = parse()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.device != "cpu" and not torch.cuda.is_available():
        print(f"bench_ops.py: this PyTorch finds no {args.device} device; leave --device out to measure the CPU")
        return 2
    device = torch.device(args.device)
    cases = Cases(device, args.quick, args.images)
    unit = "CPU ms, 1 thread" if device.type == "cpu" else "device ms"
    table = [[unit, *DIRECTIONS, "against plain", "saved MB", "peak MB", "error"]]
    results: List[Dict[str, Any]] = []
    found: Optional[Dict[str, Any]] = None
    for name in [args.only] if args.only else Cases.NAMES:
        found = measure(cases.make(name), device, args.repeats)
        results.append(found)
        table += rows(found)
    print(report.table(table))
    if args.out:
        head = environment_info(device, "python benchmarks/bench_ops.py")
        report.write({**head, "unit": unit, "repeats": args.repeats, "operations": results}, args.out)
    wrong = [found["name"] for found in results if not found["ok"]]
    if wrong:
        print(f"bench_ops.py: {', '.join(wrong)}: the result differs from plain PyTorch", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
