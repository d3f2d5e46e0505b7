"""Data set, order of samples over epochs and ranks, batches.

The same (seed, epoch, index) gives the same sample whatever the number of workers or ranks; the same seed gives the
same global batches whatever the number of ranks they are spread over.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tpvformer.config import ConfigError, DataConfig, GridConfig
from tpvformer.data.lidarseg import LabelFiles
from tpvformer.data.nuscenes import load_infos, read_frame
from tpvformer.data.occupancy import HAS_MASKS, OccupancyLabels
from tpvformer.data.origins import ray_origins
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import Batch, DataError, Frame, Sample
from tpvformer.labels import raw_to_class


class NuScenesDataset(Dataset[Sample]):
    """The key frames of one split, in the order of its info pickle.

    ``split`` "train" draws the augmentations the configuration asks for, "val" draws none. ``require_labels`` False
    reads sets without lidarseg (all point labels are then 0), and so does ``cfg.occupancy`` where there is none: its
    dense labels replace those that points vote for. Raises ConfigError and DataError.
    """

    def __init__(self, cfg: DataConfig, grid: GridConfig, split: str, seed: int, require_labels: bool = True) -> None:
        if split not in ("train", "val"):
            raise ConfigError(f"split is {split!r}; expected 'train' or 'val'")
        try:
            self._to_class = raw_to_class(cfg.label_map)
        except ValueError as err:
            raise ConfigError(str(err)) from err
        self._cfg, self._grid, self._augment, self._seed = cfg, grid, split == "train", seed
        self._records = load_infos(cfg.train_infos if split == "train" else cfg.val_infos)
        self._label_files: List[str] = []
        self._occupancy = OccupancyLabels(cfg) if cfg.occupancy and require_labels else None
        self._scene_mates: Dict[str, List[int]] = {}
        for i, record in enumerate(self._records):
            self._scene_mates.setdefault(record.scene, []).append(i)
        point_labels = self._occupancy is None or Path(cfg.root, cfg.version, "lidarseg.json").is_file()
        if require_labels and point_labels:
            tables = LabelFiles(cfg.root, cfg.version)
            self._label_files = [tables.find(r.token, Path(r.scan).name) for r in self._records]
        # Shared memory, because workers that outlive an epoch hold their own copy of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def tokens(self) -> List[str]:
        return [record.token for record in self._records]

    @property
    def scenes(self) -> List[str]:
        """The scene of each sample."""
        return [record.scene for record in self._records]

    @property
    def has_masks(self) -> bool:
        """Whether dense labels say what the cameras observe."""
        return self._occupancy is not None and self._cfg.occupancy in HAS_MASKS

    @property
    def has_labels(self) -> bool:
        return bool(self._label_files)

    def __len__(self) -> int:
        return len(self._records)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the augmentations drawn from now on; to be called between epochs."""
        self._epoch.fill_(epoch)

    def load_frame(self, index: int) -> Frame:
        """The sample as stored, before any transform."""
        label_file = self._label_files[index] if self.has_labels else None
        record = self._records[index]
        frame = read_frame(record, self._cfg.root, label_file, self._to_class)
        if self._occupancy is not None:
            path = self._occupancy.find(record.token, Path(record.scan).name)
            frame.dense = self._occupancy.read(path, record.token)
            mates = [self._records[i] for i in self._scene_mates[record.scene]]
            frame.ray_origins = ray_origins(record, mates)
        return frame

    def _random(self, index: int) -> np.random.RandomState:
        """The stream that the augmentations of a sample are drawn from in the present epoch."""
        return np.random.RandomState([self._seed % 2**32, int(self._epoch), index])

    def sample(self, index: int, augment: bool) -> Sample:
        """One example, with or without the augmentations of the present epoch, whatever the split."""
        rng = self._random(index) if augment else None
        return make_sample(self.load_frame(index), self._cfg, self._grid, rng)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, self._augment)


