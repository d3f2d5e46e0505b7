"""The report of a run, one HTML page: curves, scores, confusion, time, worst frames, command and versions.

It is one file with its pictures inside. It has no script and makes no requests; a content security policy forbids both.
"""

from __future__ import annotations

import base64
import math
from html import escape
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tpvformer.labels import Classes
from tpvformer.viz.report.charts import Series, line_chart, number
from tpvformer.viz.report.read import Record, RunFiles
from tpvformer.viz.report.scores import class_table, confusion_table, metric_table, percent
from tpvformer.viz.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: RunFiles, classes: Classes, pictures: Sequence[Optional[bytes]] = (), hint: str = "") -> str:
    """Return the report of a run as HTML.

    ``pictures``: JPEG files of the worst frames of the last evaluation, in their order, None where one is missing;
    ``hint``: a sentence for the reader where there are no pictures.
    """
    name = run.summary.get("config") or _name(run.config) or run.folder
    last = run.last
    sections = [_head(run, name), _tiles(run), _section("Training", "", _curves(run))]
    if last is not None:
        epoch = f"Epoch {last['epoch']}, {last['samples']} samples of {last.get('scenes') or 'unknown'} scenes."
        sections.append(_section("Scores", epoch, _card(metric_table(last))))
        sections.append(_section("Classes", "", _card(class_table(run.evals, classes))))
        matrix = confusion_table(last, classes)
        if matrix:
            sections.append(_section("Confusion", _CONFUSION, _card(matrix)))
        sections.append(_worst(last.get("worst", ()), pictures, hint))
    sections += [_trouble(run), _origin(run)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(name)} · {escape(run.folder)}</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


_CONFUSION = (
    "Each row is one true class: its points or voxels by predicted class, in percent. Right predictions are outlined."
)


def _name(config: str) -> str:
    """Return ``name``, the first field of config.yaml; "" where another field is first."""
    key, _, value = config.partition("\n")[0].partition(":")
    return value.strip() if key == "name" else ""


def _section(title: str, text: str, body: str) -> str:
    words = f'<p class="soft">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{words}{body}</section>" if body else ""


def _card(body: str) -> str:
    return f'<div class="card scroll">{body}</div>'


def _head(run: RunFiles, name: str) -> str:
    summary = run.summary
    start = run.starts[-1] if run.starts else {}
    device = summary.get("device_name") or start.get("device") or "unknown hardware"
    size = summary.get("world_size") or start.get("world_size") or 1
    where = f"{size} × {device}"
    took = _duration(summary["duration_s"]) if summary else ""
    began = run.starts[0].get("date", "") if run.starts else ""
    state = f"finished in {took}" if took else "not finished"
    if took and len(run.starts) > 1:
        state = f"finished, the last of its {len(run.starts)} starts took {took}"
    words = " · ".join(word for word in (run.folder, where, state, began and f"started {began}") if word)
    return f'<header><h1>{escape(name)}</h1><div class="soft">{escape(words)}</div></header>'


