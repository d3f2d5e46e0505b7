"""Values changed at random in tables and info pickles: whatever comes, it is taken or refused in one sentence."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
from info_tools import write_layout, write_set

from tpvformer.data.check.examine import examine
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.infos.build import build
from tpvformer.data.nuscenes.infos.pickle_file import to_records, write_pickle
from tpvformer.data.nuscenes.infos.tensor_file import write_tensors
from tpvformer.data.nuscenes.splits import default_splits
from tpvformer.errors import ConfigError, DataError
from tpvformer.untrusted.pickle import load_pickle

VERSION = "v1.0-mini"
NAMES = ("scene", "sample", "sensor", "calibrated_sensor", "sample_data", "ego_pose", "lidarseg", "map", "splits")
HUGE = 10**400
JSON_VALUES: List[Any] = [
    None, [], {}, -1, 0, 1e308, float("nan"), HUGE, "x", "", True, [1], [None] * 3, ["a"] * 4, [[1] * 3] * 3, [1, 2, 3],
    [[float("inf")] * 3] * 3, [1, 0, 0, 0], [1e308] * 4, [HUGE] * 3, "samples/../../x", "\udc80", "samples/CAM_FRONT/",
]  # fmt: skip
PICKLED_VALUES = [
    *JSON_VALUES, np.zeros((3, 3)), np.zeros(3), np.full((3, 3), np.nan), np.array("x"), np.array(None), np.float64(3),
    b"a", 1 + 2j, np.zeros((4, 4)), np.array([1, 2, 10**30], object), {1}, (1,),
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("error")


def attempt(run: Callable[[], Any]) -> bool:
    """True where it is taken; anything but one sentence of ours is raised."""
    try:
        run()
    except (DataError, ConfigError) as err:
        assert "\n" not in str(err)
        return False
    return True


def change(content: Any, rng: random.Random, values: List[Any]) -> None:
    """Replaces or removes one value somewhere in it."""
    while True:
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        inner = content[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.9:
            content = inner
        elif rng.random() < 0.15:
            del content[key]
            return
        else:
            content[key] = rng.choice(values)
            return


def test_tables(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "set")) / VERSION
    rng, taken = random.Random(0), 0
    for _ in range(200):
        path = folder / f"{rng.choice(NAMES)}.json"
        before = path.read_text()
        rows = json.loads(before)
        change(rows, rng, JSON_VALUES)
        path.write_text(json.dumps(rows))

        def make() -> None:
            for infos in build(folder.parent, VERSION, default_splits(folder)).values():
                write_tensors(infos, tmp_path / "a.safetensors")
                to_records(infos)

        taken += attempt(make)
        attempt(lambda: [line.encode() for line in examine(folder.parent, VERSION).lines(9)])
        path.write_text(before)
    assert 20 < taken < 180  # both happen: the changes reach what is read


def test_info_pickles(whole, tmp_path):
    write_pickle(build(whole, VERSION, ["synthetic_val"])["synthetic_val"], tmp_path / "a.pkl")
    stored = load_pickle(tmp_path / "a.pkl")
    rng, taken = random.Random(0), 0
    for _ in range(300):
        content = copy.deepcopy(stored)
        change(content, rng, PICKLED_VALUES)
        data = bytearray(pickle.dumps(content))
        if rng.random() < 0.3:
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "b.pkl").write_bytes(data)
        taken += attempt(lambda: load_infos(tmp_path / "b.pkl"))
    assert 30 < taken < 270


@pytest.mark.parametrize("layout", ["list", "scenes", "data_list", "bevdepth"])
def test_other_layouts(tmp_path, layout):
    cfg = write_set(tmp_path, (9, 8))
    stored = plain(load_pickle(write_layout(cfg, layout, tmp_path)))
    rng, taken = random.Random(0), 0
    for _ in range(300):
        content = copy.deepcopy(stored)
        change(content, rng, PICKLED_VALUES)
        (tmp_path / "b.pkl").write_bytes(pickle.dumps(content))
        taken += attempt(lambda: load_infos(tmp_path / "b.pkl"))
    assert 15 < taken < 285


def plain(value: Any) -> Any:
    """With ordinary arrays in place of those that the reader makes."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return np.array(value) if isinstance(value, np.ndarray) else value
