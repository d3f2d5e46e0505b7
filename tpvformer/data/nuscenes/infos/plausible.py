"""Find calibrations that are finite but implausible: transposed or inverted matrices, other units."""

from __future__ import annotations

import numpy as np

FAR = 15.0  # metres between a camera and the lidar, beyond which a note is printed
FARTHEST = 100.0  # metres between a camera and the lidar, beyond which the calibration is refused
_SHORTEST = 3.0  # pixels: a shorter focal length is most likely a fraction of the image's size


def intrinsics_problem(matrix: np.ndarray) -> str:
    """Return why the (3, 3) matrix is not [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels; "" where it is."""
    if not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        return ""  # the check of the projection finds these
    if matrix[2].tolist() != [0, 0, 1] or matrix[1, 0] != 0:
        other = matrix[:, 2].tolist() == [0, 0, 1]
        return "is transposed" if other else "is no [[fx, s, cx], [0, fy, cy], [0, 0, 1]]"
    fx, fy = matrix[0, 0], matrix[1, 1]
    if fx < 0 or fy < 0:
        return f"has the focal lengths {fx:g} and {fy:g}, where numbers above 0 belong"
    if max(fx, fy) < _SHORTEST:
        return f"has the focal lengths {fx:g} and {fy:g}, which are no pixels (shares of the image's size?)"
    return ""


def distances(lidar2img: np.ndarray) -> np.ndarray:
    """Return the metres (...) between lidar and camera of invertible projections (..., 4, 4)."""
    with np.errstate(all="ignore"):
        centres = np.linalg.solve(lidar2img[..., :3, :3], -lidar2img[..., :3, 3:])[..., 0]
        return np.linalg.norm(centres, axis=-1)


def too_far(lidar2img: np.ndarray) -> np.ndarray:
    """Return (...) bool: which cameras are farther than FARTHEST from the lidar."""
    return np.asarray(distances(lidar2img) > FARTHEST)


def far_text(distance: float) -> str:
    """Return the end of the message about a camera that is too far from the lidar."""
    return (
        f"lies {distance:.0f} m away from the lidar; expected metres on one vehicle (are these millimetres, or places "
        "on a map?)"
    )