def _tiles(run: RunFiles) -> str:
    """Return the tiles with the main numbers: score, losses, speed, memory."""
    summary, last = run.summary, run.last
    tiles: List[Tuple[str, str]] = []
    if last is not None:
        leader, metric = primary_metric(last)
        if metric.get("value") is not None:
            bounds = metric.get("interval")
            sure = f", 95 %: {bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else ""
            tiles.append((percent(metric["value"]), f"{leader}, last evaluation{sure}"))
        best = max(run.evals, key=lambda r: primary_metric(r)[1].get("value") or -1.0)
        value = primary_metric(best)[1].get("value")
        if value is not None and best is not last:
            tiles.append((percent(value), f"{leader}, best: epoch {best['epoch']}"))
        if last.get("loss") is not None:
            tiles.append((f"{last['loss']:.3f}", "validation loss"))
    if run.train and run.train[-1].get("mean_loss") is not None:
        tiles.append((f"{run.train[-1]['mean_loss']:.3f}", "training loss, mean of the last epoch"))
    if summary.get("samples_per_s") and summary.get("step_time_ms"):
        step = f"{number(summary['step_time_ms'])} ms a step of {summary['global_batch']}"
        tiles.append((number(summary["samples_per_s"]), f"samples a second, {step}"))
    if summary.get("peak_memory_mib"):
        tiles.append((f"{summary['peak_memory_mib'] / 1024:.1f} GiB", "peak memory"))
    cells = "".join(f'<div class="card tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{cells}</div>'


def primary_metric(record: Record) -> Tuple[str, Dict[str, Any]]:
    """Return name and record of the metric that selects the best checkpoint.

    Records of older versions do not name it; it is ``miou_points`` there.
    """
    name = record.get("leading", "miou_points")
    return name, record.get("metrics", {}).get(name) or {"value": (record.get("pts") or {}).get("miou")}


def _curves(run: RunFiles) -> str:
    def of(field: str) -> List[Tuple[float, Optional[float]]]:
        return [(r["step"], r.get(field)) for r in run.train]

    def scored(name: str, evals: Sequence[Record] = run.evals) -> List[Tuple[float, Optional[float]]]:
        return [(r["epoch"], (r.get("metrics", {}).get(name) or {}).get("value")) for r in evals]

    def part(name: str) -> List[Tuple[float, Optional[float]]]:
        return [(r["step"], r.get("mean_parts", {}).get(name)) for r in run.train]

    parts = list(run.train[-1].get("mean_parts", {}))[:8] if run.train else []
    parts = parts if len(parts) > 1 else []  # one is the loss itself
    names = list(run.last.get("metrics", {})) if run.last else []
    shown = [n for n in _SHOWN if n in names][:4]
    at_end = [(r["step"], r.get("loss")) for r in run.evals]
    figures = [
        line_chart(
            "Loss",
            [
                Series("printed steps", of("loss"), 1, faint=True),
                Series("mean of the epoch so far", of("mean_loss"), 1),
                Series("validation", at_end, 2, dots=True),
            ],
            "step",
        ),
        line_chart(
            "Parts of the loss, mean of the epoch so far",
            [Series(name, part(name), 1 + i % 4) for i, name in enumerate(parts)],
            "step",
        ),
        line_chart(
            "Validation",
            [Series(name, scored(name), tone, dots=True) for tone, name in enumerate(shown, start=1)]
            + [Series(f"{name}, not averaged", scored(name, run.raw), 1, faint=True) for name in shown[:1] if run.raw],
            "epoch",
            "%",
        ),
        line_chart("Learning rate", [Series("lr", of("lr"))], "step", linear=True),
        line_chart("Norm of the gradient, before clipping", [Series("grad_norm", of("grad_norm"), 4)], "step"),
        line_chart(
            "Time of a step",
            [
                Series("total", [(s.step, 1e3 * (s.waited + s.computed)) for s in run.steps], 3),
                Series("waiting for data", [(s.step, 1e3 * s.waited) for s in run.steps], 2),
            ],
            "step",
            "ms",
            linear=True,
            cap=_cap([1e3 * (s.waited + s.computed) for s in run.steps]),
        ),
        _time(run),
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""


def _cap(times: Sequence[float]) -> float:
    """Return four times the median. The first steps compile and would compress the rest of the chart."""
    return 4 * sorted(times)[len(times) // 2] if times else math.inf


# metrics of the chart "Validation": the first four of these that the run has
_SHOWN = ("occ3d_miou", "ssc_miou", "nds", "map", "miou_points", "ray_iou", "miou_voxels", "sc_iou")


def _worst(worst: Sequence[Record], pictures: Sequence[Optional[bytes]], hint: str) -> str:
    """Return the section of the frames with the highest loss, with their pictures where there are any."""
    if not worst:
        return ""
    cards = []
    for k, frame in enumerate(worst):
        loss = frame["loss"]
        text = f"{k + 1}. {frame['token']} · loss {'not finite' if loss is None else f'{loss:.3f}'}"
        picture = pictures[k] if k < len(pictures) else None
        image = ""
        if picture is not None:
            source = f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"
            image = f'<img alt="{escape(text)}" src="{source}">'
            image = f'<label><input type="checkbox" aria-label="larger">{image}</label>'
        cards.append(f'<figure class="card">{image}<figcaption>{escape(text)}</figcaption></figure>')
    words = "Validation samples with the highest loss in the last evaluation."
    words += " A click makes a picture larger." if any(pictures) else f" {hint}" if hint else ""
    return _section("Worst frames", words, f'<div class="frames">{"".join(cards)}</div>')


def _time(run: RunFiles) -> str:
    """Return the shares of computing and of waiting for data in the recorded steps.

    Where the run was never resumed, the rest of its duration (starting, evaluating, saving) is a third share.
    """
    waited, computed = sum(s.waited for s in run.steps), sum(s.computed for s in run.steps)
    if not waited + computed:
        return ""
    parts = [("computing", computed, 3), ("waiting for data", waited, 2)]
    whole = waited + computed
    once = len(run.starts) == 1 and run.starts[0].get("step") == 0
    if once and run.summary.get("duration_s", 0) > whole:
        whole = run.summary["duration_s"]
        parts.append(("starting, evaluating, saving", whole - waited - computed, 4))
    bar = "".join(f'<i class="t{tone}" style="flex:{seconds / whole:.4f}"></i>' for _, seconds, tone in parts)
    rows = "".join(
        f'<tr><td class="key"><i class="t{tone}"></i>{escape(name)}</td><td>{_duration(seconds)}</td>'
        f"<td>{100 * seconds / whole:.1f} %</td></tr>"
        for name, seconds, tone in parts
    )
    title = f"Where the time went<small> · {len(run.steps)} steps of the main process</small>"
    return (
        f'<figure class="card"><figcaption>{title}</figcaption><div class="split">{bar}</div>'
        f"<table><tbody>{rows}</tbody></table></figure>"
    )


def _trouble(run: RunFiles) -> str:
    """Return the section of skipped steps, unreadable samples and reports of numbers that are not finite."""
    skipped, replaced = run.summary.get("skipped_steps"), run.summary.get("bad_samples")
    if not (skipped or replaced or run.nonfinite):
        return ""
    lines = []
    if skipped:
        lines.append(f"{skipped} steps were left out: their loss or gradient was not finite.")
    if replaced:
        lines.append(f"{replaced} samples could not be read; other samples replaced them.")
    body = "".join(f'<p class="bad">{escape(line)}</p>' for line in lines)
    reports = "\n".join(text for record in run.nonfinite for text in record.get("reports", ()))
    if reports:
        body += f'<pre class="wrap">{escape(reports)}</pre>'
    return _section("What went wrong", "", f'<div class="card">{body}</div>')


def _origin(run: RunFiles) -> str:
    """Return what is needed to repeat the run: command, hardware, versions, configuration."""
    rows: List[Tuple[str, str]] = []
    for start in run.starts:
        if start.get("step"):
            rows.append(("resumed", f"at step {start['step']}, {start.get('date', '')}"))
    start = run.starts[-1] if run.starts else {}
    command = start.get("command") or ""
    if start:
        cores = f"{start.get('processor')}, {start.get('cores')} cores, {start.get('threads')} threads a process"
        rows += [("device", f"{start.get('world_size')} × {start.get('device')}"), ("processor", cores)]
        versions = {"tpvformer": start.get("tpvformer"), "python": start.get("python"), **start.get("versions", {})}
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
        settings = " ".join(f"{name}={value}" for name, value in start.get("settings", {}).items())
        rows.append(("environment", settings or "nothing set"))
    for name in ("seed", "precision", "global_batch", "accumulate"):
        if name in run.summary:
            rows.append((name.replace("_", " "), str(run.summary[name])))
    body = f'<pre class="wrap">{escape(command)}</pre><br>' if command else ""
    body += f"<dl>{''.join(f'<dt>{escape(a)}</dt><dd>{escape(b)}</dd>' for a, b in rows)}</dl>" if rows else ""
    if run.config:
        body += f"<details><summary>config.yaml</summary><pre>{escape(run.config)}</pre></details>"
    return _section("How it was made", "", f'<div class="card">{body}</div>' if body else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value)
