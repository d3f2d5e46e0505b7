"""The command ``tpvformer``. Heavy imports happen inside the commands, so that asking for help is quick."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional, Tuple

from tpvformer.config import Config, ConfigError, override


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 the run failed, 2 something given to it was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        from tpvformer.tour import tour

        print(tour())
        return 0
    prepare_torch()
    args = _parser(argv).parse_args(argv)
    return in_one_line(f"tpvformer {args.command}", lambda: args.run(args))


def prepare_torch() -> None:
    """Set what PyTorch reads when it is loaded; to be called before.

    Threads without work look for it for some 10 us instead of milliseconds before they sleep: no slower on idle cores,
    and where anything else wants the cores it gets them. A vendor's backend is loaded when its device is asked for: the
    automatic way fails for everybody where its driver is absent.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def in_one_line(name: str, run: Callable[[], int]) -> int:
    """The exit status of ``run``; what is wrong with a user's input becomes one line that begins with ``name``."""
    try:
        return run()
    except (ValueError, RuntimeError) as err:
        code = _user_error(err)
        if code is None:
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(1)  # what goes wrong everywhere is said by process 0, whose end stops this one meanwhile
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{name}{where}: {err}", file=sys.stderr)
        return code
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{name}: {err.filename or 'a file'} cannot be written: {err.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _user_error(err: Exception) -> Optional[int]:
    """The exit status of an error that needs no traceback; None for a defect of ours."""
    if isinstance(err, ConfigError):
        return 2
    from tpvformer.compat.errors import CheckpointError
    from tpvformer.data.types import DataError
    from tpvformer.engine.faults.in_words import RunEnded
    from tpvformer.engine.meters import NonFiniteLoss
    from tpvformer.engine.saving import SaveError

    if isinstance(err, (DataError, CheckpointError)):
        return 2
    return 1 if isinstance(err, (NonFiniteLoss, RunEnded, SaveError)) else None


def _parser(argv: List[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tpvformer", description="TPVFormer: six cameras to 3D semantics.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a configuration", description=_TRAIN)
    _add_config(train)
    train.add_argument("--work-dir", "--work_dir", type=Path, help="where the run is written (default: output/<name>)")
    train.add_argument("--resume-from", type=Path, help="checkpoint to continue (default: latest.pth of the work dir)")
    train.add_argument("--max-epochs", type=_positive, help="short for --set train.epochs=N")
    train.add_argument(
        "--max-steps", type=_positive, help="measure speed: stop after N steps, neither evaluate nor save"
    )
    train.add_argument(
        "--deterministic", action="store_true", help="results that do not depend on timing: bit-equal runs on a CPU"
    )
    many = train.add_mutually_exclusive_group()
    many.add_argument("--processes", type=_positive, default=1, help="start N processes here (default: %(default)s)")
    many.add_argument(
        "--max-processes", type=_positive, metavar="N", help="one for each visible card, at most N; N without any card"
    )
    train.set_defaults(run=_train, argv=argv)

    evaluate = commands.add_parser("eval", help="score a checkpoint on the validation set; predict the test set")
    _add_config(evaluate)
    evaluate.add_argument("--ckpt-path", type=Path, required=True, help="weights: ours or the reference's")
    evaluate.add_argument(
        "--permute-cameras",
        action="store_true",
        help="also score with exchanged cameras, a constant answer, and colour without a network",
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write all scores as JSON")
    evaluate.add_argument("--split", choices=("val", "test"), default="val", help="test has no labels, so no scores")
    evaluate.add_argument("--submission", type=Path, metavar="ZIP", help="write what nuScenes' lidarseg server takes")
    evaluate.add_argument(
        "--also-uses", choices=("lidar", "external"), action="append", default=[], help="say so in the submission"
    )
    evaluate.set_defaults(run=_eval)

    synth = commands.add_parser("synth", help="write a synthetic nuScenes or SemanticKITTI data set")
    synth.add_argument("--out", type=Path, required=True, help="folder to create")
    synth.add_argument("--scenes", type=_positive, default=10, help="streets (default: %(default)s)")
    synth.add_argument("--size", type=_size, help="image size WxH (default: 1600x900)")
    synth.add_argument("--seed", type=int, default=0, help="another seed, another city (default: %(default)s)")
    synth.add_argument("--frames", type=_positive, default=8, help="key frames a scene (default: %(default)s)")
    synth.add_argument("--workers", type=_positive, help="processes (default: one a core)")
    synth.add_argument("--occupancy", action="store_true", help="also dense labels, as Occ3D and SurroundOcc have them")
    synth.add_argument("--kitti", action="store_true", help="instead: sequences as SemanticKITTI has them, one a scene")
    synth.set_defaults(run=_synth)

    bench = commands.add_parser("bench", help="measure a training step: where its time goes", description=_BENCH)
    _add_config(bench)
    bench.add_argument("--size", type=_size, help="random images as they lie on the disk, WxH (default: 1600x900)")
    bench.add_argument("--points", type=_positive, help="lidar points of a random sample (default: 34720)")
    bench.add_argument("--steps", type=_positive, default=5, help="steps to measure (default: %(default)s)")
    bench.add_argument("--data", action="store_true", help="read the configured training set instead")
    bench.add_argument("--profile", type=Path, metavar="DIR", help="also record some steps, as traces for TensorBoard")
    bench.add_argument("--out", type=Path, help="also write the numbers, the machine and the command as JSON")
    bench.set_defaults(run=_bench, argv=argv)

    check = commands.add_parser("selfcheck", help="does everything work on this hardware?", description=_SELFCHECK)
    default = "(default: tpv_lidarseg_dim64, a small one on a CPU)"
    check.add_argument("--py-config", "--py_config", help=f"model to time {default}")
    check.add_argument("--device", default="auto", help="auto, cpu, or a kind of accelerator (default: auto)")
    check.add_argument("--size", type=_size, help="images of the timed steps, WxH (default: 1600x900; small on a CPU)")
    check.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    check.set_defaults(run=_selfcheck)

    doctor = commands.add_parser("doctor", help="versions, devices and kernels, and what to mend first")
    if argv[:1] == ["doctor"]:
        from tpvformer import doctor_command

        doctor_command.add_arguments(doctor)

    geometry = commands.add_parser("check-geometry", help="paint lidar points on the six images of a frame")
    if argv[:1] == ["check-geometry"]:
        from tpvformer import check_geometry

        check_geometry.add_arguments(geometry)
        geometry.set_defaults(run=check_geometry.run)

    data = commands.add_parser("data", help="make info files from nuScenes' tables; check a download")
    if argv[:1] == ["data"]:
        from tpvformer import data_command

        data_command.add_arguments(data)

    view = commands.add_parser("view", help="show what predict wrote: a page, pictures, a video, PLY files")
    if argv[:1] == ["view"]:
        from tpvformer import view_command

        view_command.add_arguments(view)

    export = commands.add_parser("export", help="a model for other runtimes (ONNX, torch.export) or the reference")
    convert = commands.add_parser("convert", help="weights from one form to another: ours, the reference's, a folder")
    if argv[:1] in (["export"], ["convert"]):
        from tpvformer import export_command

        export_command.add_export(export, lambda: _add_config(export, device=False), _config)
        export_command.add_convert(convert)

    results = commands.add_parser("results", help="print the outcome of a run; write it as <CaseName>.log")
    page = commands.add_parser("report", help="one page of a run: its curves, scores and worst frames")
    if argv[:1] in (["results"], ["report"]):
        from tpvformer import report_command

        report_command.add_results(results)
        report_command.add_arguments(page)

    picture = commands.add_parser("picture", help="one PNG of a validation frame with a checkpoint's predictions")
    _add_config(picture)
    picture.add_argument("--ckpt-path", type=Path, required=True, help="weights: ours or the reference's")
    picture.add_argument("--index", type=int, default=0, help="number of the validation frame (default: %(default)s)")
    picture.add_argument("--out", type=Path, default=Path("out/frame.png"), help="the picture (default: %(default)s)")
    picture.set_defaults(run=_picture)

    predict = commands.add_parser("predict", help="the class of every voxel of a rig's frames, as npz files")
    _add_config(predict)
    predict.add_argument("--ckpt-path", type=Path, required=True, help="weights: ours or the reference's")
    source = predict.add_mutually_exclusive_group()
    source.add_argument("--rig", help="cameras and frames of one's own, as docs/rig.md says")
    source.add_argument("--split", choices=("val", "test"), help="else: the configured set (default: val)")
    predict.add_argument("--index", type=int, help="number of the one frame to look at (default: all)")
    predict.add_argument("--truth", action="store_true", help="also store the set's labels, for tpvformer view")
    predict.add_argument("--out", type=Path, default=Path("out"), help="folder of <token>.npz (default: %(default)s)")
    predict.set_defaults(run=_predict)

    overlay = commands.add_parser("overlay", help="exchange four files of mmcv 1.x and mmdet 2.x for ours, or back")
    overlay.add_argument("action", choices=("check", "apply", "revert"), help="check: status 1 unless all are ours")
    overlay.add_argument("--mmcv", type=Path, help="its folder, or a checkout (default: both installed packages)")
    overlay.add_argument("--mmdet", type=Path, help="likewise; given alone, the other package is left alone")
    overlay.set_defaults(run=_overlay)
    return parser


_TRAIN = "Started by torchrun (-m tpvformer train ...) it is one of many processes; --processes starts them itself."


_SELFCHECK = (
    "Looks for the device's kernels, compares every operation, the optimiser and a training step with the CPU, forward "
    "and backward, watches for work that falls back to the CPU, and times 20 training steps. Exit status 0: all well."
)


_BENCH = "Weights are random, and so are inputs unless --data is given. OMP_NUM_THREADS sets the processor threads."


def _add_config(parser: argparse.ArgumentParser, device: bool = True) -> None:
    parser.add_argument("--py-config", "--py_config", required=True, help="configuration: ours or the reference's")
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change one setting; may be given again",
    )
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, or a kind of accelerator (default: auto)")


def _config(args: argparse.Namespace, extra: Tuple[str, ...] = ()) -> Config:
    from tpvformer.compat import load_config

    return override(load_config(args.py_config), [*args.assignments, *extra])


def _train(args: argparse.Namespace) -> int:
    if (args.processes > 1 or args.max_processes) and "RANK" not in os.environ:
        from tpvformer.engine.launch import launch, one_a_card

        processes = one_a_card(args.max_processes, args.device) if args.max_processes else args.processes
        if processes > 1:
            return launch(processes, args.argv)

    from tpvformer.engine.run import train

    extra = () if args.max_epochs is None else (f"train.epochs={args.max_epochs}",)
    config = _config(args, extra)
    work_dir = args.work_dir or Path("output") / config.name
    typed = shlex.join(["tpvformer", *args.argv])
    outcome = train(config, work_dir, args.device, args.resume_from, args.max_steps, args.deterministic, typed)
    if outcome and args.max_steps is None:
        from tpvformer.report_command import after_training

        after_training(work_dir, args.device)
    return 0


def _eval(args: argparse.Namespace) -> int:
    if args.also_uses and args.submission is None:
        raise ConfigError("--also-uses is for a submission; give --submission FILE.zip as well")
    if args.split == "test":
        return _eval_test(args)
    from tpvformer.engine.score import evaluate_checkpoint

    scores = (args.permute_cameras, args.json)
    evaluate_checkpoint(_config(args), args.ckpt_path, args.device, *scores, args.submission, args.also_uses)
    return 0


def _eval_test(args: argparse.Namespace) -> int:
    if args.json is not None or args.permute_cameras:
        option = "--json" if args.json is not None else "--permute-cameras"
        raise ConfigError(f"--split test has no published labels and so no scores; leave {option} away")
    if args.submission is None:
        raise ConfigError(
            "--split test has no published labels and so no scores; give --submission FILE.zip for nuScenes' server"
        )
    from tpvformer.engine.score import predict_test_set

    predict_test_set(_config(args), args.ckpt_path, args.submission, args.device, args.also_uses)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from tpvformer.engine.bench import report, step
    from tpvformer.engine.device import pick_device

    result = step.bench(_config(args), args.device, args.size, args.points, args.steps, args.data, args.profile)
    result["command"] = shlex.join(["tpvformer", *args.argv])
    print(report.step_report(result))
    if args.out is not None:
        report.write({**report.surroundings(pick_device(args.device)[0], "tpvformer"), **result}, args.out)
        print(f"written to {args.out}")
    if args.profile is not None:
        print(f"traces in {args.profile}")
    return 0


def _selfcheck(args: argparse.Namespace) -> int:
    from tpvformer.compat import load_config
    from tpvformer.engine.bench import report
    from tpvformer.engine.selfcheck.run import selfcheck

    config = None if args.py_config is None else load_config(args.py_config)
    result = selfcheck(config, args.device, args.size, lambda line: print(line, flush=True))
    if args.json is not None:
        report.write(result, args.json)
        print(f"written to {args.json}")
    failed = sum(check["ok"] is False for check in result["checks"])
    print("everything works" if result["passed"] else f"{failed} checks failed")
    return 0 if result["passed"] else 1


def _quarters() -> Callable[[int, int], None]:
    """A callback that says when another quarter of the frames is done."""
    said = 0

    def say(done: int, total: int) -> None:
        nonlocal said
        if done < total and done * 4 // total > said:
            said = done * 4 // total
            print(f"{done} of {total} frames", file=sys.stderr)

    return say


def _synth(args: argparse.Namespace) -> int:
    from tpvformer.data.synthetic import write_dataset, write_sequences

    began = time.perf_counter()
    scenes, seed, frames = args.scenes, args.seed, args.frames
    if args.kitti:
        if args.size is not None or args.occupancy:
            raise ConfigError(
                "--kitti: SemanticKITTI has images of its own size and always voxels; leave --size and --occupancy away"
            )
        fresh = write_sequences(args.out, scenes, seed, frames, args.workers, _quarters())
        what = f"{scenes} sequences of {frames} frames with voxels, seed {seed}"
    else:
        width, height = size = args.size or (1600, 900)
        fresh = write_dataset(args.out, scenes, size, seed, frames, args.workers, _quarters(), args.occupancy)
        what = f"{scenes} scenes of {frames} frames, images {width}x{height}, seed {seed}"
    if fresh:
        print(f"{args.out}: {what}, written in {time.perf_counter() - began:.1f} s")
    else:
        print(f"{args.out}: already holds {what}")
    return 0


def _picture(args: argparse.Namespace) -> int:
    from tpvformer.predict import draw_frame

    print(draw_frame(_config(args), args.ckpt_path, args.index, args.out, args.device))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from tpvformer.predict_files import predict_files

    config = _config(args)
    what = (args.ckpt_path, args.out, args.rig, args.split or "val", args.index, args.device, args.truth)
    for line in predict_files(config, *what):
        print(line, flush=True)
    return 0


def _overlay(args: argparse.Namespace) -> int:
    from tpvformer import overlay

    places = overlay.find(args.mmcv, args.mmdet)
    if args.action != "check":
        count = overlay.apply(places) if args.action == "apply" else overlay.revert(places)
        print(f"{count} of {len(places)} files {'exchanged' if args.action == 'apply' else 'given back'}")
        places = overlay.find(args.mmcv, args.mmdet)
    print(overlay.table(places))
    return int(args.action == "check" and any(place.state != overlay.OURS for place in places))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _size(text: str) -> Tuple[int, int]:
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1600x900")
    return int(width), int(height)
