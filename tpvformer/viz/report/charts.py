"""Line charts as SVG text, without scripts. Colours come from the page's style; tooltips show values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Callable, Dict, List, Optional, Sequence, Tuple

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 34
_BINS = 140  # points drawn along x at most; more are averaged
_TELLABLE = 6e-3  # least span of an axis, as a part of the largest value: `number` writes ticks of a shorter one alike
_WIDE = 30.0  # an axis is logarithmic where the highest value is more than this many times the lowest

Point = Tuple[float, Optional[float]]


@dataclass(frozen=True)
class Series:
    """One line: (x, y) in order of x, with a gap where y is None. ``tone``, 1 to 4, selects its colour."""

    name: str
    points: Sequence[Point]
    tone: int = 1
    faint: bool = False
    dots: bool = False


def line_chart(
    title: str, series: Sequence[Series], x_name: str, unit: str = "", linear: bool = False, cap: float = math.inf
) -> str:
    """Return a chart as HTML, with a legend where there is more than one line; "" where there is nothing to draw.

    ``linear``: the axis begins at 0 and is never logarithmic. Values above ``cap`` are drawn at ``cap``; their tooltip
    has the value.
    """
    drawn = [(one, _binned(one.points)) for one in series]
    drawn = [(one, points) for one, points in drawn if any(y is not None for _, y in points)]
    if not drawn:
        return ""
    values = [y for _, points in drawn for _, y in points if y is not None]
    places = [x for _, points in drawn for x, _ in points]
    low, high, log = min(values), min(max(values), cap), False
    if low > 0 and high / low > _WIDE and not linear:
        log = True
    elif linear or (low > 0 and low < 0.4 * high):
        low = min(0.0, low)
    y_of, y_ticks = _log_axis(low, high) if log else _axis(low, high)
    x_low, x_high = min(places), max(places)
    span = x_high - x_low or 1.0
    inner, floor = WIDTH - _LEFT - _RIGHT, HEIGHT - _BOTTOM

    def x_at(x: float) -> float:
        return _LEFT + (inner * (x - x_low) / span if x_high > x_low else inner / 2)

    def y_at(y: float) -> float:
        return _TOP + (floor - _TOP) * (1 - y_of(y))

    parts = []
    for tick, label in _labelled(y_ticks):
        y = y_at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick, label in _labelled(_nice(x_low, x_high, 6, whole=True)):
        at = x_at(tick)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_name)}</text>')
    for one, points in drawn:
        style = f"line t{one.tone}{' faint' if one.faint else ''}"
        for run in _runs(points):
            corners = [(x_at(x), y_at(min(y, high))) for x, y in run]
            if len(corners) > 1:
                joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
                parts.append(f'<polyline class="{style}" points="{joined}"/>')
            if one.dots or len(corners) == 1:
                parts += [f'<circle class="dot t{one.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in corners]
    parts += _tips(drawn, x_at, x_name, unit, floor)
    keys = "".join(
        f'<span class="key"><i class="t{one.tone}{" faint" if one.faint else ""}"></i>{escape(one.name)}</span>'
        for one, _ in drawn
    )
    legend = f'<div class="keys">{keys}</div>' if len(drawn) > 1 else ""
    note = " · logarithmic" if log else f" · cut at {number(high)}" if high < max(values) else ""
    label = f"{title}{f', {unit}' if unit else ''}"
    return (
        f'<figure class="card"><figcaption>{escape(label)}<small>{note}</small></figcaption>{legend}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg></figure>'
    )


def spark(values: Sequence[Optional[float]], top: float = 100.0) -> str:
    """Return a sparkline as SVG: a line as high as text, from 0 to ``top``; "" for fewer than two values in a row."""
    step = 88 / max(len(values) - 1, 1)
    points: List[Point] = [(1 + i * step, v) for i, v in enumerate(values)]
    lines = "".join(
        f'<polyline class="line t1" points="{" ".join(f"{x:.1f},{18 - 16 * y / top:.1f}" for x, y in run)}"/>'
        for run in _runs(points)
        if len(run) > 1
    )
    return f'<svg class="spark" viewBox="0 0 90 20" aria-hidden="true">{lines}</svg>' if lines else ""


def number(value: float) -> str:
    """Format a number in short, for an axis or a sentence: 28k, 0.05, 1e-5."""
    size = abs(value)
    if size >= 1e4:
        return f"{value / 1e6:.4g}M" if size >= 1e6 else f"{value / 1e3:.4g}k"
    if value == 0 or size >= 1e-2:
        return f"{value:.4g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def _binned(points: Sequence[Point]) -> List[Point]:
    """Return at most ``_BINS`` points: means over equal parts of x."""
    if len(points) <= _BINS:
        return list(points)
    low, high = points[0][0], points[-1][0]
    bins: Dict[int, List[Point]] = {}
    for x, y in points:
        bins.setdefault(min(int((x - low) / (high - low) * _BINS), _BINS - 1), []).append((x, y))
    means: List[Point] = []
    for part in bins.values():
        known = [y for _, y in part if y is not None]
        x = math.fsum(x for x, _ in part) / len(part)
        means.append((x, math.fsum(known) / len(known) if known else None))
    return means


def _runs(points: Sequence[Point]) -> List[List[Tuple[float, float]]]:
    """Split the points at their gaps."""
    runs: List[List[Tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _tips(
    drawn: Sequence[Tuple[Series, Sequence[Point]]], x_at: Callable[[float], float], x_name: str, unit: str, floor: int
) -> List[str]:
    """Return an invisible SVG strip for each x, with all lines' values there as its tooltip."""
    said: Dict[float, List[str]] = {}
    for one, points in drawn:
        for x, y in points:
            if y is not None:
                said.setdefault(round(x, 1), []).append(f"{one.name}: {number(y)}{f' {unit}' if unit else ''}")
    places = sorted(said)
    at = [x_at(x) for x in places]
    strips = []
    for i, x in enumerate(places):
        left = _LEFT if i == 0 else (at[i - 1] + at[i]) / 2
        right = WIDTH - _RIGHT if i == len(at) - 1 else (at[i] + at[i + 1]) / 2
        title = escape("\n".join([f"{x_name} {number(x) if x < 1e4 else f'{x:.0f}'}", *said[x]]))
        strips.append(
            f'<rect class="tip" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 0.5):.1f}" '
            f'height="{floor - _TOP}"><title>{title}</title></rect>'
        )
    return strips


