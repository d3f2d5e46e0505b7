"""The report of gpu_report.py as Markdown."""

from __future__ import annotations

from typing import Any, Dict, List

from measure import DIRECTIONS

PARTS = ("step without marks", "step", "transfer", "backbone", "neck", "encoder", "aggregator", "loss", "backward",
         "optimiser")  # fmt: skip


def markdown(result: Dict[str, Any]) -> str:
    """Head, one table a kind of section, and the sections that did not finish."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    out = [
        f"# {result['device']}, {result['date']}",
        "",
        f"`{result['command']}`, {result['seconds']:.0f} s.",
        f"{result['processor']}, {result['cores']} cores; {versions}.",
        "Inputs are random: a nuScenes rig, 34,720 lidar points, images 1600x900 unless said otherwise.",
    ]
    sections = result["sections"]
    lines = {name: section["lines"] for name, section in sections.items()}
    out += _verify(lines.get("verify", []))
    out += _steps({name.partition(" ")[2]: found for name, found in lines.items() if name.startswith("step ")})
    out += _inference(lines.get("inference", []))
    out += _operations(lines.get("operations", []))
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


def _steps(sections: Dict[str, List[Dict[str, Any]]]) -> List[str]:
    runs = {name: lines[0] for name, lines in sections.items() if lines}
    rows = []
    for part in PARTS:
        cells = [run["ms"].get(part) for run in runs.values()]
        if any(cells):
            rows.append([part, *("" if cell is None else f"{cell['wall']:.1f}" for cell in cells)])
    conv = [sum(part["wall"] for part in run["deform_conv"]["ms"].values()) for run in runs.values()]
    rows.append(["DCNv2 alone", *(f"{ms:.1f}" for ms in conv)])
    rows.append(["peak memory, GiB", *(f"{run['peak_memory_mib'] / 1024:.2f}" for run in runs.values())])
    rows.append(["loss", *(f"{run['loss']:.3f}" for run in runs.values())])
    title = "Training steps, batch 1, bf16, wall ms"
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
