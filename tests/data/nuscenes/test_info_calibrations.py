"""Calibrations of info files that can be computed with and still are none: other units, other orders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from info_tools import depth, modern, records, store, write_layout, write_set

from tpvformer.config import DataConfig
from tpvformer.data.formats import load_infos
from tpvformer.errors import DataError


def refused(cfg: DataConfig, content: Any) -> str:
    store(cfg, content)
    with pytest.raises(DataError) as caught:
        load_infos(cfg.val_infos)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ([[60, 0, 0], [0, 60, 0], [38, 22, 1]], "is transposed"),
        ([[-60, 0, 38], [0, 60, 22], [0, 0, 1]], "focal lengths -60 and 60"),
        ([[0.8, 0, 0.5], [0, 1.4, 0.5], [0, 0, 1]], "which are no pixels"),
        ([[60, 0, 38], [0, 60, 22], [0, 0, 2]], "is no ..fx, s, cx"),
    ],
)
@pytest.mark.parametrize("layout", ["cams", "images", "cam_infos"])
def test_intrinsics_that_are_none(tmp_path: Path, layout: str, wrong: List[List[float]], text: str) -> None:
    cfg = write_set(tmp_path, (9,))
    info = records(cfg)[0]
    info["cams"]["CAM_BACK"]["cam_intrinsic"] = np.array(wrong)
    made = {"cams": [info], "images": {"data_list": [modern(info)]}, "cam_infos": [depth(info)]}[layout]
    assert re.search(f"camera CAM_BACK: the matrix of intrinsics .*{text}", refused(cfg, made))


@pytest.mark.parametrize("layout", ["infos", "data_list", "bevdepth", "safetensors"])
def test_poses_in_millimetres(tmp_path: Path, layout: str) -> None:
    cfg = write_set(tmp_path, (9,))
    info = records(cfg)[0]
    info["cams"]["CAM_BACK"]["sensor2lidar_translation"] = np.array([20.0, 0, 1500])
    store(cfg, {"infos": [info]})
    with pytest.raises(DataError, match=r"CAM_BACK lies 1500 m away from the lidar; expected metres"):
        load_infos(write_layout(cfg, layout, tmp_path))


def test_a_quaternion_of_another_length(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,))
    record = depth(records(cfg)[0])
    record["cam_infos"]["CAM_BACK"]["calibrated_sensor"]["rotation"] = [0.1, 0.2, 90.0, 3.0]
    assert "camera CAM_BACK: rotation is [0.1, 0.2, 90.0, 3.0], no unit quaternion" in refused(cfg, [record])
