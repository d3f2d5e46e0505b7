"""Several drives that advance together, in one batch: each as if it were alone."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest
import torch
from api_tools import CONFIG, assert_same, lively
from model_cases import HW
from rig_tools import POSES, THREE, camera, drive_of, save, write_rig

from tpvformer import TPVFormer
from tpvformer.config import Config, ModelConfig
from tpvformer.config.history import HistoryConfig
from tpvformer.errors import DataError
from tpvformer.model.history import PlaneHistory, check_history, known_past

pytestmark = pytest.mark.usefixtures("quick")


def temporal(model: ModelConfig) -> Config:
    return dataclasses.replace(CONFIG, model=dataclasses.replace(model, num_cams=6, history=HistoryConfig(frames=2)))


def driven(folder: Path, times: List[float], first: int = 0) -> Iterator[Tuple[Any, ...]]:
    """Images of a drive from frame ``first`` on, with poses and times."""
    frames = json.loads((folder / "rig.json").read_text())["frames"]
    for i, time in enumerate(times):
        yield {name: folder / file for name, file in frames[(first + i) % 4]["images"].items()}, POSES[i], time


TIMES = ([0.0, 0.5, 1.0, 1.5], [7.0, 7.5, 30.0, 30.5], [0.0, 0.4])  # the second begins anew, the third ends


@pytest.mark.parametrize("family", ["cross_view", "hw"])
def test_each_drive_is_as_if_it_were_alone(family: str, tmp_path: Path) -> None:
    model = lively(temporal(CONFIG.model if family == "cross_view" else HW))
    rig = drive_of(tmp_path)
    with pytest.warns(UserWarning, match="22.500 s after given1"):
        alone = [list(model.stream(driven(tmp_path, times, k), rig)) for k, times in enumerate(TIMES)]
    with pytest.warns(UserWarning, match="22.500 s after given1"):
        steps = list(model.stream_together([driven(tmp_path, times, k) for k, times in enumerate(TIMES)], rig))
    assert [[result is not None for result in step] for step in steps] == [[True] * 3] * 2 + [[True, True, False]] * 2
    for i, step in enumerate(steps):
        for drive, result in zip(alone, step):
            if result is None:
                continue
            assert_same(result, drive[i], 1e-5)
            assert result.history is not None and drive[i].history is not None
            assert torch.allclose(result.history.planes.to_past, drive[i].history.planes.to_past)
            assert result.history.planes.planes.shape == drive[i].history.planes.planes.shape
            assert list(result.seconds) == list(drive[i].seconds) and min(result.seconds.values()) >= 0
    apart = [np.abs(a.voxels.probabilities - b.voxels.probabilities).max() for a, b in zip(alone[0], alone[1])]
    assert min(apart) > 1e-3, "the drives differ"


def test_rig_files_and_models_without_a_history(tmp_path: Path) -> None:
    rigs = [drive_of(tmp_path / name) for name in ("one", "other")]
    model = TPVFormer(CONFIG, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = list(model.stream_together(rigs))
        alone = [list(model.stream(rig=rig)) for rig in rigs]
    assert len(steps) == 4 and list(model.stream_together([])) == []
    for i, step in enumerate(steps):
        for drive, result in zip(alone, step):
            assert result is not None and result.history is None
            assert_same(result, drive[i], 1e-5)


def test_images_of_other_sizes_are_refused(tmp_path: Path) -> None:
    small = save(tmp_path / "rig.json", json.loads(write_rig(tmp_path, [camera("front", size=(60, 40))]).read_text()))
    with pytest.raises(DataError, match="have images of shapes .*; a batch needs one"):
        list(TPVFormer(CONFIG, device="cpu").stream_together([small, write_rig(tmp_path / "three", THREE)]))


def some(frames: int, value: float) -> PlaneHistory:
    queries = sum(CONFIG.model.grid.plane_sizes)
    ages = 0.5 * torch.arange(1, frames + 1)[None]
    return PlaneHistory(torch.full((1, frames, queries, 16), value), torch.eye(4).repeat(1, frames, 1, 1), ages)


def test_histories_are_stacked_and_taken_apart() -> None:
    cfg = temporal(CONFIG.model).model
    one, two = some(1, 1.0), some(2, 2.0)
    assert PlaneHistory.stack([None, None]) is None and PlaneHistory.stack([two]) is two
    batch = PlaneHistory.stack([one, None, two])
    assert batch is not None
    check_history(batch, cfg, 3)
    past = known_past(batch, 2.0)
    assert past.known.tolist() == [[True, False], [False, False], [True, True]]
    assert past.planes[:, :, 0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
    parts = batch.unstack()
    assert len(parts) == 3 and all(torch.equal(a, b) for a, b in zip(parts[2], two))
    again = PlaneHistory.stack(parts)
    assert again is not None and all(torch.equal(a, b) for a, b in zip(again, batch))
