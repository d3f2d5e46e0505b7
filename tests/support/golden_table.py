"""Rows of comparisons with recorded numbers, and the tolerances they are held to."""

from __future__ import annotations

from typing import List

import numpy as np

FORWARD, LOSS, GRADIENT, TRAJECTORY, TIE = 2e-5, 2e-6, 1e-3, 2e-3, 1e-5


class Table:
    """Rows of comparisons; remembers whether any failed."""

    def __init__(self) -> None:
        self.failed: List[str] = []
        print(f"{'tensor':78s} {'max abs':>10s} {'/ std':>10s} {'tolerance':>10s}")

    def row(self, name: str, error: float, relative: float, tolerance: float, ok: bool) -> None:
        print(f"{name:78s} {error:10.2e} {relative:10.2e} {tolerance:10.1e} {'ok' if ok else 'FAIL'}")
        if not ok:
            self.failed.append(name)

    def forward(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        if ours.shape != theirs.shape:
            print(f"{name:78s} shape {ours.shape} instead of {theirs.shape} FAIL")
            self.failed.append(name)
            return
        difference = np.abs(ours.astype(np.float64) - theirs)
        scaled = difference / np.maximum(1, np.abs(theirs))
        self.row(name, difference.max(), difference.max() / (theirs.std() + 1e-30), FORWARD, scaled.max() <= FORWARD)

    def equal(self, name: str, wrong: int) -> None:
        self.row(name, wrong, wrong, 0, wrong == 0)

    def gradient(self, name: str, ours: np.ndarray, theirs: np.ndarray, floor: float) -> None:
        """Relative L2 distance; ``floor`` is the size below which a gradient is rounding noise."""
        distance = float(np.linalg.norm(ours.astype(np.float64) - theirs))
        size = float(np.linalg.norm(theirs.astype(np.float64)))
        relative = distance / max(size, floor)
        self.row(name, float(np.abs(ours - theirs).max()), relative, GRADIENT, relative <= GRADIENT)

    def trajectory(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        relative = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        self.row(name, float(np.abs(ours - theirs).max()), relative, TRAJECTORY, relative <= TRAJECTORY)

    def scalar(self, name: str, ours: float, theirs: float, tolerance: float, floor: float = 0.0) -> None:
        error = abs(ours - theirs)
        relative = error / max(abs(theirs), floor, 1e-30)
        self.row(name, error, relative, tolerance, relative <= tolerance)


def report(table: Table) -> int:
    if table.failed:
        print(f"\n{len(table.failed)} FAILED: {', '.join(table.failed[:8])}")
        return 1
    print("\nall within tolerance")
    return 0
