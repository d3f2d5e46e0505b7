"""Dense labels under a label map of one's own, and SurroundOcc's in the order with free space first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import yaml

from tpvformer.compat import load_config
from tpvformer.config import DataConfig, override
from tpvformer.data.nuscenes.occupancy import OccupancyLabels
from tpvformer.errors import DataError
from tpvformer.labels import KITTI_RAW, raw_to_class

SHAPE = (200, 200, 16)


def write_map(folder: Path, **lists: Any) -> str:
    """Three classes: thing, stuff, free; ``lists`` of each class and the map's other keys."""
    names = ("thing", "stuff", "free")
    rows = [{"name": name, "color": "#aa0000", **lists.pop(name, {})} for name in names]
    (folder / "three.yaml").write_text(yaml.safe_dump({"classes": rows, "empty": "free", **lists}))
    return str(folder / "three.yaml")


DENSE: Dict[str, Any] = {"thing": {"voxels": [*range(1, 11)]}, "stuff": {"voxels": [0, *range(11, 17)]}}
DENSE["free"] = {"voxels": 17}


def test_classes_of_occ3d_become_one_s_own(tmp_path: Path) -> None:
    stored = np.random.RandomState(0).randint(0, 18, SHAPE).astype(np.uint8)
    (tmp_path / "scene/token").mkdir(parents=True)
    masks = {name: np.ones(SHAPE, np.uint8) for name in ("mask_lidar", "mask_camera")}
    np.savez_compressed(tmp_path / "scene/token/labels.npz", semantics=stored, **masks)
    label_map = write_map(tmp_path, **DENSE)
    labels = OccupancyLabels(DataConfig(occupancy="occ3d", occupancy_root=str(tmp_path), label_map=label_map))
    dense = labels.read(labels.find("token", ""), "token")
    table = np.array([1, *[0] * 10, *[1] * 6, 2])
    assert np.array_equal(dense.classes, table[stored]) and dense.mask is not None


def test_a_whole_configuration_for_one_s_own_dense_classes(tmp_path: Path) -> None:
    words = ["model.num_classes=3", "data.fill_label=2", f"data.label_map={write_map(tmp_path, **DENSE)}"]
    config = override(load_config("tpv_occ3d"), words)
    assert config.data.label_classes.empty == 2 and config.data.raw_to_class == ()


def test_surroundocc_with_free_space_first(tmp_path: Path) -> None:
    """The order of 17 classes that models of SurroundOcc's code have: free space is 0, and noise has no class."""
    (tmp_path / "samples").mkdir()
    rows = np.array([[0, 0, 0, 0], [1, 2, 3, 16], [199, 199, 15, 4]])
    np.save(tmp_path / "samples/scan.bin.npy", rows)
    words = ["model.num_classes=17", "data.label_map=surroundocc", "data.fill_label=0", "data.ignore_label=255"]
    config = override(load_config("tpv_surroundocc"), [*words, f"data.occupancy_root={tmp_path}"])
    labels = OccupancyLabels(config.data)
    dense = labels.read(labels.find("token", "scan.bin"), "token")
    assert [int(dense.classes[tuple(row[:3])]) for row in rows] == [255, 16, 4]
    assert (dense.classes == 0).sum() == np.prod(SHAPE) - 3
    assert config.data.label_classes.names[0] == "empty" and config.data.raw_to_class[0] == 255
    assert config.data.raw_to_class[1:] == tuple(c or 255 for c in raw_to_class("nuscenes")[1:])


def test_raw_labels_of_semantickitti_become_one_s_own(tmp_path: Path) -> None:
    folder, count = tmp_path / "sequences/08/voxels", 256 * 256 * 32
    folder.mkdir(parents=True)
    raws = np.array(sorted(KITTI_RAW), np.uint16)
    stored = raws[np.random.RandomState(0).randint(0, len(raws), count)]
    stored.tofile(folder / "000000.label")
    np.zeros(count // 8, np.uint8).tofile(folder / "000000.invalid")
    moving = [int(raw) for raw in raws if raw >= 252]
    still = [int(raw) for raw in raws if 1 < raw < 252 and raw != 52]
    label_map = write_map(tmp_path, thing={"raw": moving}, stuff={"raw": still}, free={"raw": 0}, unlabelled=[1, 52])
    words = [
        "model.num_classes=3",
        f"data.label_map={label_map}",
        f"data.occupancy_root={tmp_path}",
        "data.fill_label=2",
    ]
    config = override(load_config("tpv_kitti_ssc"), [*words, "loss.class_weights=[]", "loss.affinity=false"])
    labels = OccupancyLabels(config.data)
    classes = labels.read(labels.find("08/000000", ""), "08/000000").classes.ravel()
    assert (classes[stored == 0] == 2).all() and (classes[np.isin(stored, (1, 52))] == 255).all()
    assert (classes[stored >= 252] == 0).all() and (classes[np.isin(stored, still)] == 1).all()
    stored[7] = 2
    stored.tofile(folder / "000000.label")
    with pytest.raises(DataError, match="holds label 2, which SemanticKITTI does not define"):
        labels.read(labels.find("08/000000", ""), "08/000000")
