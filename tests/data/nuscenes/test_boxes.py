"""Boxes of nuScenes' tables and of info files: one truth, whatever the layout that holds it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import List

import numpy as np
import pytest
from box_tools import BOX_LAYOUTS, VERSION, agree, boxed_layout, edit_table, infos_of, plain_boxes, stir, table
from info_tools import store

from tpvformer.config import DataConfig, DetectionConfig, GridConfig, ModelConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import BICYCLE_RACK, CATEGORY_LABELS, Boxes
from tpvformer.data.detection.inside import points_inside
from tpvformer.data.detection.targets import BoxMap
from tpvformer.data.formats import load_infos, open_records
from tpvformer.data.loader import collate
from tpvformer.data.nuscenes.annotations import read_annotations
from tpvformer.data.nuscenes.boxes import with_table_boxes
from tpvformer.data.nuscenes.infos.boxes import _Stored, turned, width_first
from tpvformer.data.record import Record
from tpvformer.data.scans.read import read_cloud
from tpvformer.errors import DataError
from tpvformer.geometry import quaternions
from tpvformer.untrusted.pickle import load_pickle

REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))
real = pytest.mark.skipif(
    not os.environ.get("TPVFORMER_REAL_DATA") or not (REAL / "sample").is_dir(),
    reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real",
)
GRID = GridConfig(h=10, w=10, z=4)
BOX_MAP = BoxMap.of(ModelConfig(grid=GRID, detection=DetectionConfig()))


def config(root: Path, infos: Path) -> DataConfig:
    return DataConfig(root=str(root), version=VERSION, train_infos=str(infos), val_infos=str(infos), workers=0)


def boxes_of(record: Record) -> Boxes:
    assert record.boxes is not None
    return record.boxes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tables_and_both_files_give_what_the_specification_says(root, tmp_path, seed):
    stir(root, seed)
    files = [infos_of(root, tmp_path / "infos", kind) for kind in ("pkl", "safetensors")]
    plain: List[Record] = load_infos(files[0])
    assert all(record.boxes is None for record in plain)
    tables = with_table_boxes(plain, root, VERSION)
    labels = np.concatenate([boxes_of(record).labels for record in tables])
    assert len(set(labels.tolist())) >= 8
    for i, record in enumerate(tables):
        wanted = plain_boxes(root, record.token)
        agree(boxes_of(record), wanted)
        np.testing.assert_array_equal(boxes_of(record).attributes, wanted.attributes)
        assert {a.dtype.name for a in vars(boxes_of(record)).values() if a is not None} == {"float32", "int64"}
        for file in files:
            stored = boxes_of(open_records(config(root, file), "val", boxes=True)[i])
            for name in ("centres", "sizes", "velocities", "labels", "points", "attributes"):
                np.testing.assert_array_equal(getattr(stored, name), getattr(boxes_of(record), name), err_msg=name)
            agree(stored, boxes_of(record), 1e-6)
    assert any(np.isfinite(boxes_of(record).velocities).any() for record in tables)


@pytest.mark.parametrize("layout", BOX_LAYOUTS)
def test_every_layout_gives_the_boxes_of_the_tables(root, tmp_path, layout):
    stir(root, 3)
    path = boxed_layout(root, infos_of(root, tmp_path / "infos"), layout)
    for record in open_records(config(root, path), "val", boxes=True):
        wanted = plain_boxes(root, record.token)
        if layout == "instances":  # which does not hold racks
            wanted = wanted.take(wanted.labels != BICYCLE_RACK)
        agree(boxes_of(record), wanted)
        np.testing.assert_array_equal(boxes_of(record).attributes, wanted.attributes)  # by place, from the tables
    for record in load_infos(path, boxes=True):
        assert boxes_of(record).attributes is None


def test_training_does_not_read_tables_for_attributes(root, tmp_path):
    path = boxed_layout(root, infos_of(root, tmp_path / "infos"), "before 1.0")
    edit_table(root, "sample_annotation", lambda rows: rows[0].update(size=[]))
    assert all(boxes_of(r).attributes is None for r in open_records(config(root, path), "train", boxes=True))
    with pytest.raises(DataError, match="has the size"):
        open_records(config(root, path), "val", boxes=True)


def test_a_file_without_boxes_gets_those_of_the_tables(root, tmp_path):
    path = infos_of(root, tmp_path / "infos")
    whole = open_records(config(root, path), "val", boxes=True)
    bare = [
        {key: value for key, value in info.items() if not key.startswith(("gt_", "num_", "valid"))}
        for info in load_pickle(path)["infos"]
    ]
    cfg = config(root, path)
    store(cfg, {"infos": bare})
    for one, other in zip(whole, open_records(cfg, "val", boxes=True)):
        agree(boxes_of(one), boxes_of(other), 1e-6)
    (root / VERSION / "instance.json").unlink()
    assert all(record.boxes is None for record in open_records(cfg, "val", boxes=True))
    with pytest.raises(DataError, match="6 of 6 records .* have no boxes, nor do the tables below .* data infos"):
        FrameDataset(cfg, GRID, "val", 0, box_map=BOX_MAP)
    assert FrameDataset(cfg, GRID, "val", 0).sample(0, False).boxes is None


@pytest.mark.parametrize(
    ("times", "known"),
    [
        ((0, 0.5, 1.0), (True, True, True)),
        ((0, 1.5, 3.0), (True, True, True)),
        ((0, 1.6, 3.2), (False, False, False)),
        ((0, 0.5, 2.5), (True, True, False)),
        ((0, 1.500001, 3.0), (False, True, True)),
    ],
)
def test_velocity_is_unknown_over_a_long_gap(whole, tmp_path, times, known):
    """Three annotations of one object: the outer ones have one neighbour, the middle one two, whose span is double."""
    root = Path(shutil.copytree(whole, tmp_path / "set"))
    samples = table(root, "sample")[:2]
    third = {**samples[1], "token": "third", "prev": samples[1]["token"], "next": ""}
    rows = [samples[0], samples[1], third]
    for k, row in enumerate(rows):
        row["timestamp"] = 1_532_402_927_647_951 + round(times[k] * 1e6)
    (root / VERSION / "sample.json").write_text(json.dumps(rows))
    one = table(root, "sample_annotation")[0]
    names = ["a", "b", "c"]
    made = []
    for k, row in enumerate(rows):
        place = [one["translation"][0] + 3.0 * times[k], *one["translation"][1:]]
        links = {"prev": names[k - 1] if k else "", "next": names[k + 1] if k < 2 else ""}
        made.append({**one, "token": names[k], "sample_token": row["token"], "translation": place, **links})
    (root / VERSION / "sample_annotation.json").write_text(json.dumps(made))
    read = read_annotations(root / VERSION, {row["token"]: np.eye(4) for row in rows})
    assert read is not None
    velocities = read[1].velocities
    assert np.isfinite(velocities).all(1).tolist() == list(known)
    np.testing.assert_allclose(velocities[list(known)], np.tile([3.0, 0.0], (sum(known), 1)), atol=1e-5)


def test_samples_and_batches_hold_boxes_in_the_frame_of_the_grid(root, tmp_path):
    stir(root)
    cfg = config(root, infos_of(root, tmp_path / "infos"))
    ego = dataclasses.replace(GRID, frame="ego")
    lidar = FrameDataset(cfg, GRID, "val", 0, box_map=BOX_MAP)
    samples = [lidar.sample(i, False) for i in range(2)]
    frame = lidar.load_frame(0)
    assert frame.boxes is not None and frame.lidar2ego is not None
    assert samples[0].boxes is frame.boxes
    turned = FrameDataset(cfg, ego, "val", 0, box_map=BOX_MAP).sample(0, False).boxes
    assert turned is not None
    agree(turned, frame.boxes.transformed(frame.lidar2ego))
    assert np.abs(turned.centres[:, 2]).mean() < np.abs(frame.boxes.centres[:, 2]).mean() + 2
    batch = collate(samples, 0)
    assert [box is sample.boxes for box, sample in zip(batch.boxes, samples)] == [True, True]
    assert batch.to("cpu").boxes == batch.boxes
    plain = FrameDataset(cfg, GRID, "val", 0)
    assert collate([plain.sample(0, False)], 0).boxes == []


def test_lidar_points_lie_in_the_boxes(root, tmp_path):
    """The street's own annotations, not stirred: about as many points as num_lidar_pts lie in each."""
    cfg = config(root, infos_of(root, tmp_path / "infos"))
    data = FrameDataset(cfg, GRID, "val", 0, box_map=BOX_MAP)
    said = seen = 0
    for i in range(len(data)):
        frame = data.load_frame(i)
        assert frame.boxes is not None and frame.boxes.points is not None
        said += int(frame.boxes.points.sum())
        seen += int(points_inside(frame.boxes, frame.points).sum())
    assert 0.8 * said < seen < 1.1 * said


