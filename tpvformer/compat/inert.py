"""Placeholders for the objects that a checkpoint has beside its weights: they keep a name and run nothing.

A trainer's checkpoint may contain options, schedules and curves as objects of any class. They are not needed here. Each
becomes a placeholder (``Inert``) that keeps dictionary entries and drops everything else; its class and module are not
imported. A call in the pickle is skipped where it makes a known plain value (a path, a date, a NumPy scalar). Any other
call is refused with its name, although it would not be run either.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what pickles call Python's own modules, and they are called
from typing import Any, Dict, Iterator, Tuple

from tpvformer.untrusted.names import shown

MOST_NAMES = 1000  # the most classes and functions that one file may name; trainers' files name about twenty


class WouldRun(Exception):
    """A pickle calls a function that is not known to make plain data; the message is its name."""


def _named(module: str, names: str) -> Iterator[str]:
    return (f"{module}.{name}" for name in names.split())


_PLAIN_CALLS = frozenset((
    *_named("pathlib", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"),
    *_named("datetime", "datetime date time timedelta timezone"),
    *_named("builtins", "bytes complex slice range object"),
    *(name for core in ("core", "_core") for name in _named(f"numpy.{core}.multiarray", "scalar _reconstruct")),
    *_named("numpy._core.numeric", "_frombuffer"), *_named("numpy.core.numeric", "_frombuffer"),
    *_named("numpy", "dtype ndarray"),
    *_named("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *_named("torch", "device Generator"),
    *_named("operator", "getitem itemgetter attrgetter"),  # getitem: of typing's Dict[str, int]
    "types.SimpleNamespace", "functools.partial", "collections.deque", "decimal.Decimal", "fractions.Fraction",
    "uuid.UUID", "re._compile", "_codecs.encode", "torch.serialization._get_layout",
))  # fmt: skip


class _Kind(type):
    """The type of placeholder classes, one for each class or function that a file names. A call makes a placeholder
    where the name is known to make plain data, and raises WouldRun otherwise."""

    origin: str

    def __call__(cls, *_: Any, **__: Any) -> Any:
        if cls.origin not in _PLAIN_CALLS:
            raise WouldRun(cls.origin)
        return new(cls)

    def __repr__(cls) -> str:
        return cls.origin


class Inert(dict, metaclass=_Kind):
    """A placeholder for an object of the class ``origin``; its dictionary entries are kept."""

    origin = "an object"

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return dict.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Drop an item of a list, a deque or a set."""

    extend = add = append

    def __call__(self, *_: Any) -> Any:
        raise WouldRun(f"an object of {self.origin}")

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"an object of {self.origin}"


def new(kind: Any) -> Inert:
    """Make an object of a placeholder class without calling the class."""
    made: Inert = Inert.__new__(kind)
    return made


class StandIns:
    """The placeholder classes of one file, one for each name."""

    def __init__(self) -> None:
        self._made: Dict[str, _Kind] = {}

    def named(self, name: str) -> _Kind:
        """Return the placeholder of a class or function by its full name. Raises WouldRun above MOST_NAMES names."""
        if name not in self._made:
            if len(self._made) >= MOST_NAMES:
                raise WouldRun(f"more than {MOST_NAMES} functions")
            self._made[name] = _Kind("Inert", (Inert,), {"origin": shown(name[:200])})
        return self._made[name]

    def attribute(self, holder: Any, name: Any) -> _Kind:
        """Return the placeholder of an attribute, such as a bound method or a nested class."""
        return self.named(f"{getattr(holder, 'origin', type(holder).__name__)}.{name}"[:400])

    @staticmethod
    def instance(kind: Any, *_: Any) -> Inert:
        """Make a placeholder for an object that ``copyreg`` would rebuild. Raises TypeError where ``kind`` is none."""
        if not isinstance(kind, _Kind):
            raise TypeError("expected a class")
        return new(kind)


def whole_name(module: str, name: str) -> Tuple[str, str]:
    """Return module and name in this version of Python for those of Python 2 or of another version."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return {"pathlib._local": "pathlib", "_operator": "operator"}.get(module, module), name
