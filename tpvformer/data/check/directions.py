"""Compare camera directions, heights and order around the vehicle with the camera names.

All in a frame whose x points right, y forward and z up. Poses that were stored by another convention (a quaternion in
another order, the inverse) turn into directions that no car has, often up or down; the likeliest convention is named.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tpvformer.data.nuscenes.infos.cameras import CAMERA_ORDER
from tpvformer.geometry import quaternions, rotations

# where nuScenes' cameras look, degrees to the right of forward, in CAMERA_ORDER
NUSCENES_AZIMUTHS = (0, 55, -55, 180, -110, 110)
_OFF, _OFF_BY_WORD = 60.0, 75.0  # degrees from there, and from what words such as left say, that are worth a note
_STEEP = 45.0  # degrees above or below the horizontal
_ROLLED = 60.0  # degrees that an image is turned about the viewing direction
_STEREO = 30.0  # degrees between a left and a right camera that are a pair and look ahead
_GROUND = -0.05  # metres; a camera below is under the ground
_WORDS = re.compile(r"(front|forward|rear|back|left|right)+")
_WORD = re.compile(r"front|forward|rear|back|left|right")


class Mount(NamedTuple):
    """Hold how one camera is mounted."""

    name: str
    axes: np.ndarray  # (3, 3), columns: where the camera's x (right), y (down) and z (forward) point
    height: Optional[float]  # metres above the ground; None where that is not known

    @property
    def azimuth(self) -> float:
        """Return degrees to the right of forward."""
        return float(np.degrees(np.arctan2(self.axes[0, 2], self.axes[1, 2])))

    @property
    def elevation(self) -> float:
        """Return degrees above the horizontal."""
        return float(np.degrees(np.arcsin(np.clip(self.axes[2, 2], -1, 1))))

    @property
    def roll(self) -> float:
        """Degrees between what is up in the image and the vertical, as seen in the image."""
        return float(np.degrees(np.abs(np.arctan2(self.axes[2, 0], -self.axes[2, 1]))))


def remarks(mounts: Sequence[Mount], vehicle: Optional[np.ndarray] = None) -> List[str]:
    """A note for each camera that looks elsewhere than its name says, lies on its side or below the ground, and for an
    order around the vehicle that the names contradict.

    ``vehicle`` (3, 3) turns this frame into the one that poses are stored in, x forward and y left (None: they are
    stored in this one). Where names say nothing, only what most cameras have in common is worth a note.
    """
    expected = _expected(mounts)
    odd = sum(_is_odd(mount) for mount in mounts)
    notes = []
    for mount in mounts:
        direction = _direction(mount, expected.get(mount.name), 2 * odd > len(mounts))
        notes += [note for note in (_depth(mount), direction) if note]
    convention = _convention(mounts, expected, vehicle) if notes else ""
    return [*notes, convention] if convention else notes + _order(mounts, expected)


def _depth(mount: Mount) -> str:
    if mount.height is None or mount.height >= _GROUND:
        return ""
    return (
        f"{mount.name} lies {-mount.height:.2f} m below the ground; is its pose the inverse (vehicle to camera), or "
        "does the ego frame not begin on the ground?"
    )


def _direction(mount: Mount, expected: Optional[float], most_are_odd: bool) -> str:
    off = 0.0 if expected is None else _away(mount, expected)
    if off > _limit(mount.name):
        whose = "where nuScenes' looks" if mount.name in CAMERA_ORDER else "where its name says"
        return (
            f"{mount.name} looks {off:.0f} degrees away from {whose}; is x right, y forward and z up in the lidar "
            "frame, and x forward, y left and z up in the ego frame?"
        )
    if not _is_odd(mount) or (expected is None and not most_are_odd):
        return ""
    if abs(mount.elevation) > _STEEP:
        what = f"looks {abs(mount.elevation):.0f} degrees {'up' if mount.elevation > 0 else 'down'}"
    else:
        what = f"is turned by {mount.roll:.0f} degrees about its viewing direction, so that its image is not upright"
    return f"{mount.name} {what}; camera axes are x right, y down, z forward, and quaternions w, x, y, z"


def _is_odd(mount: Mount) -> bool:
    """Return whether the camera looks steeply up or down, or lies on its side."""
    return abs(mount.elevation) > _STEEP or mount.roll > _ROLLED


def _limit(name: str) -> float:
    return _OFF if name in CAMERA_ORDER else _OFF_BY_WORD


def _away(mount: Mount, expected: float) -> float:
    """Degrees between the viewing direction and the horizontal one at that azimuth."""
    wanted = np.array([np.sin(np.radians(expected)), np.cos(np.radians(expected)), 0])
    return float(np.degrees(np.arccos(np.clip(mount.axes[:, 2] @ wanted, -1, 1))))


def _expected(mounts: Sequence[Mount]) -> Dict[str, float]:
    """Return the azimuth in each camera name; names without a direction have none."""
    found = {mount.name: azimuth_of(mount.name) for mount in mounts}
    axes = {mount.name: mount.axes[:, 2] for mount in mounts}
    for name in list(found):
        twin = re.sub("left|LEFT|Left", _swapped, name)
        if twin == name or twin not in axes or name in CAMERA_ORDER:
            continue
        if axes[name] @ axes[twin] > np.cos(np.radians(_STEREO)):  # a stereo pair: left, right are positions
            found[name] = found[twin] = None
    return {name: azimuth for name, azimuth in found.items() if azimuth is not None}


def _swapped(found: "re.Match[str]") -> str:
    return {"left": "right", "LEFT": "RIGHT", "Left": "Right"}[found[0]]


def azimuth_of(name: str) -> Optional[float]:
    """Return degrees to the right of forward from a camera's name; None if it has no direction."""
    if name in CAMERA_ORDER:
        return float(NUSCENES_AZIMUTHS[CAMERA_ORDER.index(name)])
    tokens = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    words = {word for token in tokens if _WORDS.fullmatch(token) for word in _WORD.findall(token)}
    ahead, behind = bool(words & {"front", "forward"}), bool(words & {"rear", "back"})
    side = ("right" in words) - ("left" in words)
    if ahead and behind or {"left", "right"} <= words or not words:
        return None
    if side:
        return side * (55.0 if ahead else 110.0 if behind else 90.0)
    return 0.0 if ahead else 180.0


