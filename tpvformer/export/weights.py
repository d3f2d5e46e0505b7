"""Write a model's weights under the reference's names."""

from __future__ import annotations

from pathlib import Path

from tpvformer.compat import save_reference
from tpvformer.config import Config
from tpvformer.errors import ConfigError
from tpvformer.export.traced import Size
from tpvformer.model import TPVFormer

_PROGRAMS = {".onnx": "--onnx", ".pt2": "--pt2"}


def export_weights(network: TPVFormer, config: Config, out: Path, cameras: int, size: Size) -> str:
    """Write a .pth or .safetensors file; returns a line about it. Configuration, cameras and size are not stored.

    Raises ConfigError for the suffix of a whole model, CheckpointError where the file cannot be written.
    """
    option = _PROGRAMS.get(out.suffix)
    if option is not None:
        raise ConfigError(
            f"--out is {out}, but --out writes weights alone, .pth or .safetensors; give {option} {out} for a model"
        )
    save_reference(network, out)
    return f"written to {out}"
