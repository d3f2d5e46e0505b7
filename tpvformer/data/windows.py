"""Order the frames of each scene, and find the window of each frame: the frames that were seen just before it.

The order is that of ``timestamp`` within ``scene``. Every layout of infos but KITTI has the time of a key frame, and
it stays right where a file holds a part of a set: ``prev`` and ``next`` (BEVFormer) then name frames that are absent.
``frame_idx`` (BEVFormer) is in few files, and sweeps are other files than key frames. None of these is read. Where
records name no scene, the log takes its place, whose scenes are further apart than a window reaches.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from tpvformer.data.record import Record
from tpvformer.errors import DataError

MOST = 3  # past frames of a window
LONGEST_GAP = 2.5  # seconds between two frames of a window
FASTEST = 60.0  # m/s: no road vehicle is faster
SLACK = 2.0  # metres by which a position may be wrong
_TOLERANCE = 0.02  # of a rotation's entries

Window = Tuple[int, ...]


def grid2global(record: Record, frame: str) -> Optional[np.ndarray]:
    """Return the transform (4, 4) float64 from the grid's ``frame``, "lidar" or "ego", to the global one.

    None where the record lacks a pose.
    """
    if record.ego2global is None or frame == "ego":
        return record.ego2global
    return None if record.lidar2ego is None else record.ego2global @ record.lidar2ego


def drives(records: Sequence[Record]) -> List[List[int]]:
    """Return the frames of each scene in the order of time, scenes in the order of their first record.

    Frames of one time, and those of a scene in which a frame has no time, are in the order of the records.
    """
    scenes: Dict[str, List[int]] = {}
    for i, record in enumerate(records):
        scenes.setdefault(record.scene, []).append(i)
    for frames in scenes.values():
        times = {i: records[i].timestamp for i in frames}
        if None not in times.values():
            frames.sort(key=lambda i: times[i] or 0.0)
    return list(scenes.values())


def find_windows(
    records: Sequence[Record], frame: str, most: int, source: str, longest_gap: float = LONGEST_GAP
) -> List[Window]:
    """Return the past frames of each frame, newest first, at most ``most``, as indices of ``records``.

    Raises DataError, which begins with ``source``, as ``predecessors`` does and where no frame has a past one.
    """
    before = predecessors(records, frame, source, longest_gap)
    windows: List[Window] = [()] * len(records)
    for frames in drives(records):
        for now in frames:
            last = before[now]
            if last is not None:
                windows[now] = (last, *windows[last])[:most]
    if not any(windows):
        raise DataError(_no_past(records, frame, source, longest_gap))
    return windows


def predecessors(
    records: Sequence[Record], frame: str, source: str, longest_gap: float = LONGEST_GAP
) -> List[Optional[int]]:
    """Return the frame just before each frame, as an index of ``records``; None where a window ends.

    That is at the border of a scene, at a gap of more than ``longest_gap`` seconds, at a time that does not increase,
    and at a frame without time or without pose in the grid's ``frame``. Raises DataError, which begins with ``source``,
    where a pose is no rigid motion, or the vehicle would be faster than FASTEST.
    """
    poses = [grid2global(record, frame) for record in records]
    _check_rigid(records, poses, source)
    found: List[Optional[int]] = [None] * len(records)
    for frames in drives(records):
        for before, now in zip(frames, frames[1:]):
            gap = _gap(records[before], records[now])
            first, second = poses[before], poses[now]
            if gap is None or not 0 < gap <= longest_gap or first is None or second is None:
                continue
            _check_speed(records[before], records[now], float(np.linalg.norm((second - first)[:3, 3])), gap, source)
            found[now] = before
    return found


def _gap(before: Record, now: Record) -> Optional[float]:
    """Return the seconds between two frames; None where a time is not known."""
    return None if before.timestamp is None or now.timestamp is None else now.timestamp - before.timestamp


def _check_rigid(records: Sequence[Record], poses: Sequence[Optional[np.ndarray]], source: str) -> None:
    known = [i for i, pose in enumerate(poses) if pose is not None]
    made = np.array([poses[i] for i in known]).reshape(-1, 4, 4)
    with np.errstate(all="ignore"):  # numbers that are not finite are no rotation either
        turns = made[:, :3, :3]
        error = np.abs(turns @ np.swapaxes(turns, 1, 2) - np.eye(3)).max((1, 2), initial=0)
        good = (error < _TOLERANCE) & (np.linalg.det(turns) > 0) & np.isfinite(made).all((1, 2))
    bad = np.flatnonzero(~good)
    if len(bad):
        raise DataError(
            f"{source}: the pose of frame {records[known[bad[0]]].token} (ego2global) is no rigid motion of finite "
            "numbers, which a temporal model needs; correct it or make the infos again"
        )


def _check_speed(before: Record, now: Record, metres: float, seconds: float, source: str) -> None:
    if metres > FASTEST * seconds + SLACK:
        raise DataError(
            f"{source}: frames {before.token} and {now.token} of scene {now.scene or '(unnamed)'} are {metres:.1f} m "
            f"apart after {seconds:.3f} s, but no vehicle drives faster than {FASTEST:g} m/s; correct the pose "
            "(ego2global) or the time of one of them, or give frames of different drives different scenes"
        )


def _no_past(records: Sequence[Record], frame: str, source: str, gap: float) -> str:
    lost = [sum(r.timestamp is None for r in records), sum(grid2global(r, frame) is None for r in records)]
    return (
        f"{source}: none of its {len(records)} frames has a past one, which a temporal model asks for: {lost[0]} have "
        f"no timestamp, {lost[1]} no pose (ego2global and, for a grid in the lidar's frame, lidar2ego), and neighbours "
        f"of a scene may be {gap:g} s apart; add what is missing (tpvformer data infos, docs/rig.md), or train without "
        "the past"
    )
