"""Read the past frames of a sample: the frames of its window as the network is shown them, without points or labels."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.augment import Augmentation, augmented_frame, augmented_motion
from tpvformer.data.frames import Pictures, read_views
from tpvformer.data.record import Record
from tpvformer.data.transforms import frame_of_grid, make_views
from tpvformer.data.types import PastSample, Sample
from tpvformer.data.windows import MOST, find_windows, grid2global
from tpvformer.errors import ConfigError, DataError
from tpvformer.geometry import now_to_past


class PastReader:
    """Read the ``past`` frames before each frame, 1 to MOST, of which training drops all with probability ``drop``.

    Raises ConfigError for numbers out of range, and DataError as ``find_windows`` does.
    """

    def __init__(
        self,
        records: Sequence[Record],
        cfg: DataConfig,
        grid: GridConfig,
        pictures: Pictures,
        past: int,
        drop: float,
        source: str,
    ) -> None:
        if not 1 <= past <= MOST or not 0 <= drop <= 1:
            raise ConfigError(
                f"{past} past frames, dropped with probability {drop:g}; expected 1 to {MOST}, and a share from 0 to 1"
            )
        self._records, self._cfg, self._grid, self._pictures = records, cfg, grid, pictures
        self._past, self._drop = past, drop
        self._source = source
        self.windows = find_windows(records, grid.frame, past, source)
        self._giver: Dict[int, int] = {}  # of each frame with a past, whose motion it has; empty: its own

    def read(
        self,
        index: int,
        now: Sample,
        rng: Optional[np.random.RandomState],
        augmentation: Optional[Augmentation] = None,
    ) -> Tuple[PastSample, ...]:
        """Return the past of sample ``now``, newest first. Raises DataError where an image cannot be read.

        ``rng`` is the generator that drew the augmentations of ``now``: afterwards it draws whether the past is
        dropped, then the augmentations of each past frame by itself, so those of ``now`` are what they are without a
        past. None drops nothing and draws nothing. ``augmentation`` is that of ``now``: what moves its scene moves the
        past alike.
        """
        dropped = rng is not None and rng.random_sample() < self._drop
        found: List[PastSample] = []
        newer = index
        for older in () if dropped else self.windows[index]:
            found.append(self._read(index, newer, older, rng, augmentation))
            newer = older
        return (*found, *[_absent(now)] * (self._past - len(found)))

    def _read(
        self,
        index: int,
        newer: int,
        older: int,
        rng: Optional[np.random.RandomState],
        augmentation: Optional[Augmentation],
    ) -> PastSample:
        record = self._records[older]
        images, lidar2img, _ = read_views(record, self._cfg.root, self._pictures)
        matrix = None if augmentation is None else augmentation.matrix
        lidar2grid = augmented_frame(frame_of_grid(record, self._grid), matrix)
        views = make_views(images, lidar2img, lidar2grid, self._cfg, rng, augmentation)
        return PastSample(
            token=record.token,
            **views._asdict(),
            camera_slots=torch.tensor(record.slots) if record.slots else None,
            now2past=torch.from_numpy(self.motion(index, older, matrix).astype(np.float32)),
            seconds=torch.tensor(self.seconds(index, older)),
            motion=torch.from_numpy(self.motion(newer, older, matrix).astype(np.float32)),
            gap=torch.tensor(self.seconds(newer, older)),
            valid=torch.tensor(True),
        )

    def shuffle_poses(self, seed: int) -> Tuple[int, float]:
        """Give every frame with a past the motion of another one, by a seeded draw, of another scene where possible.

        Times and images stay. Return the number of these frames, and the mean distance in metres between the places
        where the frame before is and where it is put. Raises DataError for fewer than two frames with a past.
        """
        moving = [i for i, window in enumerate(self.windows) if window]
        if len(moving) < 2:
            raise DataError(
                f"{self._source}: {len(moving)} of its {len(self.windows)} frames have a past that is read, so no "
                "motions can be exchanged; expected two or more"
            )
        drawn = np.random.RandomState(seed).permutation(moving).tolist()
        order = sorted(drawn, key=lambda i: self._records[i].scene)
        half = len(order) // 2  # no scene reaches so far, unless it has more than half of the frames
        self._giver = dict(zip(order, order[half:] + order[:half]))
        apart = [self._step(i) - self._step(giver) for i, giver in self._giver.items()]
        return len(moving), float(np.linalg.norm(np.array(apart)[:, :3, 3], axis=1).mean())

    def motion(self, now: int, past: int, matrix: Optional[np.ndarray] = None) -> np.ndarray:
        """Return now2past (4, 4) float64 between the grids of two frames of a window, both augmented by ``matrix``.

        It is wrong after ``shuffle_poses``.
        """
        if not self._giver:
            return augmented_motion(self._true_motion(now, past), matrix)
        moved, newer = np.eye(4), now
        while newer != past:
            moved, newer = self._step(self._giver[newer]) @ moved, self.windows[newer][0]
        return augmented_motion(moved, matrix)

    def _step(self, index: int) -> np.ndarray:
        """Return the true motion of a frame with a past, from its grid to that of the frame before it."""
        return self._true_motion(index, self.windows[index][0])

    def _true_motion(self, now: int, past: int) -> np.ndarray:
        poses = [grid2global(self._records[i], self._grid.frame) for i in (now, past)]
        assert poses[0] is not None and poses[1] is not None, "frames of a window have poses"
        return now_to_past(poses[0], poses[1])

    def seconds(self, now: int, past: int) -> float:
        """Return the seconds from one frame of a window to another."""
        times = [self._records[i].timestamp for i in (now, past)]
        assert times[0] is not None and times[1] is not None, "frames of a window have times"
        return times[0] - times[1]


def _absent(now: Sample) -> PastSample:
    """Return what stands for a past frame that does not exist."""
    return PastSample(
        token=now.token,
        images=now.images,
        photometric=now.photometric,
        keep_rows=now.keep_rows,
        keep_columns=now.keep_columns,
        crops=now.crops,
        grid2img=now.grid2img,
        image_shape=now.image_shape,
        camera_slots=now.camera_slots,
        now2past=torch.eye(4),
        seconds=torch.tensor(0.0),
        motion=torch.eye(4),
        gap=torch.tensor(0.0),
        valid=torch.tensor(False),
    )
