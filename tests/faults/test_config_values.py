"""Every field of every section with hostile values: a ConfigError in one sentence, or a model that runs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from engine_tools import MODEL, tiny_config

pytest.importorskip("hypothesis", reason="hypothesis is not installed (pip install tpvformer[dev])")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tpvformer.config import (  # noqa: E402
    BackboneConfig,
    Config,
    DataConfig,
    GridConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    from_dict,
)
from tpvformer.data.transforms import make_sample  # noqa: E402
from tpvformer.data.types import Frame  # noqa: E402
from tpvformer.data.voxels.voxelize import grid_index, voxelize  # noqa: E402
from tpvformer.errors import ConfigError  # noqa: E402
from tpvformer.model import TPVFormer  # noqa: E402

NAN, INF = float("nan"), float("inf")
HOSTILE: List[Any] = [
    0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), NAN, INF, -INF, 1e308, -1e308, 1e-300, 0.0, -0.0, 0.5, None,
    True, "", "x", "\x1b[2J", "a\nb", "../../x", "x" * 10_000, "\udc80", b"x", [], (), {}, [0], [-1] * 3, [NAN] * 6,
    [INF] * 6, [0.0] * 6, [3, 2, 1, 0, -1, -2], [1] * 7, [1, 2], [None] * 3, ["x"] * 3, [[1]], [10**400] * 6,
    [1] * 10**4, (1, 1, 1), (1.0,) * 6, [1e-310] * 3 + [2e-310] * 3, np.float64(NAN), np.zeros(3), object(),
]  # fmt: skip
TREE = dataclasses.asdict(tiny_config(DataConfig()))
SECTIONS: Dict[str, Any] = {
    "model.grid": GridConfig, "model.backbone": BackboneConfig, "model": ModelConfig, "data": DataConfig,
    "loss": LossConfig, "optim": OptimConfig, "train": TrainConfig,
}  # fmt: skip
FIELDS = [
    f"{section}.{field.name}"
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
    if f"{section}.{field.name}" not in SECTIONS
]


def changed(changes: Dict[str, Any]) -> Dict[str, Any]:
    tree = copy.deepcopy(TREE)
    for path, value in changes.items():
        *sections, name = path.split(".")
        functools.reduce(lambda node, key: node[key], sections, tree)[name] = value
    return tree


def attempt(changes: Dict[str, Any]) -> bool:
    """Whether the configuration was taken; then its grid and its model have been used."""
    try:
        config = from_dict(changed(changes))
    except ConfigError as err:
        assert str(err).strip() and str(err).isprintable(), err
        assert len(str(err)) < 1000
        return False
    run_data(config)
    if config.model != MODEL and sum(config.model.grid.plane_sizes) < 2000:
        run_model(config)
    return True


def run_data(config: Config) -> None:
    """A sample of four points, some of them outside, in the grid; small grids alone, for the time's sake."""
    grid = config.model.grid
    if int(np.prod(grid.shape)) > 10**6:
        return
    points = np.array([[0, 0, 0], [1e9, -1e9, 1e9], [-1e-30, 3, 1], [5, 5, 5]], np.float32)
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    frame = Frame("t", images, ["c"], np.eye(4)[None], points, np.zeros(4, np.uint8), np.eye(4))
    try:
        sample = make_sample(frame, dataclasses.replace(config.data, occupancy="", image_scale=1.0), grid, None)
    except ConfigError:
        return
    assert (sample.grid_index >= 0).all() and (sample.grid_index < torch.tensor(grid.shape)).all()


def run_model(config: Config) -> None:
    with torch.no_grad():
        model = TPVFormer(config.model).eval()
        out = model(torch.zeros(1, 1, 3, 64, 64), torch.eye(4)[None, None], points=torch.zeros(1, 1, 3))
    assert out.voxel_logits.shape[1:] == (config.model.num_classes, *config.model.grid.shape)


@pytest.mark.parametrize("field", FIELDS)
def test_hostile_values(field: str) -> None:
    taken = [value for value in HOSTILE if attempt({field: value})]
    assert len(taken) < len(HOSTILE), field


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(HOSTILE) | st.integers(-2, 40) | st.floats(), max_size=3)
)
def test_several_at_once(changes: Dict[str, Any]) -> None:
    attempt(changes)


@pytest.mark.parametrize("kind", SECTIONS.values())
def test_sections_check_themselves(kind: Any) -> None:
    """Also where Python code builds one, without any tree."""
    for field in dataclasses.fields(kind):
        with pytest.raises(ConfigError):
            kind(**{field.name: object()})


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_kernel_stays_inside(value: float, compiled: bool) -> None:
    """Whatever it is given: before, a pitch of zero or a range that is no number made it write at -1."""
    points, labels = np.zeros((50, 3), np.float32), np.zeros(50, np.uint8)
    points[:] = np.linspace(-5, 5, 50)[:, None]
    for pc_range in ((value,) * 6, (0, 0, 0, value, value, value), (1, 1, 1, -1, -1, -1)):
        with np.errstate(all="ignore"):
            if compiled:
                index = voxelize(points, labels, (4, 3, 2), pc_range, 0).grid_index
            else:
                index = grid_index(points, (4, 3, 2), pc_range)
        assert (index >= 0).all() and (index < (4, 3, 2)).all(), pc_range


@pytest.mark.parametrize("voxels", [(0, 3, 2), (-4, 3, 2)])
def test_a_grid_without_cells_is_refused(voxels: Any) -> None:
    with pytest.raises(ValueError):
        voxelize(np.zeros((3, 3), np.float32), np.zeros(3, np.uint8), voxels, (0, 0, 0, 1, 1, 1), 0)


def test_shipped_configurations_are_in_range() -> None:
    from tpvformer.compat import load_config
    from tpvformer.compat.infer_config import PUBLISHED

    for name in (*PUBLISHED, "demo", "tpv_small", "tpv_occ3d", "tpv_surroundocc", "tpv_kitti_ssc", "bev_baseline"):
        load_config(name)
