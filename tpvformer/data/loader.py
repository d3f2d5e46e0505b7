"""Collate samples into batches, which worker processes read ahead."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from functools import partial
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union
from weakref import WeakSet

import torch  # before OpenCV: see "static TLS" in docs/ascend.md
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

# isort: split
import cv2

from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.targets import Targets
from tpvformer.data.samplers import SceneSampler, TrainSampler, ValSampler
from tpvformer.data.types import Batch, PastBatch, PastSample, Sample
from tpvformer.errors import DataError


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors; return a view if there is only one, because the images of a sample take 26 MB."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


def _stack_drawn(tensors: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    """Stack the augmentation parameters of the samples; None if none were drawn."""
    drawn = [tensor for tensor in tensors if tensor is not None]
    return _stack(drawn) if drawn else None


def _stack_slots(samples: Union[Sequence[Sample], Sequence[PastSample]]) -> Optional[Tensor]:
    """Stack the camera embedding indices; None if all samples use the first N in order."""
    if all(sample.camera_slots is None for sample in samples):
        return None
    return _stack([torch.arange(len(s.images)) if s.camera_slots is None else s.camera_slots for s in samples])


ListRows = Callable[[Tensor, Tuple[int, int]], Tuple[Tensor, List[int]]]


def collate(
    samples: Sequence[Sample], ignore_label: int, pin_device: str = "", list_rows: Optional[ListRows] = None
) -> Batch:
    """Collate samples into a Batch; pad shorter point and voxel lists. Raises DataError if image shapes differ.

    ``list_rows`` makes ``query_rows`` and ``row_counts`` of grid2img (B,N,4,4) and the network input's (h,w).
    """
    _refuse_other_shapes(samples)
    grid2img = _stack([s.grid2img for s in samples])
    rows, counts = (None, []) if list_rows is None else list_rows(grid2img, samples[0].image_shape)
    origins = [s.ray_origins for s in samples if s.ray_origins is not None]
    return Batch(
        tokens=[s.token for s in samples],
        images=_stack([s.images for s in samples]),
        photometric=_stack_drawn([s.photometric for s in samples]),
        keep_rows=_stack_drawn([s.keep_rows for s in samples]),
        keep_columns=_stack_drawn([s.keep_columns for s in samples]),
        crops=_stack_drawn([s.crops for s in samples]),
        grid2img=grid2img,
        query_rows=rows,
        row_counts=counts,
        grid_index=_pad([s.grid_index for s in samples], 0),
        point_labels=_pad([s.point_labels for s in samples], ignore_label),
        point_lengths=torch.tensor([len(s.point_labels) for s in samples]),
        voxel_labels=_stack([s.voxel_labels for s in samples]),
        voxel_coords=_pad([s.voxel_coords for s in samples], 0),
        voxel_lengths=torch.tensor([len(s.voxel_coords) for s in samples]),
        point2voxel=_pad([s.point2voxel for s in samples], 0),
        voxel_mask=_stack_drawn([s.voxel_mask for s in samples]),
        ray_origins=_pad(origins, 0) if origins else None,
        camera_slots=_stack_slots(samples),
        ray_lengths=[len(o) for o in origins],
        replaced=[s.replaced for s in samples if s.replaced],
        boxes=[s.boxes for s in samples] if any(s.boxes is not None for s in samples) else [],
        past=[_collate_past(frames, list_rows) for frames in zip(*(s.past for s in samples))],
        pin_device=pin_device,
        **_stack_targets([s.box_targets for s in samples if s.box_targets is not None]),
    )


def _refuse_other_shapes(samples: Union[Sequence[Sample], Sequence[PastSample]]) -> None:
    """Raise DataError if image shapes differ."""
    for other in samples[1:]:
        if other.images.shape != samples[0].images.shape:
            raise DataError(
                f"samples {samples[0].token} and {other.token} have images of shapes {tuple(samples[0].images.shape)} "
                f"and {tuple(other.images.shape)}; a batch needs one, so rescale the images or set data.batch_size=1"
            )


def _collate_past(frames: Sequence[PastSample], list_rows: Optional[ListRows]) -> PastBatch:
    """Collate one past frame of each sample."""
    _refuse_other_shapes(frames)
    grid2img = _stack([f.grid2img for f in frames])
    rows, counts = (None, []) if list_rows is None else list_rows(grid2img, frames[0].image_shape)
    return PastBatch(
        tokens=[f.token for f in frames],
        images=_stack([f.images for f in frames]),
        photometric=_stack_drawn([f.photometric for f in frames]),
        keep_rows=_stack_drawn([f.keep_rows for f in frames]),
        keep_columns=_stack_drawn([f.keep_columns for f in frames]),
        crops=_stack_drawn([f.crops for f in frames]),
        grid2img=grid2img,
        camera_slots=_stack_slots(frames),
        query_rows=rows,
        row_counts=counts,
        now2past=_stack([f.now2past for f in frames]),
        seconds=_stack([f.seconds for f in frames]),
        motion=_stack([f.motion for f in frames]),
        gap=_stack([f.gap for f in frames]),
        valid=_stack([f.valid for f in frames]),
    )


def _stack_targets(targets: Sequence[Targets]) -> Dict[str, Any]:
    """Return the fields of a Batch that the detection head learns from; nothing without targets."""
    if not targets:
        return {}
    heatmaps, cells, labels, values = ([torch.from_numpy(part) for part in column] for column in zip(*targets))
    return {
        "heatmaps": _stack(heatmaps),
        "box_cells": _pad(cells, 0),
        "box_labels": _pad(labels, -1),
        "box_values": _pad(values, 0),
    }


_LOCK_SECONDS = 5.0  # workers hold the lock for microseconds


class Loader(DataLoader):
    """Load batches; always raise a RuntimeError about a "DataLoader worker" when a worker has died.

    PyTorch raises that error only if it notices the death first. If the training process requests a tensor from a dead
    worker, PyTorch raises EOFError or a ConnectionError instead, which this class converts.
    """

    def __iter__(self) -> Any:
        batches: Any = super().__iter__()
        if self.num_workers == 0:
            return batches
        if not isinstance(batches._workers_done_event, _DoneEvent):
            batches._workers_done_event = _DoneEvent(batches._workers_done_event)
            _running.add(batches)
        return heard(batches)


def heard(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches and convert errors as Loader describes. Errors raised inside a worker pass unchanged.

    If a worker has died by then, the others are ended too when the caller stops reading, whatever the reason.
    """
    try:
        while True:
            try:
                batch = next(batches, None)
            except (EOFError, OSError) as err:
                if "DataLoader worker process" in str(err):
                    raise
                _end_workers(batches)
                said = f"{type(err).__name__} {err}".rstrip()
                raise RuntimeError(f"a DataLoader worker is gone ({said})") from err
            if batch is None:
                return
            yield batch
    finally:
        _end_all_if_one_died(batches)


