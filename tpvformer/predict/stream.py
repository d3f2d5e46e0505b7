"""Carry what a model with ``model.history`` remembers from one frame of a drive to the next.

Each frame is run once and reads what the frames before it left. ``Stream`` holds the state: two drives at once take two
streams, and nothing is kept in the model.
"""

from __future__ import annotations

import warnings
from typing import Callable, NamedTuple, Optional, Protocol, Set, Tuple, TypeVar

import numpy as np
import torch

from tpvformer.config import ModelConfig
from tpvformer.data.types import Frame
from tpvformer.data.windows import FASTEST, SLACK
from tpvformer.errors import ConfigError
from tpvformer.geometry import now_to_past
from tpvformer.model.history import PlaneHistory
from tpvformer.predict.remembered import Sight, View, view_of

Say = Callable[[str, str], None]  # receives the kind of a reset, and a line about it
MOST_METRES, MOST_DEGREES = 2.0, 15.0  # by which a camera of one rig differs between frames: the vehicle's own motion


class Memory(NamedTuple):
    """Hold what a frame leaves for the next one of its drive.

    ``planes``: the history as the frame sees it, itself included; ``grid2global`` (4, 4) float64 metres; ``timestamp``
    in seconds; ``centres`` and ``directions`` (N, 3): where the cameras are and look, lidar frame; ``views`` what the
    cameras of each of its frames saw, as many as ``planes`` holds.
    """

    planes: PlaneHistory
    grid2global: np.ndarray
    timestamp: float
    scene: str
    token: str
    camera_names: Tuple[str, ...]
    centres: np.ndarray
    directions: np.ndarray
    views: Tuple[View, ...]


class _Encoded(Protocol):
    history: Optional[PlaneHistory]


Encoded = TypeVar("Encoded", bound=_Encoded)


