"""The baselines that a model is held against."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config, val_loader
from tiny_nuscenes import write_tiny

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.types import Frame
from tpvformer.engine import train as run
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation import baselines as controls
from tpvformer.engine.evaluation.evaluate import evaluate
from tpvformer.engine.logging.log import RunLog


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny_config(write_tiny(tmp_path / "set", POINTS))


def frame(seed: int, coloured: bool) -> Frame:
    """One camera looking along y at 64 points of classes 1 to 4 (and ignored ones), one a pixel of an 8x8 image."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, 5, 64).astype(np.uint8)
    rows, cols = np.divmod(np.arange(64), 8)
    points = np.stack([(cols + 0.5 - 4) * 10 / 8, np.full(64, 10.0), (4 - rows - 0.5) * 10 / 8], 1).astype(np.float32)
    image = np.full((8, 8, 3), 100, np.uint8)
    if coloured:
        image[rows, cols] = (labels[:, None] * np.array([40, 20, 10]) + rng.randint(0, 6, (64, 3))).astype(np.uint8)
    matrix = np.array([[8.0, 4, 0, 0], [0, 4, -8, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # u = 8 x/y + 4, v = 4 - 8 z/y
    return Frame(str(seed), torch.from_numpy(image[None]), ["CAM_FRONT"], matrix[None], points, labels)


def colour_score(train: List[Frame], val: List[Frame]):
    table = controls.fit_colour_table(controls.histogram(train, 17, 0))
    return controls.score_table(controls.histogram(val, 17, 0), table)


def test_colour_that_gives_the_class_away_is_found() -> None:
    train, val = ([frame(s, coloured=True) for s in seeds] for seeds in (range(10), range(50, 55)))
    assert colour_score(train, val).miou == 100


def test_colour_that_says_nothing_scores_like_a_constant() -> None:
    train, val = ([frame(s, coloured=False) for s in seeds] for seeds in (range(10), range(50, 55)))
    assert colour_score(train, val).miou < 10


def test_points_that_no_camera_sees_have_a_bin_of_their_own() -> None:
    one = frame(0, coloured=True)
    one.points[:5, 1] *= -1  # behind the camera
    one.points[5:8, 0] += 100  # beside the image
    bins = controls.colour_bins(one)
    assert (bins[:8] == controls.BINS - 1).all()
    assert (bins[8:] < controls.BINS - 1).all()


def test_ignored_points_do_not_count() -> None:
    one = frame(0, coloured=True)
    counts = controls.histogram([one], 17, 0)
    assert counts.sum() == (one.labels != 0).sum()
    assert counts[:, 0].sum() == 0


def test_all_four_scores_are_printed_together(config: Config, quick, capsys) -> None:
    train_set, val_set = (FrameDataset(config.data, config.model.grid, s, 0) for s in ("train", "val"))
    model, loader, log = run.build_model(config, CPU), val_loader(config), RunLog(None, True)
    real = evaluate(model, loader, config, World(), CPU, log)
    outcome = controls.run_controls(model, loader, train_set, val_set, config, World(), CPU, log, real)
    log.close()
    assert set(outcome) == {"model", "cameras_exchanged", "constant", "colour_only"}
    assert outcome["model"] == real.pts.miou
    labels = torch.cat([batch.point_labels.flatten() for batch in loader])
    share = max(int((labels == c).sum()) for c in range(1, 17)) / int((labels != 0).sum())
    assert outcome["constant"] == pytest.approx(100 * share / 16)
    assert sum("miou pts of" in line for line in capsys.readouterr().out.splitlines()) == 4
