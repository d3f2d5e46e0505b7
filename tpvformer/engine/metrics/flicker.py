"""Measure label flicker: how often the predicted class of a place that did not change changes between two frames.

``flicker`` compares each frame with the one before it in its scene. Counted are the voxels that hold lidar points of
the frame and whose true class cannot move (labels.STATIC): the centre of such a voxel is carried to the grid of the
frame before by the poses, and counts if it lies there in a voxel that holds points of the same true class. Flicker is
the percentage of them whose predicted classes, those of the points in either voxel, differ. Lower is better; a wrong
class that stays is no flicker.

The outermost voxels of the grid, which also hold the points outside of it, are left out in both frames. Frames that are
more than windows.LONGEST_GAP apart, or without pose or time, are not compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.windows import LONGEST_GAP
from tpvformer.engine.distributed.collectives import all_reduce_sum
from tpvformer.engine.metrics.bootstrap import interval
from tpvformer.engine.metrics.collect import cell_rings, classes_at_voxels, rows_by_scene
from tpvformer.engine.metrics.named import RING_NAMES, Metric
from tpvformer.errors import ConfigError, DataError
from tpvformer.geometry import lattice, now_to_past, transform_points
from tpvformer.labels import STATIC

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model import Prediction


class _Seen(NamedTuple):
    """What a frame leaves for the next one: of each voxel (X, Y, Z) int64, -1 where there is no point."""

    index: int
    truth: np.ndarray
    predicted: np.ndarray


class FlickerTally:
    """Accumulate an evaluation in scene order (``make_loader(by_scene=True)``): integers, so exact over any ranks.

    Raises ConfigError for a model or set whose points have no classes, and DataError where no two frames can be
    compared.
    """

    def __init__(self, config: Config, data: FrameDataset, device: torch.device) -> None:
        if not data.has_points or not data.has_labels or not config.loss.segmentation:
            raise ConfigError("flicker compares the classes of lidar points, which this model or set does not have")
        if config.data.label_map == "semantickitti" or config.data.classes is not None:
            raise ConfigError(
                f"flicker is defined for nuScenes' classes, not for data.label_map={config.data.label_map}"
            )
        self._data, self._device, grid = data, device, config.model.grid
        self._index = {token: i for i, token in enumerate(data.tokens)}
        self._rows = rows_by_scene(data.scenes, data.tokens)
        self._before = pairs_of(data)
        if not self._before:
            raise DataError(
                f"{data.infos}: none of its {len(data)} frames has one before it, so flicker cannot be measured; "
                f"expected frames of a scene with timestamp, ego2global and lidar2ego, at most {LONGEST_GAP:g} s apart"
            )
        self._names = config.data.label_classes.names
        self._cells = np.array(grid.shape)
        divisions = self._cells if config.data.cells_are_even else self._cells - 1
        self._low, self._pitch = lattice(grid.pc_range, divisions)
        self._rings = cell_rings(grid, torch.device("cpu")).numpy()
        shape = len(set(self._rows.values())), len(RING_NAMES), len(self._names), 2
        self._counts = np.zeros(shape, np.int64)  # scene, ring, true class; changed, compared
        self._last: Optional[_Seen] = None

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Compare the samples of a batch with those before them. It waits for the device."""
        predicted = classes_at_voxels(prediction, batch)["points"].cpu().numpy()
        coords, truths = batch.voxel_coords.cpu().numpy(), batch.voxel_labels.cpu().numpy()
        for i, (token, length) in enumerate(zip(batch.tokens, batch.voxel_lengths.tolist())):
            voxels = coords[i, :length]
            inner = ((voxels > 0) & (voxels < self._cells - 1)).all(1)
            self._compare(token, voxels[inner], truths[i], predicted[i, :length][inner])

    def _compare(self, token: str, voxels: np.ndarray, truths: np.ndarray, predicted: np.ndarray) -> None:
        index = self._index[token]
        truth, before = truths[tuple(voxels.T)].astype(np.int64), self._before.get(index)
        last, self._last = self._last, _Seen(index, *(self._spread(voxels, each) for each in (truth, predicted)))
        if before is None:
            return
        if last is None or last.index != before:
            raise RuntimeError(f"sample {token} was not read after the frame before it; flicker needs scene order")
        places = self._low + (voxels + 0.5) * self._pitch
        now, past = (self._data.grid2global(i) for i in (index, before))
        assert now is not None and past is not None, "frames of a pair have poses"
        moved = transform_points(places, now_to_past(now, past))
        there = np.floor((moved - self._low) / self._pitch).astype(np.int64)
        kept = ((there >= 0) & (there < self._cells)).all(1) & np.isin(truth, STATIC)
        kept[kept] = last.truth[tuple(there[kept].T)] == truth[kept]
        where = self._rings[tuple(voxels[kept, :2].T)], truth[kept]
        counts = self._counts[self._rows[token]]
        np.add.at(counts[..., 0], where, predicted[kept] != last.predicted[tuple(there[kept].T)])
        np.add.at(counts[..., 1], where, 1)

    def _spread(self, voxels: np.ndarray, values: np.ndarray) -> np.ndarray:
        grid = np.full(self._cells, -1, np.int64)
        grid[tuple(voxels.T)] = values
        return grid

    def metrics(self) -> Dict[str, Metric]:
        """Return the metric over all processes, each of which must call it once, after its last batch."""
        counts = all_reduce_sum(torch.from_numpy(self._counts).to(self._device)).cpu()
        total = counts.sum((0, 1))
        value = _plain(_share(total.sum(0)))
        classes = {self._names[c]: _plain(_share(total[c])) for c in STATIC}
        rings = {name: _plain(_share(ring)) for name, ring in zip(RING_NAMES, counts.sum((0, 2)))}
        bounds = None if value is None else interval(counts.sum((1, 2)), _share)
        return {"flicker": Metric(value, bounds, classes, rings, of_class="flicker")}


def pairs_of(data: FrameDataset) -> Dict[int, int]:
    """Return the frame before each frame that can be compared with it, as indices of samples."""
    times, found = data.timestamps, {}
    for frames in data.drives:
        for before, now in zip(frames, frames[1:]):
            first, second = times[before], times[now]
            if first is None or second is None or not 0 < second - first <= LONGEST_GAP:
                continue
            if data.grid2global(before) is not None and data.grid2global(now) is not None:
                found[now] = before
    return found


def _share(counts: Tensor) -> Tensor:
    """Return the percentage (...) of counts (..., 2); NaN where nothing was compared."""
    changed, compared = counts.double().unbind(-1)
    return torch.where(compared > 0, 100 * changed / compared, torch.nan)


def _plain(value: Tensor) -> Optional[float]:
    return None if bool(value.isnan()) else float(value)
