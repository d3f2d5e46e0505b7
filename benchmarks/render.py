"""The report of gpu_report.py as Markdown."""

from __future__ import annotations

from typing import Any, Dict, List

from measure import DIRECTIONS

PARTS = ("step without marks", "step", "transfer", "backbone", "neck", "encoder", "aggregator", "loss", "backward",
         "optimiser")  # fmt: skip


def markdown(result: Dict[str, Any]) -> str:
    """Format the head, a table for each kind of section, and the sections that did not finish."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    out = [
        f"# {result['device']}, {result['date']}",
        "",
        f"`{result['command']}`, {result['seconds']:.0f} s.",
        f"{result['processor']}, {result['cores']} cores; {versions}.",
        *(f"`{line}`" for line in result.get("machine", [])),
        "Inputs are random: a nuScenes rig, 34,720 lidar points, images 1600x900 unless said otherwise.",
    ]
    sections = result["sections"]
    lines = {name: section["lines"] for name, section in sections.items()}
    out += _ceilings(lines.get("ceilings", []))
    out += _verify(lines.get("verify small", []) + lines.get("verify full", []))
    steps = {name.partition(" ")[2]: found[-1] for name, found in lines.items() if name.startswith("step ") and found}
    out += _steps(steps)
    out += _inference(lines.get("inference", []))
    out += _operations(lines.get("operations", []))
    for name, run in steps.items():
        out += _kernels(name, run)
    out += [f"\nMemory errors ({line['name']}): {line['said']}" for line in lines.get("sanitizer", [])]
    unfinished = [
        f"- {name}: {s['status']}. {' '.join(s['said'])}" for name, s in sections.items() if s["status"] != "done"
    ]
    if unfinished:
        out += ["", "## Not finished", "", *unfinished]
    return "\n".join(out) + "\n"


def _table(title: str, head: List[str], rows: List[List[str]]) -> List[str]:
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return ["", f"## {title}", "", *("| " + " | ".join(line) + " |" for line in lines)]


def _verify(lines: List[Dict[str, Any]]) -> List[str]:
    rows = []
    for line in lines:
        cells = []
        for short in ("fp32", "bf16"):
            found = line["error"].get(short)
            if found:
                worst = max(found, key=lambda name: found[name])
                cells.append(f"{found['output']:.1e}, worst {worst} {found[worst]:.1e}")
            else:
                cells.append(line["failed"].get(short, "").replace("|", "/"))
        rows.append([line["name"], line["size"], *cells, "yes" if line["ok"] else "NO"])
    head = ["operation", "size", "relative error fp32", "bf16", "within tolerance"]
    return _table("Kernels against plain PyTorch in float64", head, rows)


def _ceilings(lines: List[Dict[str, Any]]) -> List[str]:
    units = {"gb_s": "GB/s", "tflop_s": "TFLOP/s"}
    rows = [[line["name"], line["size"], f"{line[u]:.1f} {units[u]}"] for line in lines for u in units if u in line]
    return _table("Ceilings of this device", ["what", "size", "rate"], rows)


def _kernels(name: str, run: Dict[str, Any]) -> List[str]:
    rows = [[f"`{k['name'].replace('|', '/')}`", f"{k['calls']:g}", f"{k['ms']:.3f}"] for k in run.get("kernels", [])]
    if rows:
        calls, spent = (sum(k[key] for k in run["kernels"]) for key in ("calls", "ms"))
        rows.append(["sum", f"{calls:g}", f"{spent:.3f}"])
    return _table(f"Kernels of a step {name}", ["kernel", "calls a step", "ms a step"], rows)


def _steps(runs: Dict[str, Dict[str, Any]]) -> List[str]:
    rows = []
    for part in PARTS:
        cells = [run["ms"].get(part) for run in runs.values()]
        if any(cells):
            rows.append([part, *("" if cell is None else f"{cell['wall']:.1f}" for cell in cells)])
    conv = [run.get("deform_conv", {"ms": {}})["ms"].values() for run in runs.values()]
    rows.append(["DCNv2 alone", *(f"{sum(part['wall'] for part in parts):.1f}" if parts else "" for parts in conv)])
    for fact in ("precision", "compilation"):
        rows.append([fact, *(run[fact] for run in runs.values())])
    rows.append(["TF32", *("allowed" if run["train"].get("tf32", True) else "forbidden" for run in runs.values())])
    rows.append(["peak memory, GiB", *(f"{run['peak_memory_mib'] / 1024:.2f}" for run in runs.values())])
    rows.append(["loss", *(f"{run['loss']:.3f}" for run in runs.values())])
    title = "Training steps, batch 1, wall ms"
    return _table(title, ["", *(f"{name} ({run['config']})" for name, run in runs.items())], rows if runs else [])


def _inference(lines: List[Dict[str, Any]]) -> List[str]:
    rows = [[line["name"], f"{line['ms']:.1f}", f"{line['peak_memory_mib'] / 1024:.2f}"] for line in lines]
    return _table("Inference, one frame, bf16", ["configuration", "ms", "peak GiB"], rows)


def _operations(lines: List[Dict[str, Any]]) -> List[str]:
    rows = []
    for line in lines:
        if "failed" in line:
            rows.append([line["name"], line["failed"].replace("|", "/"), *[""] * 5])
        for name, ms in line["ms"].items():
            peak = line["peak_mb"].get(name)
            memory = [f"{line['saved_mb'][name]:.1f}", "" if peak is None else f"{peak:.1f}"]
            rows.append([line["name"], name, *(f"{ms[d]:.3f}" for d in DIRECTIONS), *memory])
    return _table("Operations, ms", ["operation", "variant", *DIRECTIONS, "saved MB", "peak MB"], rows)
