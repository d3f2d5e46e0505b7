"""The motion between two frames of a vehicle, in float64."""

from __future__ import annotations

import numpy as np

from tpvformer.geometry import now_to_past


def motion(degrees: float, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1]])


def test_movement_between_two_frames() -> None:
    """Positions of a map, kilometres from its origin; many frames at once."""
    place = motion(70.0)
    place[:3, 3] = 1.0e6, -2.0e6, 30.0
    step = motion(9.0, 0.5, 3.0, 0.1)
    now = place @ step  # E_now = E_past step, so that points of now are step's points of the past
    np.testing.assert_allclose(now_to_past(now, place), step, atol=1e-8)
    np.testing.assert_allclose(now_to_past(np.stack([now, place]), place), np.stack([step, np.eye(4)]), atol=1e-8)
    point = np.array([2.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(place @ now_to_past(now, place) @ point, now @ point, rtol=1e-12)
