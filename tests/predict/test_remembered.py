"""Voxels that no camera sees now, but one of a past frame saw: by geometry, in streams, in archives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
from api_tools import CONFIG, lively
from rig_tools import THREE, drive_of, matrices
from view_tools import archive, save

from tpvformer.cli import main
from tpvformer.config import GridConfig
from tpvformer.config.history import HistoryConfig
from tpvformer.errors import DataError
from tpvformer.geometry import now_to_past, project, transform_points
from tpvformer.predict.checked_arrays import load_arrays
from tpvformer.predict.read_results import read_result
from tpvformer.predict.remembered import Sight, View, seen_only_before

GRID = GridConfig(w=12, h=10, z=3, pc_range=(-18.0, -15.0, -3.0, 18.0, 15.0, 3.0))
SIZES = tuple((one["width"], one["height"]) for one in THREE)


def pose(x: float, y: float, degrees: float) -> np.ndarray:
    made, turn = np.eye(4), np.radians(degrees)
    made[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    made[:2, 3] = x, y
    return made


def view(cameras: Tuple[int, ...], *place: float) -> View:
    chosen = np.stack(list(matrices(THREE).values()))[list(cameras)]
    return View(chosen, tuple(SIZES[k] for k in cameras), pose(*place), 0.0)


def centres() -> np.ndarray:
    low, high = np.array(GRID.pc_range[:3]), np.array(GRID.pc_range[3:])
    return low + (np.argwhere(np.ones(GRID.shape)) + 0.5) * (high - low) / GRID.shape


def seen(points: np.ndarray, by: View) -> np.ndarray:
    """The same one point after the other, with the projection of the pictures."""
    found = np.zeros(len(points), bool)
    for matrix, (width, height) in zip(by.grid2img, by.sizes):
        pixels, depth = project(points, matrix)
        found |= (depth > 0) & (pixels > 0).all(1) & (pixels < (width, height)).all(1)
    return found


@pytest.mark.parametrize("cameras", [(0,), (0, 1, 2)])
def test_it_is_what_a_projection_of_each_point_gives(cameras: Tuple[int, ...]) -> None:
    now = view(cameras, 2.0, 7.0, 20.0)
    past = (view(cameras, 1.0, 3.0, 10.0), view((0,), 0.0, 0.0, 0.0))
    expected = np.zeros(len(centres()), bool)
    for old in past:
        there = transform_points(centres(), now_to_past(now.grid2global, old.grid2global))
        inside = (there >= GRID.pc_range[:3]).all(1) & (there <= GRID.pc_range[3:]).all(1)
        expected |= seen(there, old) & inside
    expected &= ~seen(centres(), now)
    found = seen_only_before(Sight(now, past), GRID)
    assert found.shape == GRID.shape and np.array_equal(found.ravel(), expected)
    assert 0 < found.sum() < 0.5 * found.size
    still = Sight(now, (now,))
    assert not seen_only_before(still, GRID).any(), "who stands sees what was seen"


@pytest.fixture
def folder(tmp_path: Path, quick: None) -> Path:
    """A drive whose frames are all written, by the command; the model remembers two frames for a second."""
    path = tmp_path
    history = HistoryConfig(frames=2, max_seconds=0.9)
    model = lively(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, grid=GRID, history=history)))
    model.save_pretrained(path / "model")
    rig = drive_of(path / "rig")
    words = ["predict", "--ckpt-path", str(path / "model"), "--rig", str(rig), "--out", str(path / "out")]
    assert main([*words, "--device", "cpu"]) == 0
    for result in model.stream(rig=rig):
        result.save(path / "python" / f"{result.token}.npz")
        assert (result.remembered is None) == (result.token == "frame0")  # noqa: S105 - the name of a frame
    return path


def test_a_stream_stores_what_it_remembered(folder: Path) -> None:
    for i in range(4):
        result, again = (read_result(folder / place / f"frame{i}.npz") for place in ("out", "python"))
        if i == 0:
            assert result.remembered is None and again.remembered is None
            continue
        cameras = [
            View(
                np.stack([c.lidar2img for c in read_result(folder / "out" / f"frame{k}.npz").cameras]),
                tuple(c.size for c in result.cameras),
                pose(3.0 * k, 0.5 * k, 0),
                0.0,
            )
            for k in (i, i - 1)
        ]
        expected = seen_only_before(Sight(cameras[0], (cameras[1],)), GRID)  # the frame before that is too old
        assert result.remembered is not None and np.array_equal(result.remembered, expected)
        assert again.remembered is not None and np.array_equal(again.remembered, expected)
        assert load_arrays(folder / "out" / f"frame{i}.npz")["remembered"].dtype == np.uint8
        assert expected.any()


@pytest.mark.parametrize(
    "mask, said",
    [
        (np.full((20, 20, 4), 2, np.uint8), "remembered holds 2; expected 0 and 1"),
        (np.zeros((20, 20), np.uint8), "remembered is uint8 of shape"),
        (np.zeros((20, 20, 4), np.float32), "remembered is float32 of shape"),
    ],
)
def test_masks_that_are_refused(tmp_path: Path, mask: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_result(save(tmp_path / "a.npz", archive(remembered=mask)))
