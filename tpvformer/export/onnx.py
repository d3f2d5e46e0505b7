"""Write a model as an ONNX file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from tpvformer.config import Config
from tpvformer.errors import ConfigError
from tpvformer.export import traced
from tpvformer.model import TPVFormer

OPSET = 18
IR_VERSION = 8  # of the file's own form: what came with OPSET, so that every runtime which knows that opset reads it


def export_onnx(network: TPVFormer, config: Config, out: Path, cameras: int, size: traced.Size) -> str:
    """Write an ONNX file for ``cameras`` images of ``size`` (width, height) pixels; returns a line about it.

    Needs PyTorch 2.6 or newer and the packages of ``pip install "tpvformer[onnx]"``. Raises ConfigError.
    """
    traced.check(network, config, out, "--onnx", cameras, size)
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--onnx needs {name}; pip install 'tpvformer[onnx]'")
    program = traced.trace(network, config, cameras, size)
    with traced.quiet():
        made: Any = torch.onnx.export(
            program,
            (),
            input_names=list(traced.input_names(config)),
            output_names=list(traced.output_names(config)),
            opset_version=OPSET,
            dynamo=True,
        )
    made.model.metadata_props.update({key: json.dumps(value) for key, value in traced.facts(config, cameras).items()})
    made.model.ir_version = IR_VERSION
    traced.save(out, lambda partial: made.save(partial, external_data=False))
    return traced.line(out, cameras, size, f"opset {OPSET}")
