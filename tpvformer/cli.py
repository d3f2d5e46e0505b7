"""The command ``tpvformer``: which commands there are, and what becomes of their errors.

Heavy imports happen inside the commands, so that asking for help is quick.
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
from tpvformer.commands.parser import Parser
from tpvformer.commands.tour import example_of, tour
from tpvformer.errors import UserError
from tpvformer.runtime.cores import set_up_threads
from tpvformer.untrusted.names import shown_lines


class _Command(NamedTuple):
    """A command: its line in the help, and the function of a module that adds its arguments."""

    name: str
    help: str
    module: str
    function: str = "add_arguments"


# in the order of the help; a module is imported when its command is asked for
COMMANDS: Tuple[_Command, ...] = (
    _Command("demo", "a first look: predict an unseen street, write a page and a picture", "demo"),
    _Command("train", "train a configuration", "train"),
    _Command("eval", "score a checkpoint on the validation set; predict the test set", "eval"),
    _Command("synth", "write a synthetic nuScenes or SemanticKITTI data set", "synth"),
    _Command("bench", "measure a training step: where its time goes", "bench", "add_bench"),
    _Command("selfcheck", "does everything work on this hardware?", "bench", "add_selfcheck"),
    _Command("doctor", "versions, devices and kernels, and what to mend first", "doctor"),
    _Command("check-geometry", "paint lidar points on the six images of a frame", "check_geometry"),
    _Command("data", "make info files from nuScenes' tables; check a download", "data"),
    _Command("view", "show what predict wrote: a page, pictures, a video, PLY files", "view"),
    _Command("export", "a model for other runtimes (ONNX, torch.export) or the reference", "export", "add_export"),
    _Command("convert", "weights from one form to another: ours, the reference's, a folder", "export", "add_convert"),
    _Command("results", "print the outcome of a run; write it as <CaseName>.log", "report", "add_results"),
    _Command("report", "one page of a run: its curves, scores and worst frames", "report", "add_report"),
    _Command("picture", "one PNG of a validation frame with a model's predictions", "predict", "add_picture"),
    _Command("predict", "the class of every voxel and point of frames, as npz files", "predict", "add_predict"),
    _Command("overlay", "exchange four files of mmcv 1.x and mmdet 2.x for ours, or back", "overlay"),
    _Command("completion", "a script by which bash or zsh completes all of this", "completion"),
)


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 the run failed, 2 something given to it was wrong."""
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
    args = _parser(argv).parse_args(argv)
    args.argv = argv  # what was typed: for other processes, and to be noted
    args.every_command = lambda: _parser([], whole=True)
    if args.command != "doctor":  # which says it among the rest
        check_environment()
    return int(args.run(args))


def check_environment() -> None:
    """Raises an error that is one line where a variable that every command reads is set to what nobody knows."""
    if os.environ.get("TPVFORMER_OPS", "").strip():
        from tpvformer import ops

        ops.asked()


def open_streams() -> None:
    """Lead the standard streams that were closed (``>&-``) nowhere, and let every name be printed.

    Else the next file that is opened takes their numbers, and what a library prints ends in a checkpoint. A name that
    the terminal's encoding does not have is shown by its escapes, and ends nothing.
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
    """Set what PyTorch reads when it is loaded; to be called before.

    A vendor's backend is loaded when its device is asked for: the automatic way fails for everybody where its driver is
    absent.
    """
    set_up_threads()
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def in_one_line(name: str, run: Callable[[], int]) -> int:
    """The exit status of ``run``; what is wrong with a user's input becomes one line that begins with ``name``."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except UserError as err:
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(1)  # what goes wrong everywhere is said by process 0, whose end stops this one meanwhile
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
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _nobody_reads() -> bool:
    """Whether who read our output has left, as in ``tpvformer doctor | head -1``; what is left goes nowhere then."""
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
    """The parser for ``argv``: every command is known; the one asked for, or all if ``whole``, with its arguments."""
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
    """An example below the help of a command, and of those below it."""
    if parser.epilog is None:
        parser.epilog = f"Example: {example_of(command)}"
    for name, below in parser.below().items():
        _add_examples(f"{command} {name}", below)
