"""Check names from untrusted files: tokens, cameras, scenes, paths. They reach terminals, logs and file names."""

from __future__ import annotations

import unicodedata
from typing import Any

LONGEST_NAME = 200  # characters of what becomes a file's name
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control and format characters, halves of pairs, breaks of lines


def has_unseen(text: str) -> bool:
    """Return whether a text has control or invisible characters: escape codes, line breaks, marks of direction."""
    return not text.isprintable() and any(unicodedata.category(c) in _UNSEEN for c in text)


def shown(text: str) -> str:
    """The text for one line of a terminal or a log; what ``has_unseen`` looks for becomes its escape, as ``\\x1b``."""
    if not has_unseen(text):
        return text
    parts = (c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text)
    return "".join(parts)


def shown_lines(text: str) -> str:
    """Escape a text of several lines as ``shown`` does, but keep line breaks and tabs."""
    return "\n".join("\t".join(map(shown, line.split("\t"))) for line in text.split("\n"))


def is_file_name(text: str) -> bool:
    """Return whether a text is safe as a file name: no way to another folder, nothing unseen, not hidden."""
    fits = 0 < len(text) <= LONGEST_NAME and not text.startswith(".")
    return fits and not has_unseen(text) and not set(text) & set("/\\\0:")


def short(value: Any) -> str:
    """Return the shortened repr of a value."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; lists in lists in lists
        text = f"a {type(value).__name__}"
    if not text.isprintable():
        text = shown(text)
    return text if len(text) <= 80 else text[:80] + " ..."
