"""Score a checkpoint, and write a submission for nuScenes' server: ``tpvformer eval``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import add_config, add_device, add_own_model, add_weights, read_scored
from tpvformer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``eval``."""
    add_config(parser, stored=True)
    add_weights(parser)
    add_device(parser)
    parser.add_argument(
        "--permute-cameras",
        action="store_true",
        help="also score exchanged cameras, a constant class, colour without a network; boxes at mean places",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all scores as JSON")
    parser.add_argument(
        "--split", choices=("val", "test"), default="val", help="test has no labels, so no scores (default: val)"
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="write predictions for nuScenes' servers: FILE.zip for lidarseg, FILE.json for detection",
    )
    parser.add_argument(
        "--also-uses",
        choices=("lidar", "external"),
        action="append",
        default=[],
        help="data that the submission declares beside cameras",
    )
    parser.add_argument(
        "--past-seconds",
        type=float,
        metavar="SECONDS",
        help="let a temporal model read past frames of at most SECONDS before (nuScenes' rule: 0.5; 0: none)",
    )
    parser.add_argument(
        "--flicker",
        action="store_true",
        help="also score how often the class of a static place changes from frame to frame; reads scene by scene",
    )
    parser.add_argument(
        "--shuffle-poses",
        action="store_true",
        help="score a control for a temporal model: the past of each sample has the motion of another sample",
    )
    add_own_model(parser)
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    if args.also_uses and args.submission is None:
        raise ConfigError("--also-uses is for a submission; give --submission FILE.zip or FILE.json as well")
    if args.split == "test":
        return _eval_test(args)
    from tpvformer.engine.evaluation.checkpoint_scores import evaluate_checkpoint

    outputs = args.permute_cameras, args.json, args.submission, args.also_uses
    past = args.past_seconds, args.flicker, args.shuffle_poses
    config, weights, own, said = read_scored(args)
    evaluate_checkpoint(config, weights, args.device, *outputs, *past, args.which, own, said)
    return 0


def _eval_test(args: argparse.Namespace) -> int:
    given = {
        "--json": args.json is not None,
        "--permute-cameras": args.permute_cameras,
        "--flicker": args.flicker,
        "--shuffle-poses": args.shuffle_poses,
    }
    if any(given.values()):
        option = next(name for name, found in given.items() if found)
        raise ConfigError(f"--split test has no published labels and so no scores; leave {option} out")
    if args.submission is None:
        raise ConfigError(
            "--split test has no published labels and so no scores; give --submission FILE.zip or FILE.json for "
            "nuScenes' server"
        )
    from tpvformer.engine.evaluation.checkpoint_scores import predict_test_set

    config, weights, own, said = read_scored(args)
    how = args.device, args.also_uses, args.past_seconds, args.which
    predict_test_set(config, weights, args.submission, *how, own, said)
    return 0
