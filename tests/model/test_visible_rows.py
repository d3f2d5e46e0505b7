"""The lists of queries that cameras may see: complete, short, and what they save at the published sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import List

import pytest
import torch
from rig_tools import ring_of_cameras

from tpvformer.compat import load_config
from tpvformer.config import ModelConfig
from tpvformer.data.types import Batch
from tpvformer.engine.evaluation.evaluate import permute_cameras
from tpvformer.engine.forward import listed_rows
from tpvformer.model import visible_rows
from tpvformer.model.tpvformer import TPVEncoder
from tpvformer.model.visible_rows import STEP, VisibleRows

SIZE = (928, 1600)


@pytest.fixture(scope="module")
def dim64() -> ModelConfig:
    return load_config(Path(__file__).parents[2] / "config" / "tpv_lidarseg_dim64.py").model


def calibration() -> torch.Tensor:
    """Two samples of six cameras of 64 degrees; the second sample's are turned."""
    return torch.stack([ring_of_cameras(*SIZE, turn=turn) for turn in (0.0, 0.4)])


def test_every_visible_query_is_listed_once(dim64: ModelConfig) -> None:
    encoder = TPVEncoder(dim64)
    rows, counts = VisibleRows(dim64)(calibration(), SIZE)
    assert rows.dtype == torch.int32 and rows.shape == (2, 6, sum(counts))
    for projection, listed in zip(encoder.project(calibration(), SIZE), rows.split(counts, 2)):
        queries = projection.anchors.shape[2]
        assert listed.shape[2] % STEP == 0 and 0 < listed.shape[2] < queries
        for sample in range(2):
            for camera in range(6):
                mine = listed[sample, camera]
                mine = mine[mine >= 0]
                assert len(mine.unique()) == len(mine)
                seen = projection.query_visible[sample, camera].nonzero().flatten()
                assert torch.isin(seen, mine).all() and len(mine) <= 1.05 * len(seen) + 8


def test_samples_saved_at_dim64(dim64: ModelConfig) -> None:
    """Samples that one layer reads in the images of one frame: all queries, the listed ones, the visible ones."""
    rows, counts = VisibleRows(dim64)(calibration()[:1], SIZE)
    visible = [int(part.query_visible.sum()) for part in TPVEncoder(dim64).project(calibration()[:1], SIZE)]
    each = [dim64.image_heads * dim64.num_levels * points for points in dim64.image_points]
    every = sum(6 * queries * n for queries, n in zip(dim64.grid.plane_sizes, each))
    listed = sum(6 * count * n for count, n in zip(counts, each))
    least = sum(count * n for count, n in zip(visible, each))
    print("\nmillions of samples a layer: all, listed, visible", [round(n / 1e6, 1) for n in (every, listed, least)])
    assert every == 35_020_800
    assert least <= listed < 0.6 * every


def test_no_list_where_it_saves_nothing(dim64: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible_rows, "_WORTH", 0.01)
    rows, counts = VisibleRows(dim64)(calibration(), SIZE)
    assert rows.shape == (2, 6, 0) and counts == [0, 0, 0]


def test_lists_follow_the_calibration_when_cameras_are_exchanged() -> None:
    fields = {field.name: None for field in dataclasses.fields(Batch)}
    rows = torch.arange(6, dtype=torch.int32).view(1, 3, 2)
    fields.update(grid2img=torch.arange(3.0).view(1, 3, 1), query_rows=rows, row_counts=[1, 1, 0], past=[])  # type: ignore
    batch = permute_cameras(Batch(**fields))  # type: ignore[arg-type]
    assert batch.grid2img.flatten().tolist() == [2, 0, 1]
    assert batch.query_rows is not None and batch.query_rows[0, :, 0].tolist() == [4, 0, 2]
    parts: List[torch.Tensor] = listed_rows(batch)["rows"]
    assert [part.shape[2] for part in parts] == [1, 1, 0]
