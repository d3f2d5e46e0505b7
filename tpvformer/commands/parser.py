"""Parse the command line; answer mistyped or foreign names with one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, Dict, Iterable, List, NoReturn, Optional, Set, Tuple

from tpvformer.commands.mistyped import instead

# other programs' names of our commands
_COMMANDS = {
    **dict.fromkeys(("test", "val", "validate", "validation", "evaluate", "score"), "eval"),
    **dict.fromkeys(("infer", "inference", "detect"), "predict"),
    **dict.fromkeys(("show", "vis", "visualize", "visualise", "plot"), "view"),
    **dict.fromkeys(("benchmark", "profile"), "bench"),
    **dict.fromkeys(("fit", "finetune", "resume"), "train"),
    **dict.fromkeys(("onnx", "deploy"), "export"),
    **dict.fromkeys(("prepare", "preprocess", "create_data", "check"), "data"),
    "version": "--version",
}


_KINDS = {"DIR": "the name of a folder", "FILE": "the name of a file", "PATH": "the name of a file or folder"}


def text(value: str) -> str:
    """Return the value of an argument that may be empty; every other argument's may not."""
    return value


class FilledParser(argparse.ArgumentParser):
    """Refuse an empty value, as from an unset shell variable, of every argument but those of the type ``text``.

    An empty path is the current folder to ``pathlib``, so the command would write there.
    """

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if arg_string == "" and action.type is not text and action.choices is None:
            kind = _KINDS.get(str(action.metavar), "a value")
            raise argparse.ArgumentError(action, f"expected {kind}, but it is empty")
        return super()._get_value(action, arg_string)


class Parser(FilledParser):
    """Parse options with underscores or hyphens, as the reference's users and this package's launchers write both.

    An error is one line on stderr, with a suggestion, and exit status 2.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [_hyphens(word) for word in (sys.argv[1:] if args is None else args)]
        unknown = self._unknown(words)
        if unknown is not None:
            option, equals, value = words[unknown].partition("=")
            following = words[unknown + 1 : unknown + 2]
            if not equals and following and not following[0].startswith("-"):
                value = following[0]
            self.error(f"there is no option {option}; {instead(option[2:], value, self._options())}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with one line, and an example if an argument is missing."""
        example = f"; for example: {self.example}" if "required" in message and self.example else ""
        self.exit(2, f"{self.prog}: {message}{example} ({self.prog} --help says more)\n")

    @property
    def example(self) -> str:
        """Return an example call; empty if there is none."""
        return (self.epilog or "").partition("Example: ")[2]

    def below(self) -> Dict[str, Parser]:
        """Return the sub-commands by name."""
        found = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(found[0]) if found else {}

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a word against an argument's choices, with a clearer message than argparse's."""
        if action.choices is None or value in action.choices:
            return
        names, word = [str(choice) for choice in action.choices], str(value)
        command = action.dest == "command"
        near = _nearest(word, names, _COMMANDS if command else {})
        hint = f"; did you mean {near}?" if near else ""
        if command:
            self.error(f"there is no command {word[:40]!r}{hint}")
        raise argparse.ArgumentError(action, f"{word[:40]!r} is not known; expected {' or '.join(names)}{hint}")

    def _unknown(self, words: List[str]) -> Optional[int]:
        """Return the index of the first long option that is neither an option of this parser nor a prefix of one."""
        if self.below():
            return None
        if any(action.nargs == argparse.REMAINDER for action in self._actions):  # a script's arguments are its own
            words = split_script(["run", *words])[0][1:]
        if "-h" in words or "--help" in words:
            return None
        for place, word in enumerate(words):
            if word == "--":
                return None
            name = word.partition("=")[0]
            if word.startswith("--") and " " not in name and not any(o.startswith(name) for o in self._options()):
                return place
        return None

    def _options(self) -> Set[str]:
        return {option for option in self._option_string_actions if option.startswith("--")}


def split_script(argv: List[str]) -> Tuple[List[str], List[str]]:
    """Split a command line of ``run`` after the script: what follows is the script's own. Others are not split."""
    if argv[:1] != ["run"]:
        return argv, []
    place = 1
    while place < len(argv) and argv[place].startswith("-"):
        place += 1 if "=" in argv[place] or argv[place] in ("-h", "--help") else 2
    return argv[: place + 1], argv[place + 1 :]


def _nearest(word: str, names: Iterable[str], elsewhere: Dict[str, str]) -> Optional[str]:
    """Return the name that was probably meant: the closest of ``names``, or ours for another program's name."""
    near = difflib.get_close_matches(word.lower(), list(names), 1)
    return elsewhere.get(word.lower()) or (near[0] if near else None)


def _hyphens(word: str) -> str:
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if option.startswith("--") else word
