"""Write docs/commands.md from the command line's parsers; tests/project/test_docs.py compares the page with them.

python tools/commands_page.py > docs/commands.md
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Iterator, List

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tpvformer.cli import _parser  # noqa: E402

HEAD = """# All commands

Made from the command line's own help by `python tools/commands_page.py`. Option `--help` of each command prints it.
`--py_config` and `--py-config` are the same option, and so for all others.
"""


def _subcommands(parser: argparse.ArgumentParser) -> List[argparse._SubParsersAction]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"%%", "%", text)


def _option(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices:
        value = "\\|".join(map(str, action.choices))
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return f"`{value}`"
    shown = f" {value}" if action.nargs != 0 and value else ""
    return ", ".join(f"`{name}{shown}`" for name in action.option_strings)


def _pages(parser: argparse.ArgumentParser, name: str, level: int) -> Iterator[str]:
    groups = _subcommands(parser)
    if name != "tpvformer":
        yield f"\n{'#' * level} {name}\n{_cell(parser.description or '')}\n"
        rows = [
            a
            for a in parser._actions
            if a not in groups and a.help not in (None, argparse.SUPPRESS) and a.dest != "help"
        ]
        if rows:
            yield "\n| option | |\n| --- | --- |\n"
        for action in rows:
            text = parser._get_formatter()._expand_help(action) if action.help else ""
            yield f"| {_option(action)} | {_cell(text)} |\n"
        if parser.epilog:
            yield f"\n```text\n{parser.epilog.strip()}\n```\n"
    for group in groups:
        for word, inner in group.choices.items():
            yield from _pages(inner, f"{name} {word}", min(level + 1, 3) if name != "tpvformer" else 2)


def page() -> str:
    """Return the text of docs/commands.md."""
    return HEAD + "".join(_pages(_parser([], whole=True), "tpvformer", 1))


if __name__ == "__main__":
    sys.stdout.write(page())
