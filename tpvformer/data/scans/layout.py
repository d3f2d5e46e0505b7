"""Check how many numbers a point of a raw scan has (its width): the declared number, or else five.

A raw file does not contain its width. Read with a wrong width, its numbers still look like coordinates, but each column
is a mixture of all true columns, so that all columns have the same distribution. With the right width they differ:
heights vary less than distances, intensities have another range, and a ring is a whole number from 0 on.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import numpy as np

USUAL = 5  # x, y, z (metres, lidar frame), intensity, ring
WIDTHS = (4, 5, 3, 6, 7, 8, 9, 10)  # in use, the most frequent first
MOST_RINGS = 4096
MOST_METRES = 1e6  # no scan reaches that far; numbers of another type read as float32 do
_FAR = 0.01  # a larger share of such coordinates is a problem
_ROWS, _FEWEST = 1000, 30  # rows that are compared, at most and at least
_BETTER = 1.25  # another width is taken for the right one where its columns differ this many times as much
_DISTANCE = 0.12  # columns whose distributions are farther apart than this (0 to 1) count as different
_NOISE = 2.5  # the largest distance between equal columns by chance is this over the square root of the rows


def layout_problem(numbers: np.ndarray, columns: Optional[int]) -> str:
    """Return why float32 ``numbers`` (N,) are not points of ``columns`` numbers (None: five); "" where they may be.

    N must be a multiple of the width.
    """
    width = USUAL if columns is None else columns
    rows = numbers.reshape(-1, width)
    with np.errstate(invalid="ignore"):
        far = np.isfinite(rows[:, :3]) & (np.abs(rows[:, :3]) > MOST_METRES)
    if far.mean() > _FAR:
        return (
            f"{100 * far.mean():.0f} % of its coordinates lie beyond {MOST_METRES:.0e} m, so its numbers are no "
            "float32, or no metres from the lidar"
        )
    if width == USUAL and _is_ring(rows[:, USUAL - 1]):
        return ""
    others = [part for part in WIDTHS if part < width and width % part == 0 and _repeats(numbers, part, width)]
    if not others and differ(numbers, width):
        # mixing makes columns more alike, so no wrong width tells them apart as well as the right one
        least = _BETTER * _spread(numbers, width)
        others = [w for w in likely_widths(numbers, width) if width % w and _spread(numbers, w) > least]
        if not others:
            return ""
    others = others or likely_widths(numbers, width)
    if others:
        read = "declared" if columns is not None else "taken for want of a declaration"
        return f"its points look as if they had {listed(others)} numbers each, not {width}, which is {read}"
    if differ(numbers.reshape(width, -1).T.ravel(), width):
        return "its numbers look as if x of all points stood first, then y of all, but a point's belong together"
    if columns is not None or not any(numbers.size % other == 0 for other in WIDTHS if other != width):
        return ""
    return (
        "its points are taken to have 5 numbers each for want of a declaration, but the fifth is no ring (a whole "
        "number from 0 on)"
    )


def likely_widths(numbers: np.ndarray, but: int) -> List[int]:
    """Return the widths other than ``but`` with which the columns of ``numbers`` (N,) differ, as those of points do."""
    found = [w for w in WIDTHS if w != but and w % but and numbers.size % w == 0 and differ(numbers, w)]
    return [w for w in found if not any(w > part and w % part == 0 and _repeats(numbers, part, w) for part in found)]


def listed(widths: List[int]) -> str:
    """Format widths for a message, such as "3 or 6"."""
    return " or ".join(map(str, widths[:3]))


def differ(numbers: np.ndarray, width: int) -> bool:
    """Tell whether the columns have different distributions; False where there are too few rows to tell."""
    below, noise = _shares(numbers, width)
    return bool(np.abs(below - below.mean(0)).max() > max(_DISTANCE, noise))


def _spread(numbers: np.ndarray, width: int) -> float:
    """Return how much the columns' distributions differ, 0 to 1."""
    below, _ = _shares(numbers, width)
    return float(np.abs(below - below.mean(0)).mean())


def _repeats(numbers: np.ndarray, part: int, width: int) -> bool:
    """Tell whether a row of ``width`` holds several points of ``part`` numbers: columns that are ``part`` apart have
    equal distributions."""
    below, noise = _shares(numbers, width)
    parts = below.reshape(width // part, part, -1)
    alike = np.abs(parts - parts.mean(0)).max() < min(_DISTANCE, noise)
    return bool(alike) and differ(numbers, part)


def _shares(numbers: np.ndarray, width: int) -> Tuple[np.ndarray, float]:
    """Return the cumulative distribution of each column, (width, 9), at nine quantiles of all numbers together, and the
    largest difference by chance, which is above 1 where there are too few rows to tell."""
    rows = numbers.reshape(-1, width)
    if len(rows) > _ROWS:  # not every n-th row, because n rows may be a multiple of the true width
        rows = rows[np.random.RandomState(0).randint(0, len(rows), _ROWS)]
    rows = rows[np.isfinite(rows).all(1)].astype(np.float64)
    if len(rows) < _FEWEST:
        return np.zeros((width, 9)), 2.0
    marks = np.quantile(rows, np.linspace(0.1, 0.9, 9))
    return (rows[:, :, None] <= marks).mean(0), _NOISE / len(rows) ** 0.5


def _is_ring(column: np.ndarray) -> bool:
    column = column[np.isfinite(column)]
    return bool(((column >= 0) & (column < MOST_RINGS) & (column == np.floor(column))).all())
