"""Check a file's content against a schema and report the first difference.

A schema is a function (value, where) that raises SchemaError. Unknown keys are ignored,
because newer versions write more.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Collection, Mapping, Optional

from tpvformer.untrusted.names import has_unseen, short

Schema = Callable[[Any, str], None]
LONGEST = 10_000_000  # entries of a list
WHOLE = 2**63 - 1


class SchemaError(ValueError):
    """The content is not what it should be; the message is a part of a sentence: where, what, and what was expected."""


def number(low: float = -1e300, high: float = 1e300, none: bool = False) -> Schema:
    """Check a finite number within bounds; ``none``: or nothing."""

    def check(value: Any, where: str) -> None:
        if value is None and none:
            return
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (fits and (isinstance(value, int) or math.isfinite(value)) and low <= value <= high):
            raise _refused(value, where, "a number" + _bounds(low, high) + (" or nothing" if none else ""))

    return check


def whole(low: int = 0, high: int = WHOLE, none: bool = False) -> Schema:
    """Check a whole number within bounds."""

    def check(value: Any, where: str) -> None:
        if value is None and none:
            return
        if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            raise _refused(value, where, f"a whole number from {low} on" + (" or nothing" if none else ""))

    return check


def text(longest: int = 100_000, none: bool = False, lines: bool = False) -> Schema:
    """Check a printable text; ``lines``: of several lines."""

    def check(value: Any, where: str) -> None:
        if value is None and none:
            return
        plain = isinstance(value, str) and len(value) <= longest
        if not plain or has_unseen(value.replace("\n", "").replace("\t", "") if lines else value):
            raise _refused(value, where, "a text that can be printed" + (" or nothing" if none else ""))

    return check


def flag(value: Any, where: str) -> None:
    """Check a boolean."""
    if not isinstance(value, bool):
        raise _refused(value, where, "true or false")


def anything(value: Any, where: str) -> None:
    """Accept any value; for values that are only displayed."""


def nothing_or(schema: Schema) -> Schema:
    """Check None or a value of the schema."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            schema(value, where)

    return check


def list_of(schema: Schema, least: int = 0, most: int = LONGEST) -> Schema:
    """Check a list or tuple of one kind of entries."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            count = f"{least} entries" if least == most else "entries"
            raise _refused(value, where, f"a list of {count}")
        for i, entry in enumerate(value):
            schema(entry, f"{where}[{i}]")

    return check


def map_of(schema: Schema, keys: Optional[Schema] = None) -> Schema:
    """A dictionary of one kind of values; its keys are texts, or what ``keys`` says."""
    of_keys = text(1000) if keys is None else keys

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _refused(value, where, "a dictionary")
        for key, entry in value.items():
            of_keys(key, f"a key of {where}")
            schema(entry, f"{where}.{short(key) if not isinstance(key, str) else key[:80]}")

    return check


def fields(known: Mapping[str, Schema], needed: Collection[str] = ()) -> Schema:
    """A dictionary in which some keys have a kind, and some have to be."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _refused(value, where, "a dictionary")
        for name in needed:
            if name not in value:
                raise SchemaError(f"{where or 'it'} has no {name!r}")
        for name, schema in known.items():
            if name in value:
                schema(value[name], f"{where}.{name}" if where else name)

    return check


def _bounds(low: float, high: float) -> str:
    return "" if low < -1e200 else f" from {low:g} on" if high > 1e200 else f" from {low:g} to {high:g}"


def _refused(value: Any, where: str, expected: str) -> SchemaError:
    return SchemaError(f"{where or 'it'} is {short(value)}, expected {expected}")
