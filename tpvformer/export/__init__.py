"""Write a model as a file for other runtimes: one module a format, chosen here."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

from tpvformer.config import Config
from tpvformer.errors import ConfigError
from tpvformer.export.aoti import export_aoti
from tpvformer.export.onnx import export_onnx
from tpvformer.export.program import export_program
from tpvformer.export.traced import Size
from tpvformer.export.weights import export_weights
from tpvformer.model import TPVFormer

Writer = Callable[[TPVFormer, Config, Path, int, Size], str]
WRITERS: Dict[str, Writer] = {  # by format: writes the file and returns a line about it
    "onnx": export_onnx,
    "pt2": export_program,
    "aoti": export_aoti,
    "weights": export_weights,
}
_FORMATS = {".onnx": "onnx", ".pt2": "pt2", ".pth": "weights", ".safetensors": "weights"}


def format_of(path: Path) -> str:
    """Return the format that a file's suffix stands for. Raises ConfigError for another suffix."""
    if path.suffix not in _FORMATS:
        raise ConfigError(f"path is {path}; expected a name that ends in .onnx, .pt2, .pth or .safetensors")
    return _FORMATS[path.suffix]
