"""A small street with dense labels of both kinds, and configurations that read them with the engine's tiny model."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

from engine_tools import MODEL, tiny_config

from tpvformer.config import OCCUPANCY_GRIDS, Config, DataConfig, GridConfig, LossConfig
from tpvformer.data.pickle_safe import load_pickle
from tpvformer.data.synthetic import write_dataset

SEED, SIZE, VERSION = 6, (64, 32), "v1.0-mini"
FRAMES = 5  # of validation: two scenes of two and a training frame


def write_street(root: Path) -> Path:
    """Three scenes of two frames, below ``root``."""
    out = root / "street"
    write_dataset(out, 3, SIZE, SEED, 2, workers=1, occupancy=True)
    infos, more = (load_pickle(out / f"nuscenes_infos_{split}.pkl") for split in ("val", "train"))
    infos["infos"] += more["infos"][:1]
    (out / "nuscenes_infos_val.pkl").write_bytes(pickle.dumps(infos, protocol=4))
    return out


def dense_config(street: Path, kind: str, **data: Any) -> Config:
    """The tiny model on the labels of ``kind``; ``data`` changes fields of the data section."""
    labels = OCCUPANCY_GRIDS[kind]
    grid = GridConfig(25, 25, 4, 8, 8, 4, labels.pc_range, labels.frame)
    section = DataConfig(
        root=str(street),
        version=VERSION,
        train_infos=str(street / "nuscenes_infos_train.pkl"),
        val_infos=str(street / "nuscenes_infos_val.pkl"),
        label_map="occ3d" if kind == "occ3d" else "nuscenes-noIgnore",
        ignore_label=255 if kind == "occ3d" else 0,
        fill_label=17,
        occupancy=kind,
        occupancy_root=str(street / {"occ3d": "gts", "surroundocc": "surroundocc"}[kind]),
        occupancy_mask="camera" if kind == "occ3d" else "",
        workers=0,
    )
    section = dataclasses.replace(section, photometric=False, grid_mask=False, **data)
    plain = tiny_config(DataConfig(), epochs=1)
    model = dataclasses.replace(MODEL, grid=grid, num_classes=18)
    return Config(f"tiny_{kind}", model, section, LossConfig("voxel", "voxel"), plain.optim, plain.train)
