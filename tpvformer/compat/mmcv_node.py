"""Reading a dictionary of the reference's configuration so that every key is either used or refused."""

from __future__ import annotations

import difflib
from typing import Any, Dict, List, Mapping, NoReturn, Sequence, Set, Tuple

from tpvformer.errors import ConfigError

_ABSENT: Any = object()


class Facts:
    """Numbers that the reference writes in several places and this package once: all places must agree."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._values: Dict[str, Tuple[Any, str]] = {}

    def put(self, fact: str, value: Any, place: str) -> None:
        known, first = self._values.setdefault(fact, (value, place))
        if known != value:
            raise ConfigError(f"{self.file}: {place} is {value!r} but {first} is {known!r}; expected the same value")

    def whole(self, fact: str) -> int:
        """Return a fact that is one integer. Raises ConfigError."""
        value, place = self._values[fact]
        if not isinstance(value, int):
            raise ConfigError(f"{self.file}: {place} is {value!r}; expected a whole number")
        return value

    def list(self, fact: str, length: int) -> Tuple[Any, ...]:
        """Return a fact that is a list of ``length`` numbers. Raises ConfigError."""
        value, place = self._values[fact]
        if not isinstance(value, tuple) or len(value) != length:
            raise ConfigError(f"{self.file}: {place} is {value!r}; expected a list of {length} numbers")
        return value


class Node:
    """A dictionary with its dotted path for messages; ``done`` refuses the keys that were not read."""

    def __init__(self, values: Any, path: str, facts: Facts) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{facts.file}: {path} is {values!r}; expected a dictionary")
        self._values, self._path, self.facts = values, path, facts
        self._asked: Set[str] = set()

    def take(self, key: str, default: Any = _ABSENT) -> Any:
        """Return the value of ``key``, lists as tuples. Raises ConfigError where it is missing and has no default."""
        self._asked.add(key)
        value = self._values.get(key, default)
        if value is _ABSENT:
            raise ConfigError(f"{self.facts.file}: {self.at(key)} is missing")
        return tuple(value) if isinstance(value, list) else value

    def number(self, key: str, default: Any = _ABSENT) -> Any:
        """Return a number or a list of numbers, as ``take`` does. Raises ConfigError."""
        value = self.take(key, default)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                self.refuse(key, value, "a number or a list of numbers")
        return value

    def text(self, key: str, default: Any = _ABSENT) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            self.refuse(key, value, "a text")
        return value

    def expect(self, key: str, *allowed: Any) -> Any:
        """Return the value of ``key``, one of ``allowed``; the first of them where the key is absent.

        Raises ConfigError for another value.
        """
        value = self.take(key, allowed[0])
        if value not in allowed:
            self.refuse(key, value, " or ".join(repr(choice) for choice in allowed))
        return value

    def note(self, default: Any = _ABSENT, **facts: str) -> None:
        """Record the value of each ``key`` as a fact. An absent key has the default, or is skipped without one."""
        for key, fact in facts.items():
            if key in self._values or default is not _ABSENT:
                self.facts.put(fact, self.number(key, default), self.at(key))

    def child(self, key: str) -> "Node":
        return Node(self.take(key), self.at(key), self.facts)

    def children(self, key: str) -> List["Node"]:
        """Return the dictionaries of a list; one dictionary counts as a list of one."""
        value = self.take(key)
        items: Sequence[Any] = value if isinstance(value, tuple) else (value,)
        return [Node(item, f"{self.at(key)}[{index}]", self.facts) for index, item in enumerate(items)]

    def refuse(self, key: str, value: Any, expected: str) -> NoReturn:
        raise ConfigError(f"{self.facts.file}: {self.at(key)} is {value!r}; expected {expected}")

    def done(self) -> None:
        """Raise ConfigError with the first key that was not read."""
        unknown = [str(key) for key in self._values if key not in self._asked]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self._asked, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known there: {', '.join(sorted(self._asked))}"
            raise ConfigError(f"{self.facts.file}: {self.at(unknown[0])} is not a key that is understood here; {hint}")

    def at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key
