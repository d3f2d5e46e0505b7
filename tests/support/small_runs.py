"""The configuration of runs that are killed and resumed."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine_tools import MODEL, tiny_config

from tpvformer.config import Config, DataConfig, GridConfig


def config(data: DataConfig, dropout: float = 0.1, **train: Any) -> Config:
    backbone = dataclasses.replace(MODEL.backbone, base_width=4)
    model = dataclasses.replace(MODEL, num_cams=1, dropout=dropout, grid=GridConfig(w=4, h=3, z=2), backbone=backbone)
    return dataclasses.replace(tiny_config(dataclasses.replace(data, image_scale=0.5), **train), model=model)