class _DoneEvent:
    """The event by which the training process ends the workers; here it waits a limited time for the event's lock.

    All workers take that lock. A worker that is killed while it holds the lock never releases it, and PyTorch would
    wait for it without end, when it asks whether the event is set and when it sets it.
    """

    def __init__(self, event: Any) -> None:
        self._event, self._is_set = event, False

    def is_set(self) -> bool:
        return self._is_set  # no other process sets it

    def set(self) -> None:
        self._is_set = True
        if self._event._cond.acquire(timeout=_LOCK_SECONDS):
            self._event._cond.release()
            self._event.set()


def _end_all_if_one_died(batches: Any) -> None:
    """End the workers of PyTorch's iterator if one of them has died: the others may wait for a lock that it held."""
    if not all(worker.is_alive() for worker in getattr(batches, "_workers", ())):
        _end_workers(batches)


def _end_workers(batches: Any) -> None:
    """Kill the workers of PyTorch's iterator, in place of its own shutdown: they ignore the SIGTERM that it sends."""
    if getattr(batches, "_shutdown", True):
        return
    batches._shutdown = True
    signal_handling._remove_worker_pids(id(batches))  # else each kill below raises an error here
    batches._worker_pids_set = False
    for worker in batches._workers:
        worker.kill()
    for worker in batches._workers:
        worker.join()
    for queue in batches._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if hasattr(batches, "_pin_memory_thread"):
        batches._pin_memory_thread_done_event.set()


