"""The tables of an evaluation: metrics with their intervals, classes, confusion."""

from __future__ import annotations

from html import escape
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tpvformer.labels import Classes
from tpvformer.viz.report.charts import spark
from tpvformer.viz.report.read import Record

_CLASSWISE = ("occ3d_miou", "ssc_miou", "miou_points", "miou_voxels", "ray_iou")  # metrics worth a column of classes


def percent(value: Optional[float]) -> str:
    """Format a percentage with two decimals; a dash for None, where nothing could be scored."""
    return "–" if value is None else f"{value:.2f} %"


def metric_table(record: Record) -> str:
    """Return a table of the metrics, each with its 95 % interval, a drawing of it, and its values by distance."""
    metrics: Dict[str, Any] = record.get("metrics", {})
    rings = list(next(iter(metrics.values()), {}).get("rings", {}))
    head = "".join(f"<th>{escape(ring)}</th>" for ring in rings)
    rows = []
    for name, metric in metrics.items():
        value, bounds, unit = metric["value"], metric["interval"], metric.get("unit")
        sure = f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else "–"
        drawn, shown = "", percent(value)
        if unit is not None:
            shown = "–" if value is None else f"{value:.3f} {unit}"
        elif value is not None:
            low, high = bounds or (value, value)
            drawn = (
                f'<span class="range"><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
                f'<b style="left:{value:.2f}%"></b></span>'
            )
        far = "".join(f"<td>{percent(metric['rings'].get(ring))}</td>" for ring in rings)
        rows.append(
            f"<tr><td>{escape(name)}</td><td><b>{escape(shown)}</b></td><td>{sure}</td>"
            f'<td class="left">{drawn}</td>{far}</tr>'
        )
    return (
        "<table><thead><tr><th>metric</th><th>value</th><th>95 % interval</th>"
        f'<th class="left">0 to 100 %</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def class_table(evals: Sequence[Record], classes: Classes) -> str:
    """Return a table of the classes' IoU in the last evaluation, with its course over all evaluations."""
    metrics: Dict[str, Any] = evals[-1].get("metrics", {})
    shown = [name for name in _CLASSWISE if name in metrics][:3]
    if not shown:
        return ""
    colors = dict(zip(classes.names, classes.colors))
    seen, first = _seen(evals[-1]), shown[0]
    head = "".join(f"<th>{escape(name)}</th>" for name in shown)
    rows = []
    of_classes = {name: metrics[name].get("iou", {}) for name in shown}
    for label in dict.fromkeys(label for name in shown for label in of_classes[name]):
        value = of_classes[first].get(label)
        red, green, blue = colors.get(label, (128, 128, 128))
        chip = f'<i class="chip" style="background:rgb({red},{green},{blue})"></i>'
        bar = "" if value is None else f'<span class="bar"><i style="width:{value:.1f}%"></i></span>'
        past = spark([_iou(record, first, label) for record in evals])
        values = "".join(f"<td>{percent(of_classes[name].get(label))}</td>" for name in shown)
        many = f"{seen[label]:,}".replace(",", " ") if label in seen else "–"
        rows.append(
            f'<tr><td>{chip}{escape(label.replace("_", " "))}</td><td class="left">{bar}</td>{values}'
            f"<td>{past}</td><td>{many}</td></tr>"
        )
    over = f"<th>epoch {evals[0]['epoch']} to {evals[-1]['epoch']}</th>"
    return (
        f"<table><thead><tr><th>class</th><th></th>{head}{over}<th>in the truth</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _iou(record: Record, metric: str, label: str) -> Optional[float]:
    return (record.get("metrics", {}).get(metric) or {}).get("iou", {}).get(label)


def _counts(record: Record) -> Tuple[List[str], List[List[int]]]:
    """Class names and [truth][predicted]; empty in records of older versions."""
    confusion = record.get("confusion") or {}
    return confusion.get("classes", []), confusion.get("counts", [])


def _seen(record: Record) -> Dict[str, int]:
    """Return how many points or voxels have each class as their true label."""
    return {name: sum(row) for name, row in zip(*_counts(record))}


def confusion_table(record: Record, classes: Classes) -> str:
    """Return the confusion matrix, in percent of each true class; classes that never occur are left out.

    "Occur" means as truth or as prediction. Returns "" for records of older versions, which have no matrix.
    """
    names, counts = _counts(record)
    used = [k for k in range(len(counts)) if sum(counts[k]) or sum(row[k] for row in counts)]
    if not used:
        return ""
    head = "".join(f"<th><span>{escape(_short(names[k]))}</span></th>" for k in used)
    rows = []
    for truth in (k for k in used if sum(counts[k])):
        total = sum(counts[truth])
        cells = []
        for guess in used:
            share = counts[truth][guess] / total
            text = f"{100 * share:.0f}" if share >= 0.005 else ""
            kind = ("hit " if truth == guess else "") + ("deep" if share > 0.55 else "")
            title = f"{names[truth]} taken for {names[guess]}: {counts[truth][guess]} of {total}, {100 * share:.2f} %"
            cells.append(f'<td class="{kind.strip()}" style="--v:{share**0.6:.3f}" title="{escape(title)}">{text}</td>')
        red, green, blue = classes.colors[truth] if truth < len(classes.colors) else (128, 128, 128)
        chip = f'<i class="chip" style="background:rgb({red},{green},{blue})"></i>'
        rows.append(f'<tr><th scope="row">{escape(_short(names[truth]))} {chip}</th>{"".join(cells)}</tr>')
    return f'<table class="matrix"><thead><tr><th>truth</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _short(name: str) -> str:
    return name.replace("_", " ")
