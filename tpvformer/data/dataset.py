"""The key frames of a split, one sample each.

The same (seed, epoch, index) gives the same sample, whatever the number of workers or ranks. With
balanced classes an epoch may draw a sample several times, each time with other augmentations.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from tpvformer.config import Config, DataConfig, GridConfig
from tpvformer.data.augment import Augmentation
from tpvformer.data.balance import box_classes, frame_shares
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.detection.targets import BoxMap, draw_targets
from tpvformer.data.formats import format_of, open_records
from tpvformer.data.frames import read_classes, read_frame
from tpvformer.data.images.cache import ImageCache
from tpvformer.data.images.letterbox import read_pictures
from tpvformer.data.nuscenes.boxes import require_boxes
from tpvformer.data.nuscenes.infos.cameras import given_to, note_on
from tpvformer.data.nuscenes.lidarseg import LabelFiles, label_table
from tpvformer.data.nuscenes.occupancy import HAS_MASKS, HAS_RAYS, OccupancyLabels
from tpvformer.data.nuscenes.ray_origins import ray_origins
from tpvformer.data.past import PastReader
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import Frame, Sample
from tpvformer.data.windows import Window, drives, grid2global
from tpvformer.errors import ConfigError, DataError

_SLACK = 1e-3  # seconds by which times, stored as floats, may differ from what is meant
SHUFFLE_SEED = 0  # fixed, so that every model and run has the same wrong poses
_NEIGHBOURS = 10  # samples that are tried in place of one that cannot be read


def open_frames(config: Config, split: str, past_seconds: Optional[float] = None) -> FrameDataset:
    """Return the frames of a split with the labels that ``config`` trains on, and with the past that its model reads.

    ``past_seconds`` limits how long before a sample its past frames may be; 0: no past is read. Raises ConfigError and
    DataError.
    """
    past = 0 if config.model.history is None else config.model.history.frames
    if past_seconds is not None:
        if config.model.history is None:
            raise ConfigError("past seconds are given, but the model has no model.history and reads no past")
        if not past_seconds >= 0:
            raise ConfigError(f"past seconds are {past_seconds:g}; expected 0, for no past, or more")
        past = past if past_seconds else 0
    drop_past = config.train.drop_past if past else 0.0
    box_map = None if config.model.detection is None else BoxMap.of(config.model)
    labels = bool(config.loss.segmentation) and split != "test"
    if split == "test":
        box_map = None
    data = FrameDataset(
        config.data, config.model.grid, split, config.train.seed, labels, True, box_map, past=past, drop_past=drop_past
    )
    if past_seconds is not None:
        data.limit_past(past_seconds)
    return data


class FrameDataset(Dataset[Sample]):
    """The frames of one split, in the order of its info file, its rig file, or SemanticKITTI's sequences.

    ``split`` "train" draws the augmentations the configuration asks for, "val" and "test" draw none. ``require_labels``
    False reads sets without lidarseg (all point labels are then 0), and so does ``cfg.occupancy`` where there is none:
    its dense labels replace those that points vote for. ``require_scans`` False reads samples whose scan is absent or
    empty, without points. With ``box_map`` samples hold the annotated boxes and the detection head's targets, and a set
    without boxes is refused; with ``boxes`` frames hold those that the set has. With ``past``, 1 to 3, samples hold the
    frames before them (windows.py), which the split "train" drops with probability ``drop_past``; a set where no frame
    has a past one is refused. Raises ConfigError and DataError.
    """

    def __init__(
        self,
        cfg: DataConfig,
        grid: GridConfig,
        split: str,
        seed: int,
        require_labels: bool = True,
        require_scans: bool = True,
        box_map: Optional[BoxMap] = None,
        boxes: bool = False,
        past: int = 0,
        drop_past: float = 0.0,
    ) -> None:
        self._to_class = cfg.raw_to_class
        self._cfg, self.grid, self._augment, self._seed = cfg, grid, split == "train", seed
        self.infos = cfg.infos(split)
        self.whole_scans = False  # True: a scan with non-finite points raises DataError
        self._require_scans, self._box_map = require_scans, box_map
        self._balanced = cfg.class_balanced and split == "train"
        self._records = open_records(cfg, split, boxes or box_map is not None or self._balanced)
        if box_map is not None:
            require_boxes(self._records, self.infos, cfg.root, cfg.version)
        self._box_classes = box_classes(self._records, grid) if self._balanced else None
        if self._balanced and not boxes and box_map is None:
            self._records = [dataclasses.replace(record, boxes=None) for record in self._records]
        self._label_files: List[str] = []
        self._pictures = ImageCache(cfg.image_cache).read if cfg.image_cache else read_pictures
        self._occupancy = OccupancyLabels(cfg) if cfg.occupancy and require_labels else None
        self._past = None
        if past:
            self._past = PastReader(self._records, cfg, grid, self._pictures, past, drop_past, self.infos)
        self._scene_mates: Dict[str, List[int]] = {}
        for i, record in enumerate(self._records):
            self._scene_mates.setdefault(record.scene, []).append(i)
        point_labels = self._occupancy is None or label_table(cfg.root, cfg.version) is not None
        if require_labels and not self._to_class and self._occupancy is None:
            raise ConfigError(
                f"data.label_map {cfg.label_map} has no raw labels of points, and data.occupancy is empty; add raw "
                "labels to its classes (docs/finetune.md)"
            )
        if require_labels and point_labels and self._to_class:
            self._label_files = self._find_labels()
        # The epoch is in shared memory: persistent workers hold copies of everything else and would not see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def _find_labels(self) -> List[str]:
        """The label file of each record: as it says itself, else as nuScenes' tables say; none where there is no scan.

        Raises DataError where no record has a scan.
        """
        scans = [record for record in self._records if record.scan]
        if not scans and not self._require_scans:
            return [""] * len(self._records)
        if not scans:
            raise DataError(
                f"{self.infos}: none of its {len(self._records)} records names a lidar scan, so no point has a label; "
                "expected scans and their labels, or ask for predictions alone"
            )
        lost = [record for record in scans if record.rig and not record.labels]
        if lost:
            raise DataError(
                f"{self.infos}: frame {lost[0].token} has lidar but no labels, as {len(lost)} of {len(scans)} have; "
                "add labels, or ask for predictions alone (tpvformer predict)"
            )
        if all(record.labels for record in scans):
            return [record.labels for record in self._records]
        tables = LabelFiles(self._cfg.root, self._cfg.version)
        return [r.labels or (tables.find(r.token, Path(r.scan).name) if r.scan else "") for r in self._records]

    @property
    def tokens(self) -> List[str]:
        return [record.token for record in self._records]

    @property
    def scans(self) -> List[str]:
        """Return the lidar file of each sample as in its record; empty for a sample without a scan."""
        return [record.scan for record in self._records]

    @property
    def scenes(self) -> List[str]:
        """Return the scene of each sample."""
        return [record.scene for record in self._records]

    @property
    def drives(self) -> List[List[int]]:
        """Return the samples of each scene in the order of time, as ``windows.drives`` does."""
        return drives(self._records)

    @property
    def timestamps(self) -> List[Optional[float]]:
        """Return the time of each sample in seconds; None where it is not known."""
        return [record.timestamp for record in self._records]

    @property
    def windows(self) -> List[Window]:
        """Return the past frames of each sample, newest first; all are empty without ``past``."""
        return [()] * len(self) if self._past is None else self._past.windows

    def shuffle_poses(self, seed: int = SHUFFLE_SEED) -> Tuple[int, float]:
        """Give the past of every sample wrong poses, as ``PastReader.shuffle_poses`` does, which says what is returned.

        Raises ConfigError where no past is read, and DataError for fewer than two samples with a past.
        """
        if self._past is None:
            raise ConfigError(
                "poses of past frames are to be shuffled, but no past is read; expected a model with model.history, "
                "and past seconds above 0 if they are given"
            )
        return self._past.shuffle_poses(seed)

    def limit_past(self, seconds: float) -> None:
        """Keep of each window the frames that are at most so many seconds older than the sample itself."""
        if self._past is not None:
            times = [time or 0.0 for time in self.timestamps]  # frames of a window have times
            self._past.windows = [
                tuple(old for old in window if times[now] - times[old] <= seconds + _SLACK)
                for now, window in enumerate(self._past.windows)
            ]

    @cached_property
    def shares(self) -> Optional[np.ndarray]:
        """Return how often an epoch draws each sample on average (balance.py), (samples,); None: once each.

        By the classes of boxes where all frames have boxes, otherwise by those of the points, whose label files are
        then read. Raises DataError where neither is known.
        """
        if not self._balanced:
            return None
        return frame_shares(self._point_classes() if self._box_classes is None else self._box_classes)

    def _point_classes(self) -> List[np.ndarray]:
        """Return the classes of the points of each frame, without those that metrics ignore."""
        if not self._label_files:
            raise DataError(
                f"{self.infos}: data.class_balanced needs boxes in all frames, or labels of their points, and finds "
                "neither; set it to false, or make the infos with boxes (tpvformer data infos)"
            )
        found = []
        for record, file in zip(self._records, self._label_files):
            held = read_classes(record, self._cfg.root, file, self._to_class) if file else np.zeros(0, np.int64)
            counted = np.isin(held, self._cfg.label_classes.evaluated) & (held != self._cfg.ignore_label)
            found.append(held[counted])
        return found

    @property
    def slots_used(self) -> int:
        """Return the number of camera embeddings that the samples need: the highest index plus one."""
        return max(max(record.slots, default=len(record.images) - 1) for record in self._records) + 1

    @property
    def embeddings(self) -> Dict[str, int]:
        """Return the camera embedding index of each camera name in the samples."""
        return given_to(self._records)

    @property
    def camera_note(self) -> str:
        """What is to be said about the cameras' names; empty where they are nuScenes'."""
        chosen = format_of(self.infos, self._cfg.format)
        return note_on(self.infos, self._records) if chosen.camera_names else ""

    @property
    def other_cameras(self) -> Optional[str]:
        """Describe the first record whose number of cameras differs from the first record's; None if all are equal."""
        first = self._records[0].camera_names
        for i, record in enumerate(self._records):
            if len(record.camera_names) != len(first):
                return (
                    f"record {i} (sample {record.token}) has {len(record.camera_names)} cameras "
                    f"({', '.join(record.camera_names)}), the first has {len(first)} ({', '.join(first)})"
                )
        return None

    @property
    def has_masks(self) -> bool:
        """Return whether the dense labels come with masks of the voxels that the cameras observe."""
        return self._occupancy is not None and self._cfg.occupancy in HAS_MASKS

    @property
    def has_points(self) -> bool:
        """Return whether any frame has a lidar scan."""
        return any(record.scan for record in self._records)

    @property
    def has_labels(self) -> bool:
        """Return whether the points have labels."""
        return bool(self._label_files)

    def __len__(self) -> int:
        return len(self._records)

    def boxes(self, index: int) -> Optional[Boxes]:
        """Return the annotated boxes of a sample in the grid's frame; None where they are unknown or not asked for."""
        record = self._records[index]
        if record.boxes is None or self.grid.frame == "lidar":
            return record.boxes
        return None if record.lidar2ego is None else record.boxes.transformed(record.lidar2ego)

    def grid2global(self, index: int) -> Optional[np.ndarray]:
        """Return the transform (4, 4) float64 from the grid's frame to the global one; None where it is not known."""
        return grid2global(self._records[index], self.grid.frame)

    def ego_place(self, index: int) -> np.ndarray:
        """Return where the ego frame's origin is, (x, y) in metres: in the global frame if ``grid2global`` knows it.

        Otherwise it is that in the grid's frame, and (0, 0) where the lidar's place on the vehicle is not known.
        """
        record = self._records[index]
        if record.ego2global is not None and self.grid2global(index) is not None:
            return record.ego2global[:2, 3]
        if self.grid.frame == "ego" or record.lidar2ego is None:
            return np.zeros(2)
        return np.linalg.inv(record.lidar2ego)[:2, 3]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which selects the augmentations. Call it between epochs."""
        self._epoch.fill_(epoch)

    def load_frame(self, index: int) -> Frame:
        """Read a sample as stored, before any transform."""
        label_file = self._label_files[index] if self.has_labels else None
        record = self._records[index]
        frame = read_frame(
            record, self._cfg.root, label_file, self._to_class, self._pictures, require_scan=self._require_scans
        )
        if self.whole_scans and frame.lost_points:
            raise DataError(
                f"sample {record.token}: {frame.lost_points} points of {record.scan} have coordinates that are not "
                "finite numbers; every point of the file needs a place, so copy it again"
            )
        if self._occupancy is None:
            return frame
        dense = self._occupancy.read(self._occupancy.find(record.token, Path(record.scan).name), record.token)
        if self._cfg.occupancy not in HAS_RAYS:
            return dataclasses.replace(frame, dense=dense)
        mates = [self._records[i] for i in self._scene_mates[record.scene]]
        return dataclasses.replace(frame, dense=dense, ray_origins=ray_origins(record, mates))

    def _random(self, *stream: int) -> np.random.RandomState:
        """Return the random generator for the augmentations of a sample in the current epoch."""
        return np.random.RandomState([self._seed % 2**32, int(self._epoch), *stream])

    def sample(self, index: int, augment: bool, draw: int = 0) -> Sample:
        """Return one sample, with or without the augmentations of the current epoch, for any split.

        ``draw`` counts how often the epoch drew the sample before; each draw is augmented in another way.
        """
        rng: Optional[np.random.RandomState] = None
        augmentation: Optional[Augmentation] = None
        if augment:
            rng = self._random(index, draw) if draw else self._random(index)
            if self._cfg.augment is not None:
                augmentation = Augmentation(self._cfg.augment, self.grid, self._random(index, draw, 1))
        sample = make_sample(self.load_frame(index), self._cfg, self.grid, rng, augmentation)
        if self._box_map is not None and sample.boxes is not None:
            sample.box_targets = draw_targets(sample.boxes, self._box_map)
        if self._past is not None:
            sample.past = self._past.read(index, sample, rng, augmentation)
        return sample

    def __getitem__(self, index: int) -> Sample:
        """Return a sample. With balanced classes index + k len(self) is its k-th further draw (samplers.py)."""
        draw = 0
        if self._balanced:
            draw, index = divmod(index, len(self))
        try:
            return self.sample(index, self._augment, draw)
        except (DataError, OSError) as err:
            # in an evaluation a replacement would count twice, and the scores would be those of a different set
            if not self._augment or self._cfg.on_bad_sample == "stop":
                raise
            return self._stand_in(index, str(err))

    def _stand_in(self, index: int, problem: str) -> Sample:
        """Return the next readable sample among the few that follow."""
        for other in range(index + 1, index + 1 + _NEIGHBOURS):
            with contextlib.suppress(DataError, OSError):
                sample = self.sample(other % len(self), self._augment)
                sample.replaced = " ".join(problem.split())
                return sample
        raise DataError(f"{problem}; nor can the {_NEIGHBOURS} samples after it be read")