def test_the_convention_is_that_of_the_whole_file():
    """One record with pedestrians alone is read as the cars of another say."""

    def stored(*names: str) -> _Stored:
        boxes = np.array(
            [[0, 0, 0, 4.5, 1.8, 1.5, 0.3] if n == "car" else [0, 0, 0, 0.6, 0.7, 1.7, 0.3] for n in names]
        )
        return _Stored(boxes, list(names), np.zeros((len(names), 2)), None)

    assert not width_first([stored("pedestrian"), stored("car", "car")])
    older = [one._replace(boxes=turned(one.boxes)) for one in (stored("pedestrian"), stored("car"))]
    assert width_first(older)
    assert width_first([stored("pedestrian")])  # nothing tells: the older
    np.testing.assert_allclose(turned(turned(stored("car").boxes)), stored("car").boxes)


def test_categories_are_those_of_the_detection_task():
    assert CATEGORY_LABELS["vehicle.bus.bendy"] == CATEGORY_LABELS["vehicle.bus.rigid"] == 3
    assert CATEGORY_LABELS["static_object.bicycle_rack"] == BICYCLE_RACK
    assert "vehicle.emergency.police" not in CATEGORY_LABELS


@real
def test_real_boxes_of_mmdetection3d_1_contain_their_lidar_points():
    (record,) = load_infos(next((REAL / "sample").glob("*.pkl")), boxes=True)
    boxes, (scan,) = boxes_of(record), (REAL / "sample").glob("*.pcd.bin")
    stored = load_pickle(next((REAL / "sample").glob("*.pkl")))["data_list"][0]["instances"]
    kept = [one for one in stored if one["bbox_label_3d"] >= 0]
    said = np.array([one["num_lidar_pts"] for one in kept])
    seen = points_inside(boxes, read_cloud(scan, record.token).points)
    assert len(boxes) == len(kept) > 60
    assert (seen == said).mean() > 0.85
    assert abs(int(seen.sum()) - int(said.sum())) < 0.03 * said.sum()
    other = dataclasses.replace(boxes, yaws=-boxes.yaws - np.pi / 2)  # the older convention of the yaw
    assert points_inside(other, read_cloud(scan, record.token).points).sum() < 0.5 * said.sum()
    _check_headings(boxes, 0.9)


