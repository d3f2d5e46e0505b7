"""Deterministic weights for comparisons with the reference: every tensor follows from its name and shape.

z is standard normal from PCG64 seeded with crc32 of the reference's name; each kind of tensor scales it so that
activations stay of order one.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import Optional, Sequence

import numpy as np

_DERIVED = re.compile(r"(ref_[23]d_(hw|zh|wz)|cross_view_ref_points|tpv_mask_hw)$")
_EMBEDDING = re.compile(r"(tpv_embedding_(hw|zh|wz)\.weight|level_embeds|cams_embeds|(h|w|z|row|col)_embed\.weight)$")
_OFFSET_BIAS = re.compile(r"sampling_offsets(\.\d)?\.bias$")
IMAGE_MEAN = np.array([103.530, 116.280, 123.675], np.float32)  # BGR


def fill_value(name: str, shape: Sequence[int]) -> Optional[np.ndarray]:
    """The value of the tensor that the reference calls ``name``; None where it is computed from the configuration."""
    if _DERIVED.search(name):
        return None
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    z = generator.standard_normal(math.prod(shape)).reshape(shape)
    fan_in = math.prod(shape[1:])
    return _scaled(name, z, fan_in).astype(np.float32)


def _scaled(name: str, z: np.ndarray, fan_in: int) -> np.ndarray:
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return 1 + 0.25 * np.abs(z)
    if last == "running_mean":
        return 0.1 * z
    if name == "img_backbone.conv1.weight":
        return z / math.sqrt(fan_in) / 50
    if name.endswith("conv_offset.weight"):
        return 0.5 * z / math.sqrt(fan_in)
    if name.endswith("conv_offset.bias") or _EMBEDDING.search(name):
        return 0.5 * z
    if name.endswith("bn3.weight"):
        return 0.3 * (1 + 0.1 * z)
    if _OFFSET_BIAS.search(name):
        return z
    if last == "weight":
        return 1 + 0.1 * z if z.ndim == 1 else z / math.sqrt(fan_in)
    if last == "bias":
        return 0.1 * z
    raise KeyError(f"no rule for {name}")
