"""Export a checkpoint, or convert its weights, without building a model first."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional

from tpvformer.compat import load_weights, save_reference
from tpvformer.config import Config
from tpvformer.errors import ConfigError
from tpvformer.export import WRITERS
from tpvformer.export.traced import Size
from tpvformer.model import TPVFormer


def export_checkpoint(
    config: Config, weights: Path, form: str, out: Path, cameras: int, size: Size, which: Optional[str] = None
) -> Iterator[str]:
    """Write the model with ``weights`` as a file of a format in WRITERS; yield lines about it.

    Raises ConfigError and CheckpointError.
    """
    model = TPVFormer(config.model)
    report = load_weights(model, weights, which=which)
    yield str(report)
    if report.kind == "backbone" and form != "weights":
        raise ConfigError(f"--ckpt-path {weights} holds an image backbone alone; expected a whole TPVFormer")
    yield WRITERS[form](model, config, out, cameras, size)


def convert_checkpoint(
    source: str, out: Path, config: Optional[str], half: bool, allow_nonfinite: bool, which: Optional[str] = None
) -> Iterator[str]:
    """Write the weights of ``source`` as a folder to share, or as a file under the reference's names; yield lines.

    The suffix of ``out`` decides. The other arguments are those of ``from_pretrained`` and ``save_pretrained``. Raises
    ConfigError and CheckpointError.
    """
    from tpvformer.api import TPVFormer as Opened

    to_file = out.suffix in (".pth", ".pt", ".safetensors")
    if to_file and half:
        raise ConfigError(f"--half is for a folder, but OUT is the file {out}; leave --half out or name a folder")
    model = Opened.from_pretrained(source, config, "cpu", allow_nonfinite=allow_nonfinite, which=which)
    yield str(model.report)
    if to_file:
        save_reference(model.network, out)
    else:
        model.save_pretrained(out, half)
    yield f"written to {out}"
