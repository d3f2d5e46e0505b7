"""Format the result of a measurement as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tpvformer.engine.logging.phase_timer import BACKWARD, PARTS
from tpvformer.runtime.processor import mib


def write(result: Dict[str, Any], path: Path) -> None:
    """Write a result as JSON; create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as text columns; the first column is text, the others are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def step_report(result: Dict[str, Any]) -> str:
    """Format the result of ``step.stages`` as text."""
    spent, layers = result["ms"], result["deform_conv"]
    total = spent["step"]["wall"]
    order = [name for name in PARTS if name in spent]
    order.insert(order.index(BACKWARD[-1]) + 1, "backward")
    order += ["forward", "step", *(name for name in spent if name not in {*order, "forward", "step"})]
    rows: List[List[str]] = [["ms", "wall", "CPU", "share"]]
    for name in order:
        share = f"{100 * spent[name]['wall'] / total:.1f} %" if name in (*PARTS, "forward", "backward") else ""
        rows.append([name, f"{spent[name]['wall']:.1f}", f"{spent[name]['cpu']:.1f}", share])
    conv = {kind: sum(part[kind] for part in layers["ms"].values()) for kind in ("wall", "cpu")}
    count = sum(layer["layers"] for layer in layers["layers"])
    rows.append([f"DCNv2 alone, {count} layers", f"{conv['wall']:.1f}", f"{conv['cpu']:.1f}", ""])
    rest = {kind: spent["step"][kind] - conv[kind] for kind in ("wall", "cpu")}
    rows.append(["step without DCNv2", f"{rest['wall']:.1f}", f"{rest['cpu']:.1f}", ""])
    head = (
        f"{result['config']}, {result['precision']} ({result['precision_why']}), "
        f"images {'x'.join(str(n) for n in result['images'])}, "
        f"{sum(result['points'])} points in {sum(result['voxels'])} voxels, inputs: {result['inputs']}; "
        f"medians of {result['steps']} steps"
    )
    if result["compilation"] != "off":
        head += f"\ncompilation: {result['compilation']}"
    head = "\n".join([head, *result["notes"]])
    return f"{head}\n{table(rows)}\npeak memory {mib(result['peak_memory_mib'])}"
