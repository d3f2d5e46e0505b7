"""Damaged boxes, of tables and of info files, are one sentence each, and stop detection alone."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from box_tools import BOX_LAYOUTS, VERSION, boxed_layout, edit_table, infos_of, stir, table
from info_tools import edit

from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos, open_records
from tpvformer.data.nuscenes.boxes import with_table_boxes
from tpvformer.errors import DataError
from tpvformer.untrusted.pickle import load_pickle

GRID = GridConfig(h=10, w=10, z=4)


def config(root: Path, infos: Path) -> DataConfig:
    return DataConfig(root=str(root), version=VERSION, train_infos=str(infos), val_infos=str(infos), workers=0)


TABLE_FAULTS = [
    (lambda rows: rows[0].update(size=[1.0, -2.0, 1.0]), r"row {token} \(sample .*\) has the size \[1.0, -2.0, 1.0\]"),
    (lambda rows: rows[0].update(size=[1.0, float("nan"), 1.0]), "has the size"),
    (lambda rows: rows[0].update(size=[1.0, 2.0]), "has the size"),
    (lambda rows: rows[0].update(translation=[1.0, float("nan"), 1.0]), "row {token} has no usable pose"),
    (lambda rows: rows[0].update(rotation=[0, 0, 0, 0]), "row {token} has no usable pose"),
    (lambda rows: rows[0].update(num_lidar_pts=-1), "has -1 lidar and"),
    (lambda rows: rows[0].update(num_lidar_pts=1.5), "a row's num_lidar_pts is 1.5, not int"),
    (lambda rows: rows[0].update(instance_token="nobody"), "belongs to the instance 'nobody'"),
    (lambda rows: rows[0].update(attribute_tokens=["what"]), "has the attribute 'what'"),
    (lambda rows: rows[0].update(next="nowhere"), "names the neighbour nowhere"),
    (lambda rows: rows.append(dict(rows[0])), "two rows have the token {token}"),
]


@pytest.mark.parametrize(("change", "text"), TABLE_FAULTS)
def test_a_damaged_annotation_is_one_sentence_and_stops_detection_alone(root, tmp_path, capsys, change, text):
    bare = infos_of(root, tmp_path / "infos")
    token = table(root, "sample_annotation")[0]["token"]
    edit_table(root, "sample_annotation", change)
    path = infos_of(root, tmp_path / "more")  # written without boxes
    assert "the infos get no boxes, which only detection needs: " in capsys.readouterr().out
    cfg = config(root, path)
    assert len(FrameDataset(cfg, GRID, "val", 0)) == 6
    with pytest.raises(DataError, match=text.format(token=token)):
        open_records(cfg, "val", boxes=True)
    open_records(config(root, bare), "val", boxes=True)  # has its own, with attributes


def test_a_category_of_another_set_is_named(root, tmp_path):
    path = infos_of(root, tmp_path / "infos", "pkl")
    edit_table(root, "category", lambda rows: rows[0].update(name="other_vehicle"))
    with pytest.raises(DataError, match="the category 'other_vehicle' is none of nuScenes' 32"):
        with_table_boxes(load_infos(path), root, VERSION)


def broken(key, change):
    def edit(info):
        info[key] = change(info[key].copy())

    return edit


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


INFO_FAULTS = [
    (broken("gt_boxes", put((1, 3), np.nan)), r"box 1 has the size \[.*nan.*expected 3 metres above 0"),
    (broken("gt_boxes", put((1, 4), -1)), "box 1 has the size"),
    (broken("gt_boxes", put((1, 4), 0)), "box 1 has the size"),
    (broken("gt_boxes", put((2, 0), np.inf)), "box 2 has the centre .*expected 3 finite metres"),
    (broken("gt_boxes", put((2, 6), np.nan)), r"box 2 has the yaw \[nan\]; expected finite radians"),
    (broken("gt_velocity", put((0, 1), np.inf)), "box 0 has the velocity .* or NaN where it is unknown"),
    (broken("gt_names", put(0, "spaceship")), "a box has the class 'spaceship'; expected one of car, truck"),
    (broken("gt_names", lambda a: a[:-1]), r"its gt_names has \d+ entries for \d+ boxes"),
    (broken("gt_velocity", lambda a: a[:-1]), r"its gt_velocity has \d+ entries for \d+ boxes"),
    (broken("num_lidar_pts", lambda a: a[:-1]), r"its num_lidar_pts has \d+ entries for \d+ boxes"),
    (broken("num_lidar_pts", put(0, -3)), "the points of a box are no number from 0 on"),
    (broken("gt_boxes", lambda a: a[:, :6]), "where numbers of shape"),
    (broken("gt_boxes", lambda a: a.astype(str)), "where numbers of shape"),
    (lambda info: info.pop("gt_names"), "its boxes have no 'gt_names'"),
]


@pytest.mark.parametrize(("change", "text"), INFO_FAULTS)
def test_damaged_boxes_of_an_info_file_are_one_sentence(root, tmp_path, change, text):
    cfg = config(root, infos_of(root, tmp_path / "infos"))
    edit(cfg, lambda infos: change(infos[1]))
    with pytest.raises(DataError, match=rf"record 1 \(sample \w+\): .*{text}.* tpvformer data infos") as caught:
        open_records(cfg, "val", boxes=True)
    assert "\n" not in str(caught.value)
    assert FrameDataset(cfg, GRID, "val", 0).sample(1, False).boxes is None  # segmentation does not read them


ODD = (
    None, "", b"x", [], {}, -1, 3, float("nan"), [[]], [1, 2], "car", np.zeros(3), np.zeros((2, 7)), [{}], [None],
    np.array([None] * 3, object), np.zeros((3, 7), "datetime64[s]"), 10**400, np.zeros((0, 9)), np.ones((4, 7)) * 1e300,
    np.array(["\x1b[31m"] * 30), [float("inf")] * 7, {1: 2}, "x" * 100_000,
)  # fmt: skip


@pytest.mark.parametrize("layout", BOX_LAYOUTS)
def test_any_odd_value_is_read_or_one_sentence(root, tmp_path, layout):
    stir(root)
    path, rng = boxed_layout(root, infos_of(root, tmp_path / "infos"), layout), random.Random(layout)
    stored, refused = load_pickle(path), 0
    for _ in range(60):
        content = copy.deepcopy(stored)
        record = rng.choice(content.get("infos") or content["data_list"])
        place = rng.choice([key for key in record if key.startswith(("gt_", "num_", "instances", "ann_infos"))])
        if place in ("instances", "ann_infos") and rng.random() < 0.8:
            record = rng.choice(record[place])
            place = rng.choice(list(record))
        record[place] = rng.choice(ODD)
        path.write_bytes(pickle.dumps(content, protocol=2))
        try:
            found = load_infos(path, boxes=True)
        except DataError as err:
            refused += 1
            assert str(err).isprintable()
            assert len(str(err)) < 900
        else:
            kept = [record.boxes for record in found if record.boxes is not None]
            assert all(np.isfinite(boxes.centres).all() and (boxes.sizes > 0).all() for boxes in kept)
    assert refused > 20


def test_damaged_boxes_of_our_own_file_are_refused(root, tmp_path):
    path = infos_of(root, tmp_path / "infos", "safetensors")
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for name, at, value, text in (
        ("boxes.starts", 0, b"\x01", "its boxes are not those of its key frames"),
        ("boxes.starts", 15, b"\xff", "its boxes are not those of its key frames"),
        ("boxes.numbers", 0, np.float32("nan").tobytes(), "record 0 .* box 0 has the centre .*nan"),
        ("boxes.whole", 0, b"\x7f", "a box has a class, a number of points or an attribute that does not exist"),
    ):
        data, first = bytearray(whole), 8 + length + header[name]["data_offsets"][0] + at
        data[first : first + len(value)] = value
        path.write_bytes(data)
        with pytest.raises(DataError, match=text):
            load_infos(path, boxes=True)
        assert len(load_infos(path)) == 6