class Stream:
    """Carry the history of one drive, beginning with ``memory`` if it is given.

    A frame of another scene, of another rig (other cameras, or cameras elsewhere), one that is not later than the frame
    before, later by more than ``model.history.max_seconds``, or further away than a vehicle drives, begins anew: it is
    predicted as a first frame, and ``say`` is told. So is each frame without a pose or a time, which ``say`` is told
    once. Of a model without ``model.history`` every frame is a first one. Raises ConfigError for a memory that such a
    model cannot read.
    """

    def __init__(self, cfg: ModelConfig, say: Optional[Say] = None, memory: Optional[Memory] = None) -> None:
        if memory is not None and cfg.history is None:
            raise ConfigError("history is given, but the model has no model.history; leave it out")
        self._cfg, self._say, self.memory = cfg, say or (lambda kind, line: None), memory
        self.sight: Optional[Sight] = None  # what the last frame sees and its past saw; None where it read none
        self._told_unknown = False

    def step(self, frame: Frame, encode: Callable[[Optional[PlaneHistory]], Encoded]) -> Encoded:
        """Run ``encode`` with the history as ``frame`` sees it, None for a first frame; return its result.

        The result's ``history`` is carried on. An error of ``encode`` leaves the stream as it was.
        """
        seen = self.before(frame)
        encoded = encode(seen)
        self.after(frame, seen, encoded.history)
        return encoded

    def before(self, frame: Frame) -> Optional[PlaneHistory]:
        """Return the history as ``frame`` sees it, None for a first frame; the stream does not advance."""
        return None if self._cfg.history is None else self._before(frame, _grid2global(frame, self._cfg.grid.frame))

    def after(self, frame: Frame, seen: Optional[PlaneHistory], history: Optional[PlaneHistory]) -> None:
        """Advance to ``frame``, which was run with ``seen`` and left ``history``."""
        if self._cfg.history is None:
            return
        last, pose = self.memory, _grid2global(frame, self._cfg.grid.frame)
        self.memory = self.sight = None
        if history is not None and pose is not None and frame.timestamp is not None:
            names, (centres, directions) = tuple(frame.camera_names), _places(frame.lidar2img)
            now = view_of(frame, self._cfg.grid, pose, frame.timestamp)
            past = () if seen is None or last is None else last.views
            views = (now, *past)[: history.planes.shape[1]]
            self.memory = Memory(
                history,
                pose,
                frame.timestamp,
                frame.scene,
                frame.token,
                names,
                centres,
                directions,
                views,
            )
            read = tuple(v for v in past if frame.timestamp - v.timestamp <= self._cfg.history.max_seconds)
            self.sight = Sight(now, read) if read else None

    def _before(self, frame: Frame, pose: Optional[np.ndarray]) -> Optional[PlaneHistory]:
        """Return the history as the frame sees it."""
        if pose is None or frame.timestamp is None:
            if not self._told_unknown:
                lost = "pose (ego2global)" if pose is None else "timestamp"
                self._say(
                    "unknown",
                    f"frame {frame.token} has no {lost}: frames without are predicted as first ones of a drive",
                )
            self._told_unknown = True
            return None
        last = self.memory
        if last is None:
            return None
        gap = frame.timestamp - last.timestamp
        kind, why = self._reset(last, frame, pose, gap)
        if kind:
            self._say(kind, f"frame {frame.token} {why}: the stream begins anew")
            return None
        motion = torch.from_numpy(now_to_past(pose, last.grid2global).astype(np.float32))
        return last.planes.moved(motion[None], torch.tensor([gap]))

    def _reset(self, last: Memory, frame: Frame, pose: np.ndarray, gap: float) -> Tuple[str, str]:
        """Return kind and words of what separates a frame from the last one; both empty where nothing does."""
        assert self._cfg.history is not None
        most = self._cfg.history.max_seconds
        if frame.scene != last.scene:
            return "scene", f"is of scene {frame.scene or '(unnamed)'}, {last.token} of {last.scene or '(unnamed)'}"
        if _other_rig(last, frame):
            return "rig", f"has other cameras than {last.token}, or cameras in other places"
        if not gap > 0:
            return "older", f"is not later than {last.token}, by {-gap:.3f} s"
        if gap > most:
            return "gap", f"is {gap:.3f} s after {last.token}, more than model.history.max_seconds={most:g}"
        metres = float(np.linalg.norm((pose - last.grid2global)[:3, 3]))
        if metres > FASTEST * gap + SLACK:
            return "jump", f"is {metres:.1f} m away from {last.token} after {gap:.3f} s, faster than any vehicle"
        return "", ""


def warn_once() -> Say:
    """Return what issues a UserWarning for the first reset of each kind."""
    told: Set[str] = set()

    def say(kind: str, line: str) -> None:
        if kind not in told:
            told.add(kind)
            warnings.warn(line, stacklevel=2)

    return say


def _grid2global(frame: Frame, grid_frame: str) -> Optional[np.ndarray]:
    """Return the transform (4, 4) float64 from the grid's frame to the global one; None where it is not known."""
    pose = frame.lidar2global
    if pose is not None and grid_frame == "ego":
        pose = None if frame.lidar2ego is None else pose @ np.linalg.inv(frame.lidar2ego)
    return pose if pose is not None and np.isfinite(pose).all() else None


def _places(lidar2img: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Return where cameras (N, 4, 4) are, metres, and the unit vectors along which they look, (N, 3) each."""
    centres = np.linalg.solve(lidar2img[:, :3, :3], -lidar2img[:, :3, 3:])[..., 0]
    return centres, lidar2img[:, 2, :3] / np.linalg.norm(lidar2img[:, 2, :3], axis=1, keepdims=True)


def _other_rig(last: Memory, frame: Frame) -> bool:
    if tuple(frame.camera_names) != last.camera_names:
        return True
    centres, directions = _places(frame.lidar2img)
    turned = (directions * last.directions).sum(1) < np.cos(np.radians(MOST_DEGREES))
    return bool(turned.any() or (np.linalg.norm(centres - last.centres, axis=1) > MOST_METRES).any())
