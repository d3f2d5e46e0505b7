"""Print the completion script of a shell, for commands, options, choices and files: ``tpvformer completion``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Iterator

from tpvformer.errors import ConfigError

SHELLS = ("bash", "zsh")
_PATHS = ("rig", "infos", "root", "out", "source", "ckpt_path")  # text options that may be paths

# shell functions that complete shipped configurations and files
_CONFIG_FILES = {
    "bash": '_tpvformer_config_files() { local IFS=" "; compgen -W "%s" -- "$1"; compgen -f -- "$1"; }',
    "zsh": "_tpvformer_config_files() { compadd -- %s; _files }",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``completion``."""
    parser.description = _ABOUT
    parser.add_argument("shell", choices=SHELLS, help="shell of the script")
    parser.set_defaults(run=_completion)


_ABOUT = (
    "Prints a script. Once, for bash: tpvformer completion bash > ~/.local/share/bash-completion/completions/tpvformer "
    "(make the folder first); for zsh: tpvformer completion zsh > _tpvformer in a folder of $fpath. Then open a new "
    'shell. Needs shtab: pip install "tpvformer[completion]".'
)


def _completion(args: argparse.Namespace) -> int:
    print(script(args.every_command(), args.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of ``shell`` for a parser; its arguments are marked. Raises ConfigError."""
    try:
        import shtab
    except ImportError as err:
        raise ConfigError("completion needs shtab; pip install 'tpvformer[completion]'") from err
    from tpvformer.compat.config_file import shipped
    from tpvformer.engine.device.names import KINDS, UNTESTED

    names = " ".join(shipped())
    for action in _actions(parser):
        if action.dest == "device":
            action.choices = ("auto", *KINDS, *UNTESTED)
        elif action.metavar == "DIR":
            vars(action)["complete"] = shtab.DIRECTORY  # read by shtab
        elif action.dest == "py_config":
            vars(action)["complete"] = dict.fromkeys(SHELLS, "_tpvformer_config_files")
        elif action.choices is None and (action.type is Path or action.dest in _PATHS):
            vars(action)["complete"] = shtab.FILE
    return str(shtab.complete(parser, shell, preamble=_CONFIG_FILES[shell] % names))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every argument of a parser and of its sub-commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