@real
def test_real_boxes_of_mmdetection3d_0_drive_where_they_head():
    """No scan belongs to these infos: moving vehicles drive ahead, and cars are longer than wide."""
    records = load_infos(REAL / "infos" / "nuscenes_infos_mini_val.pkl", boxes=True)
    boxes = [boxes_of(record) for record in records]
    whole = Boxes(*(np.concatenate([getattr(b, f.name) for b in boxes]) for f in dataclasses.fields(Boxes)[:5]))
    assert len(records) == 81
    cars = whole.sizes[whole.labels == 0]
    assert (cars[:, 0] > 1.5 * cars[:, 1]).all()
    assert 4.2 < cars[:, 0].mean() < 4.9
    assert 0 < np.isnan(whole.velocities).any(1).sum() < 50
    assert (whole.labels == BICYCLE_RACK).sum() == 54
    _check_headings(whole, 0.9)


def _check_headings(boxes: Boxes, share: float) -> None:
    speeds = np.hypot(*boxes.velocities.T)
    moving = (speeds > 2) & np.isin(boxes.labels, [0, 1, 3]) | (speeds > 1) & (boxes.labels == 8)
    ways = np.arctan2(boxes.velocities[:, 1], boxes.velocities[:, 0])
    off = np.abs(np.angle(np.exp(1j * (boxes.yaws - ways))))[moving]
    assert len(off) > 10
    assert (off < 0.3).mean() > share


@real
def test_tables_made_of_real_boxes_give_these_back(tmp_path):
    """The real tables have no annotations: those of the real frame, as rows in the global frame, are read again."""
    (record,) = load_infos(next((REAL / "sample").glob("*.pkl")), boxes=True)
    boxes, folder = boxes_of(record), Path(shutil.copytree(REAL / "tables", tmp_path / "v1.0-trainval"))
    assert record.lidar2ego is not None and record.ego2global is not None
    lidar2global = record.ego2global @ record.lidar2ego
    category = {row["name"]: row["token"] for row in json.loads((folder / "category.json").read_text())}
    of_label = {label: category[name] for name, label in CATEGORY_LABELS.items()}
    rows, instances = [], []
    for i in range(len(boxes)):
        turn = np.eye(3)
        turn[:2, :2] = [[np.cos(boxes.yaws[i]), -np.sin(boxes.yaws[i])], [np.sin(boxes.yaws[i]), np.cos(boxes.yaws[i])]]
        assert boxes.points is not None
        rows.append(
            {
                "token": f"a{i}", "sample_token": record.token, "instance_token": f"i{i}", "visibility_token": "",
                "attribute_tokens": [], "prev": "", "next": "", "num_lidar_pts": int(boxes.points[i]),
                "translation": (lidar2global @ [*boxes.centres[i].astype(float), 1])[:3].tolist(),
                "size": boxes.sizes[i][[1, 0, 2]].tolist(), "num_radar_pts": 0,
                "rotation": quaternions(lidar2global[:3, :3] @ turn).tolist(),
            }
        )  # fmt: skip
        instances.append({"token": f"i{i}", "category_token": of_label[int(boxes.labels[i])]})
    (folder / "sample_annotation.json").write_text(json.dumps(rows))
    (folder / "instance.json").write_text(json.dumps(instances))
    (back,) = with_table_boxes([dataclasses.replace(record, boxes=None)], tmp_path, "v1.0-trainval")
    unknown = np.full((len(boxes), 2), np.nan, np.float32)
    agree(boxes_of(back), dataclasses.replace(boxes, velocities=unknown), 1e-3)
