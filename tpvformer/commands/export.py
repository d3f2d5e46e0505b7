"""Export a model for other runtimes, or convert its weights: ``tpvformer export`` and ``tpvformer convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import add_config, add_weights, add_which, positive, read_model, size


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``export``."""
    parser.description = _EXPORT
    add_config(parser, stored=True)
    add_weights(parser)
    forms = parser.add_mutually_exclusive_group(required=True)
    forms.add_argument("--onnx", type=Path, metavar="FILE", help="an ONNX file")
    forms.add_argument("--pt2", type=Path, metavar="FILE", help="a program of torch.export")
    forms.add_argument("--aoti", type=Path, metavar="FILE", help="the same, compiled by AOTInductor; takes minutes")
    forms.add_argument(
        "--out", type=Path, metavar="FILE", help="weights under the reference's names, .pth or .safetensors"
    )
    parser.add_argument(
        "--cameras", type=positive, default=6, metavar="N", help="number of cameras, not for --out (default: 6)"
    )
    parser.add_argument(
        "--size", type=size, metavar="WxH", default=(1600, 900), help="size of their images (default: 1600x900)"
    )
    parser.set_defaults(run=_export)


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``convert``."""
    parser.description = _CONVERT
    parser.add_argument("source", help="a checkpoint, a folder of weights, a work dir, demo, or a hub's owner/name")
    parser.add_argument("out", type=Path, help="FILE.pth or FILE.safetensors: the reference's names; else a folder")
    parser.add_argument(
        "--py-config", metavar="CONFIG", help="its configuration (default: the stored one, or inferred from the shapes)"
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="with a folder: store parameters as float16, in half the bytes; they are opened as float32",
    )
    add_which(parser)
    parser.add_argument("--allow-nonfinite", action="store_true", help="accept weights with NaN or infinite numbers")
    parser.set_defaults(run=_convert)


_EXPORT = (
    "--onnx, --pt2 and --aoti write the whole model for one rig: images uint8 RGB (cameras, height, width, 3), "
    "lidar2img (cameras, 4, 4) and any number of points (P, 3) in; logits of voxels and of points out. "
    "docs/export.md says more."
)


_CONVERT = (
    "Reads all sources of from_pretrained (docs/python.md). A folder gets config.json, model.safetensors and a model "
    "card; a file gets the weights under the reference's names, flat, as the published ones are."
)


def _export(args: argparse.Namespace) -> int:
    from tpvformer.export.checkpoint import export_checkpoint

    files = {"onnx": args.onnx, "pt2": args.pt2, "aoti": args.aoti, "weights": args.out}
    ((form, file),) = ((form, file) for form, file in files.items() if file is not None)  # the parser takes one
    for line in export_checkpoint(*read_model(args), form, file, args.cameras, args.size, args.which):
        print(line)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from tpvformer.export.checkpoint import convert_checkpoint

    given = (args.py_config, args.half, args.allow_nonfinite, args.which)
    for line in convert_checkpoint(args.source, args.out, *given):
        print(line)
    return 0
