"""How many numbers a point of a raw scan has: as declared, else five, if that is what they look like.

A raw file does not say its width. Read by a wrong one, its numbers still look like coordinates, but each column is
then a mixture of all true columns, so that all columns have one distribution. Read by the right one they differ:
heights vary less than distances, intensities have a range of their own, a ring is a whole number from 0 on.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import numpy as np

USUAL = 5  # x, y, z (metres, lidar frame), intensity, ring
WIDTHS = (4, 5, 3, 6, 7, 8, 9, 10)  # that others write, the most frequent first
MOST_RINGS = 4096
MOST_METRES = 1e6  # no scan reaches that far; numbers of another type read as float32 do
_FAR = 0.01  # share of such coordinates that is no accident
_ROWS, _FEWEST = 1000, 30  # that are looked at, at most and at least
_BETTER = 1.25  # so much more must columns differ by another width that it is taken for the right one
_DISTANCE = 0.12  # between distributions (0 to 1) that says that columns differ
_NOISE = 2.5  # this over the root of the rows is what chance makes of equal columns, at most


def layout_problem(numbers: np.ndarray, columns: Optional[int]) -> str:
    """Why float32 ``numbers`` (N,) are not points of ``columns`` numbers (None: five); empty where nothing says so.

    N is a multiple of the width.
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
    """Other widths by which the columns of ``numbers`` (N,) differ, as those of points do."""
    found = [w for w in WIDTHS if w != but and w % but and numbers.size % w == 0 and differ(numbers, w)]
    return [w for w in found if not any(w > part and w % part == 0 and _repeats(numbers, part, w) for part in found)]


def listed(widths: List[int]) -> str:
    """Such as "3 or 6"."""
    return " or ".join(map(str, widths[:3]))


def differ(numbers: np.ndarray, width: int) -> bool:
    """Whether the columns have different distributions; False as well where there are too few rows to tell."""
    below, noise = _shares(numbers, width)
    return bool(np.abs(below - below.mean(0)).max() > max(_DISTANCE, noise))


def _spread(numbers: np.ndarray, width: int) -> float:
    """How much the columns differ, 0 to 1."""
    below, _ = _shares(numbers, width)
    return float(np.abs(below - below.mean(0)).mean())


def _repeats(numbers: np.ndarray, part: int, width: int) -> bool:
    """Whether several points of ``part`` numbers stand in a row of ``width``: the columns differ, but not from those
    that many places on."""
    below, noise = _shares(numbers, width)
    parts = below.reshape(width // part, part, -1)
    alike = np.abs(parts - parts.mean(0)).max() < min(_DISTANCE, noise)
    return bool(alike) and differ(numbers, part)


def _shares(numbers: np.ndarray, width: int) -> Tuple[np.ndarray, float]:
    """(width, 9): the shares of each column below nine marks that all numbers have in common, and by how much these
    differ by chance; more than 1 where there are too few rows to tell."""
    rows = numbers.reshape(-1, width)
    if len(rows) > _ROWS:  # not every n-th, because a true width may go into n rows
        rows = rows[np.random.RandomState(0).randint(0, len(rows), _ROWS)]
    rows = rows[np.isfinite(rows).all(1)].astype(np.float64)
    if len(rows) < _FEWEST:
        return np.zeros((width, 9)), 2.0
    marks = np.quantile(rows, np.linspace(0.1, 0.9, 9))
    return (rows[:, :, None] <= marks).mean(0), _NOISE / len(rows) ** 0.5


def _is_ring(column: np.ndarray) -> bool:
    column = column[np.isfinite(column)]
    return bool(((column >= 0) & (column < MOST_RINGS) & (column == np.floor(column))).all())