class TrainSampler(Sampler[int]):
    """A new order each epoch, dealt out to the ranks like cards, so that the union of the ranks' k-th batches is the
    k-th batch of a single rank with the same global batch. The remainder of the deal is left out."""

    def __init__(self, dataset: NuScenesDataset, rank: int, world_size: int, seed: int) -> None:
        self._dataset, self._rank, self._world_size, self._seed, self._epoch = dataset, rank, world_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and, in the data set, the augmentations of the epoch about to be read."""
        self._epoch = epoch
        self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._dataset) // self._world_size

    def __iter__(self) -> Iterator[int]:
        order = np.random.RandomState([self._seed % 2**32, self._epoch]).permutation(len(self._dataset))
        return iter(order[self._rank :: self._world_size][: len(self)].tolist())


class ValSampler(Sampler[int]):
    """Every sample exactly once over all ranks, in order; some ranks get one sample less than others."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self._mine = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of all; a view where there is but one, as images take 26 MB a sample."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


def _stack_drawn(tensors: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    """The same of what was drawn for samples, None where nothing was."""
    drawn = [tensor for tensor in tensors if tensor is not None]
    return _stack(drawn) if drawn else None


def collate(samples: Sequence[Sample], ignore_label: int, pin_device: str = "") -> Batch:
    """Samples to a Batch; shorter point and voxel lists are padded. Raises DataError where image shapes differ."""
    for other in samples[1:]:
        if other.images.shape != samples[0].images.shape:
            raise DataError(
                f"samples {samples[0].token} and {other.token} have images of shapes {tuple(samples[0].images.shape)} "
                f"and {tuple(other.images.shape)}; a batch needs one, so rescale the images or set data.batch_size=1"
            )
    origins = [s.ray_origins for s in samples if s.ray_origins is not None]
    return Batch(
        tokens=[s.token for s in samples],
        images=_stack([s.images for s in samples]),
        photometric=_stack_drawn([s.photometric for s in samples]),
        keep_rows=_stack_drawn([s.keep_rows for s in samples]),
        keep_columns=_stack_drawn([s.keep_columns for s in samples]),
        lidar2img=_stack([s.lidar2img for s in samples]),
        grid_index=_pad([s.grid_index for s in samples], 0),
        point_labels=_pad([s.point_labels for s in samples], ignore_label),
        point_lengths=torch.tensor([len(s.point_labels) for s in samples]),
        voxel_labels=_stack([s.voxel_labels for s in samples]),
        voxels=_pad([s.voxels for s in samples], 0),
        voxel_lengths=torch.tensor([len(s.voxels) for s in samples]),
        point_voxel=_pad([s.point_voxel for s in samples], 0),
        voxel_mask=_stack_drawn([s.voxel_mask for s in samples]),
        ray_origins=_pad(origins, 0) if origins else None,
        ray_lengths=[len(o) for o in origins],
        pin_device=pin_device,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # a forked worker has none of the threads OpenCV believes in, and each worker is one core


def make_loader(
    dataset: NuScenesDataset,
    cfg: DataConfig,
    rank: int,
    world_size: int,
    train: bool,
    seed: int,
    pin_memory: bool = False,
    pin_memory_device: str = "",
) -> DataLoader:
    """Batches of ``cfg.batch_size`` for one rank; call ``loader.sampler.set_epoch`` before each training epoch.

    Training drops the last incomplete batch; validation keeps it. Raises DataError where no training batch is whole.
    """
    if train and len(dataset) < cfg.batch_size * world_size:
        raise DataError(
            f"{cfg.train_infos}: {len(dataset)} training samples do not fill one batch of {cfg.batch_size} on each of "
            f"{world_size} ranks; set data.batch_size lower or use fewer ranks"
        )
    sampler = TrainSampler(dataset, rank, world_size, seed) if train else ValSampler(len(dataset), rank, world_size)
    return DataLoader(
        dataset,
        batch_size=cfg.batch_size,
        sampler=sampler,
        num_workers=cfg.workers,
        collate_fn=partial(collate, ignore_label=cfg.ignore_label, pin_device=pin_memory_device),
        drop_last=train,
        pin_memory=pin_memory,
        pin_memory_device=pin_memory_device,
        persistent_workers=cfg.workers > 0,
        worker_init_fn=_start_worker,
    )
