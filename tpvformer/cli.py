"""Run the command ``tpvformer``: find the sub-command, run it, and report its errors.

Heavy imports happen inside the commands, so that help is fast.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import sys
import time
from typing import Callable, List, NamedTuple, Optional, Tuple

from tpvformer import __version__
from tpvformer.commands.parser import Parser, split_script
from tpvformer.commands.tour import example_of, tour
from tpvformer.errors import UserError
from tpvformer.runtime import compiling
from tpvformer.runtime.cores import set_up_threads
from tpvformer.untrusted.names import shown_lines


class _Command(NamedTuple):
    """Describe a command: its line in the help, and the function of a module that adds its arguments."""

    name: str
    help: str
    module: str
    function: str = "add_arguments"


# in the order of the help; a module is imported when its command runs
COMMANDS: Tuple[_Command, ...] = (
    _Command("demo", "a first look: predict a synthetic street, write a page and a picture", "demo"),
    _Command("train", "train a configuration", "train"),
    _Command("eval", "score a checkpoint on the validation set; predict the test set", "eval"),
    _Command("synth", "write a synthetic nuScenes or SemanticKITTI data set", "synth"),
    _Command("bench", "measure the time of a training step by part", "bench", "add_bench"),
    _Command("selfcheck", "check kernels and a training step on this hardware", "bench", "add_selfcheck"),
    _Command("doctor", "show versions, devices and kernels, and the first problem to fix", "doctor"),
    _Command("check-geometry", "paint lidar points on the six images of a frame", "check_geometry"),
    _Command("data", "make info files from nuScenes' tables; check a download", "data"),
    _Command("view", "show what predict wrote: a page, pictures, a video, PLY files", "view"),
    _Command("export", "export a model: ONNX, torch.export, or the reference's weights", "export", "add_export"),
    _Command("convert", "convert weights: a checkpoint, the reference's file, a folder", "export", "add_convert"),
    _Command("results", "print the outcome of a run; write it as <CaseName>.log", "report", "add_results"),
    _Command("report", "write one page of a run: curves, scores and worst frames", "report", "add_report"),
    _Command("picture", "draw a validation frame with a model's predictions as PNG", "predict", "add_picture"),
    _Command("predict", "predict the class of every voxel and point of frames, as npz files", "predict", "add_predict"),
    _Command("run", "run somebody's training script for mmcv 1.x as it is, on this device", "run"),
    _Command("overlay", "put our files into mmcv 1.x and mmdet 2.x, or restore theirs", "overlay"),
    _Command("completion", "print a completion script for bash or zsh", "completion"),
)


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command; return its exit status: 0 success, 1 the run failed, 2 wrong arguments or input."""
    open_streams()
    argv = sys.argv[1:] if argv is None else argv
    named = argv[:1] if argv[:1] and any(command.name == argv[0] for command in COMMANDS) else []
    return in_one_line(" ".join(["tpvformer", *named]), lambda: _run(argv))


def _run(argv: List[str]) -> int:
    if not argv:
        print(tour())
        return 0
    if argv[0] == "help":  # "help train" is "train --help"
        argv = [word for word in argv[1:] if word not in ("help", "-h", "--help")] + ["--help"]
    prepare_torch()
    ours, args_of_script = split_script(argv)
    args = _parser(ours).parse_args(ours)
    args.argv, args.rest = argv, args_of_script  # the typed command line, for other processes and records
    args.every_command = lambda: _parser([], whole=True)
    if args.command != "doctor":  # doctor reports it with the rest
        check_environment()
    return int(args.run(args))


def check_environment() -> None:
    """Raise UserError for an invalid value of an environment variable that every command reads."""
    if os.environ.get("TPVFORMER_OPS", "").strip():
        from tpvformer import ops

        ops.asked()


def open_streams() -> None:
    """Open closed standard streams (``>&-``) on the null device, and print every name.

    Otherwise the next opened file takes their number, and printed text ends in a checkpoint. Characters that the
    terminal's encoding lacks are printed as escapes instead of raising an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        stream = getattr(sys, name)
        if number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def prepare_torch() -> None:
    """Set PyTorch's environment variables; call it before PyTorch is imported.

    A vendor's backend is loaded when its device is used: PyTorch's automatic loading fails for all devices if the
    driver is missing.
    """
    set_up_threads()
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def in_one_line(name: str, run: Callable[[], int]) -> int:
    """Return the exit status of ``run``; print a user's error as one line that begins with ``name``."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except UserError as err:
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(1)  # a common error is printed by process 0, whose end stops this process before it prints
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{name}{where}: {shown_lines(str(err))}", file=sys.stderr)
        return err.exit_status
    except OSError as err:
        if isinstance(err, BrokenPipeError) and _nobody_reads():
            return 128 + getattr(signal, "SIGPIPE", 13)
        if err.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise
        print(f"{name}: {err.filename or 'a file'} cannot be written: {err.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        compiling.say_done()  # otherwise at exit, after the last line
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _nobody_reads() -> bool:
    """Return whether the reader of our output has exited (``tpvformer doctor | head -1``); then discard the rest."""
    output = sys.stdout.fileno()
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(output, 0)
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return left


def _parser(argv: List[str], whole: bool = False) -> Parser:
    """Return the parser for ``argv``: all commands, with the arguments of the named one, or of all if ``whole``."""
    parser = Parser(prog="tpvformer", description="TPVFormer: six cameras to 3D semantics.")
    parser.epilog = "tpvformer COMMAND --help, or tpvformer help COMMAND: its options and an example."
    parser.add_argument("--version", action="version", version=f"tpvformer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        about = f"{command.help[0].upper()}{command.help[1:]}."
        added = commands.add_parser(command.name, help=command.help, description=about)
        if whole or argv[:1] == [command.name]:
            module = importlib.import_module(f"tpvformer.commands.{command.module}")
            getattr(module, command.function)(added)
            _add_examples(command.name, added)
    return parser


def _add_examples(command: str, parser: Parser) -> None:
    """Add an example below the help of a command and of its sub-commands."""
    if parser.epilog is None:
        parser.epilog = f"Example: {example_of(command)}"
    for name, below in parser.below().items():
        _add_examples(f"{command} {name}", below)
