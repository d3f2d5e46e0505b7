"""A tiny model whose every tensor shows in the answer, and how answers are compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch
from engine_tools import tiny_config

from tpvformer import TPVFormer
from tpvformer.config import Config, DataConfig

TINY = tiny_config(DataConfig(workers=0))
CONFIG = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, image_heads=4))  # as many as plane_heads


def lively(config: Config) -> TPVFormer:
    """None of its tensors is left at a constant, so that everything shows in the answer."""
    made, generator = TPVFormer(config, device="cpu"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def images_of(rig: Path) -> Dict[str, Path]:
    return {file.stem: file for file in sorted((rig.parent / "images").iterdir())}


def assert_same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    assert np.abs(a.voxels.probabilities - b.voxels.probabilities).max() <= tolerance
    if tolerance == 0:
        assert np.array_equal(a.voxels.labels, b.voxels.labels)
