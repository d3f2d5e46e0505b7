"""Write a model as a program of ``torch.export``."""

from __future__ import annotations

from pathlib import Path

import torch

from tpvformer.config import Config
from tpvformer.export import traced
from tpvformer.model import TPVFormer


def export_program(network: TPVFormer, config: Config, out: Path, cameras: int, size: traced.Size) -> str:
    """Write a .pt2 file, which ``torch.export.load`` reads, for images of ``size``; returns a line about it.

    Needs PyTorch 2.6 or newer. Raises ConfigError.
    """
    traced.check(network, config, out, "--pt2", cameras, size)
    program = traced.trace(network, config, cameras, size)
    with traced.quiet():
        traced.save(out, lambda partial: torch.export.save(program, partial))
    return traced.line(out, cameras, size, "torch.export")