_running: "WeakSet[Any]" = WeakSet()  # PyTorch's iterators with workers


@atexit.register  # runs before the exit function of multiprocessing, which sends SIGTERM and waits without a limit
def _end_all_at_exit() -> None:
    for batches in list(_running):
        _end_workers(batches)


def _end_worker(err: Exception, _: Any) -> None:
    """End a worker whose batch cannot be sent. By default the batch is lost and the training process waits for it."""
    text = " ".join(str(err).split())
    print(f"a worker of the loader cannot hand on a batch ({type(err).__name__}: {text})", file=sys.stderr, flush=True)
    os._exit(1)


def _report_crash(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
    """Print an error that nothing caught, unless the training process has closed its connection.

    Threads of multiprocessing send the tensors. Their connection breaks when the training process ends, and that
    process reports the cause itself. If it still runs, it meets the same broken connection; see ``heard``.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def start_worker(_: int) -> None:
    """Set up a worker process before it reads its first sample."""
    sys.excepthook = _report_crash
    queues: Any = Queue
    queues._on_queue_feeder_error = staticmethod(_end_worker)
    # some schedulers, and a terminal on Ctrl-C, signal all processes; only the parent process reacts
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):  # Windows defines only two of these signals
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive a fork, and each worker uses one core


def make_loader(
    dataset: FrameDataset,
    cfg: DataConfig,
    rank: int,
    world_size: int,
    train: bool,
    seed: int,
    pin_memory: bool = False,
    pin_memory_device: str = "",
    list_rows: Optional[ListRows] = None,
    by_scene: bool = False,
) -> DataLoader:
    """Build the loader of one rank; call ``loader.sampler.set_epoch`` before each training epoch.

    Training drops the last incomplete batch; validation keeps it, and reads ``by_scene`` in the order of time, whole
    scenes on one rank. One worker reads if ``cfg.workers`` is None;
    worker_count.py chooses better. Raises DataError if there are fewer samples than one training batch, or if samples
    of one batch would have unequal numbers of cameras.
    """
    odd = dataset.other_cameras if cfg.batch_size > 1 else None
    if odd is not None:
        raise DataError(
            f"{dataset.infos}: {odd}; a batch of {cfg.batch_size} needs as many in each, so set data.batch_size=1, "
            "which reads samples one by one, or give all records the same cameras"
        )
    if train and len(dataset) < cfg.batch_size * world_size:
        raise DataError(
            f"{cfg.train_infos}: {len(dataset)} training samples do not fill one batch of {cfg.batch_size} on each of "
            f"{world_size} ranks; set data.batch_size lower or use fewer ranks"
        )
    workers = 1 if cfg.workers is None else cfg.workers
    sampler: Union[TrainSampler, SceneSampler, ValSampler]
    if train:
        sampler = TrainSampler(dataset, rank, world_size, seed, dataset.shares)
    elif by_scene:
        sampler = SceneSampler(dataset.drives, rank, world_size)
    else:
        sampler = ValSampler(len(dataset), rank, world_size)
    return Loader(
        dataset,
        batch_size=cfg.batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=partial(collate, ignore_label=cfg.ignore_label, pin_device=pin_memory_device, list_rows=list_rows),
        drop_last=train,
        pin_memory=pin_memory,
        pin_memory_device=pin_memory_device,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        # Each iterator draws a seed when created: once a run with persistent workers, once an epoch without workers.
        # Drawn from PyTorch's default generator, a resumed run would draw once more and its dropout would differ.
        generator=torch.Generator().manual_seed(seed % 2**63),
    )
