"""A small street with dense labels of both kinds, and the shipped configurations for it with a tiny model."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

from engine_tools import MODEL, ROOT, tiny_config

from tpvformer.compat import load_config
from tpvformer.config import Config, DataConfig
from tpvformer.data.street.write import write_dataset
from tpvformer.untrusted.pickle import load_pickle

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
    """config/tpv_<kind>.py with the tiny model and the street's files; ``data`` changes fields of the data section."""
    shipped = load_config(str(ROOT / "config" / f"tpv_{kind}.py"))
    grid = dataclasses.replace(shipped.model.grid, w=25, h=25, z=4, scale_w=8, scale_h=8, scale_z=4)
    section = dataclasses.replace(
        shipped.data,
        root=str(street),
        version=VERSION,
        train_infos=str(street / "nuscenes_infos_train.pkl"),
        val_infos=str(street / "nuscenes_infos_val.pkl"),
        occupancy_root=str(street / {"occ3d": "gts", "surroundocc": "surroundocc"}[kind]),
        photometric=False,
        grid_mask=False,
        workers=0,
    )
    tiny = tiny_config(DataConfig(), epochs=1)
    return dataclasses.replace(
        shipped,
        name=f"tiny_{kind}",
        model=dataclasses.replace(MODEL, grid=grid, num_classes=shipped.model.num_classes),
        data=dataclasses.replace(section, **data),
        optim=tiny.optim,
        train=tiny.train,
    )