def _convention(mounts: Sequence[Mount], expected: Dict[str, float], vehicle: Optional[np.ndarray]) -> str:
    """The other convention by which all cameras would be level, upright, and look where names say; empty where there is
    none, or nothing is wrong with the present one."""

    def fit(found: Sequence[Mount]) -> bool:
        return not any(
            _is_odd(mount) or (mount.name in expected and _away(mount, expected[mount.name]) > _limit(mount.name))
            for mount in found
        )

    if len(mounts) < 2 or fit(mounts):  # one camera alone tells too little
        return ""
    for turn in (np.eye(3),) if vehicle is None else (vehicle, np.eye(3)):
        for what, change in _CONVENTIONS:
            if fit([mount._replace(axes=turn.T @ change(turn @ mount.axes)) for mount in mounts]):
                return f"with {what} all cameras are level and look where their names say; most likely that is it"
    return ""


def _reordered(axes: np.ndarray) -> np.ndarray:
    """The rotation whose quaternion is stored as x, y, z, w, of the one that comes of reading it as w, x, y, z."""
    return rotations(np.roll(quaternions(axes), 1))


def _yaw(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


_BODY = np.array(
    [[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]
)  # a camera's x right, y down, z forward in x forward, y left, z up
_CONVENTIONS: Tuple[Tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("quaternions read in the order x, y, z, w", _reordered),
    ("poses inverted (vehicle to camera instead of camera to vehicle)", np.transpose),
    ("camera axes taken as x forward, y left, z up", lambda axes: axes @ _BODY),
    ("camera axes taken as x right, y up, z backward", lambda axes: axes @ np.diag([1.0, -1, -1])),
    ("the vehicle's frame turned by 90 degrees to the left", lambda axes: _yaw(90) @ axes),
    ("the vehicle's frame turned by 90 degrees to the right", lambda axes: _yaw(-90) @ axes),
    ("the vehicle's frame turned by 180 degrees", lambda axes: _yaw(180) @ axes),
)


def _order(mounts: Sequence[Mount], expected: Dict[str, float]) -> List[str]:
    """A note where cameras follow each other around the vehicle in another order than their names say."""
    level = [mount for mount in mounts if mount.name in expected and abs(mount.elevation) <= _STEEP]
    first = {expected[mount.name]: mount for mount in reversed(level)}  # one for each direction
    named = [first[azimuth] for azimuth in sorted(first)]
    if len(named) < 3:
        return []
    steps = [(after.azimuth - mount.azimuth) % 360 for mount, after in zip(named, named[1:] + named[:1])]
    if round(sum(steps) / 360) == 1:
        return []
    found = sorted(named, key=lambda mount: mount.azimuth)
    return [
        f"clockwise around the vehicle the cameras are {', '.join(m.name for m in found)}; by their names they would "
        f"be {', '.join(m.name for m in named)}: are poses or names exchanged?"
    ]
