"""Read untrusted JSON; refuse invalid files with one sentence and check every value before use."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

import numpy as np

from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.untrusted.kinds import HEAD, kind_of

LARGEST_FILE = 512 * 1024 * 1024  # bytes; some hundred thousand frames
MOST_SECONDS = 1e11  # of a timestamp: since 1970 these are 3000 years, and larger numbers are milliseconds or less
_LONGEST_INTEGER = 20  # digits; longer ones are no counts, and Python takes the square of their length to read them


EXPECTED = "expected a rig file, a .json that describes all cameras as docs/rig.md shows"


@dataclass(frozen=True)
class Node:
    """Hold a value of the file and its name in messages."""

    value: Any
    where: str

    def refuse(self, expected: str) -> DataError:
        """Return the error to raise."""
        return DataError(f"{self.where} is {_shown(self.value)}; expected {expected}")

    def fields(self, known: Sequence[str], needed: Sequence[str] = ()) -> Dict[str, Node]:
        """Return the fields of an object. Raises DataError for an unknown or missing field."""
        if not isinstance(self.value, Mapping):
            raise self.refuse(f"an object with {', '.join(known)}")
        for name in self.value:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise DataError(f"{self.where} has the unknown key {_shown(name)}; {hint}")
        for name in needed:
            if name not in self.value:
                raise DataError(f"{self.where} has no {name!r}; docs/rig.md shows a whole file")
        return {name: Node(value, f"{self.where}: {name}") for name, value in self.value.items()}

    def items(self, what: str) -> List[Node]:
        """Return the entries of a non-empty list."""
        if not isinstance(self.value, list) or not self.value:
            raise self.refuse(f"a list of {what}, at least one")
        return [Node(value, f"{self.where}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        """Return a text that is printable and valid in a file name."""
        if not isinstance(self.value, str) or not self.value or not self.value.isprintable():
            raise self.refuse("a text that is not empty and can be printed")
        return self.value

    def count(self, most: int) -> int:
        """Return a whole number from 1 to ``most``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 1 <= self.value <= most:
            raise self.refuse(f"a whole number from 1 to {most}")
        return self.value

    def seconds(self) -> float:
        """Return a finite number of seconds."""
        if not _is_number(self.value) or not abs(self.value) < MOST_SECONDS:
            raise self.refuse("a finite number of seconds (divide milli-, micro- or nanoseconds)")
        return float(self.value)

    def numbers(self, *shape: int) -> np.ndarray:
        """Return an array of finite numbers of that shape, float64; a matrix may be one list, row after row."""
        expected = f"{'x'.join(map(str, shape))} finite numbers"
        if isinstance(self.value, list) and len(shape) == 2 and len(self.value) == shape[0] * shape[1]:
            return Node(self.value, self.where).numbers(len(self.value)).reshape(shape)
        flat: List[Any] = [self.value]
        for length in shape:
            if not all(isinstance(row, list) and len(row) == length for row in flat):
                raise self.refuse(expected)
            flat = [value for row in flat for value in row]
        if not all(_is_number(value) for value in flat):
            raise self.refuse(expected)
        return np.array(flat, np.float64).reshape(shape)


def read_json(path: Union[str, Path]) -> Node:
    """Read the value of a JSON file. Raises DataError if it is unreadable, invalid or has a duplicate key."""
    try:
        size = to_path(path).stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{path}: has {size} bytes, more than {LARGEST_FILE}; split its frames into several files")
        raw = to_path(path).read_bytes()
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); expected a rig file, as docs/rig.md shows") from err
    try:
        value = json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_once, parse_int=_integer, parse_constant=_constant
        )
        if b"\\u" in raw:  # halves of characters, which JSON can escape but no file name can hold
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as err:
        raise DataError(f"{path}: is nested too deeply; expected a rig file, as docs/rig.md shows") from err
    except ValueError as err:  # what json and the decoder raise as well
        kind = kind_of(to_path(path), raw[:HEAD])
        if kind:
            raise DataError(f"{path}: is {kind}; {EXPECTED}") from err
        raise DataError(f"{path}: is no JSON that can be used ({' '.join(str(err).split())[:200]})") from err
    return Node(value, str(path))


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_shown(twice)} stands twice in one object")
    return found


def _integer(digits: str) -> Union[int, float]:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    """Format a value on one line, shortened."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "nested too deeply"
    return text if len(text) <= 80 else text[:80] + " ..."