def _labelled(ticks: Sequence[float]) -> List[Tuple[float, str]]:
    """Return each tick with its text: short, or in full where short texts would be equal (large step numbers)."""
    short = [number(tick) for tick in ticks]
    return list(zip(ticks, short if len(set(short)) == len(short) else [f"{tick:.10g}" for tick in ticks]))


def _axis(low: float, high: float) -> Tuple[Callable[[float], float], List[float]]:
    """Return the map of a value to 0..1 on a linear axis, and the axis' ticks.

    Nearly constant values get a wider axis around them, so that four digits tell its ticks apart.
    """
    size, middle = max(abs(low), abs(high)), (low + high) / 2
    if size == 0:
        high = 1.0
    elif high == low:
        low, high = min(0.5 * middle, 1.5 * middle), max(0.5 * middle, 1.5 * middle)
    elif high - low < _TELLABLE * size:
        low, high = middle - _TELLABLE / 2 * size, middle + _TELLABLE / 2 * size
    pad = 0.04 * (high - low)
    low, high = (low if low == 0 else low - pad), high + pad
    return lambda y: (y - low) / (high - low), _nice(low, high, 5)


def _log_axis(low: float, high: float) -> Tuple[Callable[[float], float], List[float]]:
    a, b = math.log10(low), math.log10(high)
    pad = 0.04 * (b - a)
    a, b = a - pad, b + pad
    decades = range(math.floor(a), math.ceil(b) + 1)
    steps = (1, 2, 5) if b - a < 2.5 else (1,)
    ticks = [k * 10.0**d for d in decades for k in steps if a <= math.log10(k * 10.0**d) <= b]
    return lambda y: (math.log10(y) - a) / (b - a), ticks


def _nice(low: float, high: float, count: int, whole: bool = False) -> List[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw * 0.999)
    if whole:
        step = max(step, 1.0)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
