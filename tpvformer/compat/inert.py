"""What stands for the objects that programs keep beside weights: their names, and nothing that runs.

A trainer's checkpoint may hold its options, its schedules and its curves as objects of any class. Nothing here needs
them, so an object becomes a stand-in that keeps entries of a dictionary and forgets all else; neither its class nor its
module is looked for. A call is another matter: it is skipped where it makes one of the known plain things (a path, a
date, a NumPy scalar), and refused with its name otherwise, though it would not be run either.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what pickles call Python's own modules, and they are called
from typing import Any, Dict, Iterator, Tuple

from tpvformer.untrusted.names import shown

MOST_NAMES = 1000  # classes and functions that one file may name; trainers' files have some twenty


class WouldRun(Exception):
    """A pickle calls what is not known to make plain data; the message is the name of that."""


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
    """A class or function that a file names: calling it is refused, or makes a stand-in."""

    origin: str

    def __call__(cls, *_: Any, **__: Any) -> Any:
        if cls.origin not in _PLAIN_CALLS:
            raise WouldRun(cls.origin)
        return new(cls)

    def __repr__(cls) -> str:
        return cls.origin


class Inert(dict, metaclass=_Kind):
    """An object of a file, of the class ``origin``; the entries that it has as a dictionary are kept."""

    origin = "an object"

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return dict.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Of a list, a deque or a set: forgotten."""

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
    """An object of a stand-in, whose class is not called."""
    made: Inert = Inert.__new__(kind)
    return made


class StandIns:
    """Those of one file: the same name is the same class."""

    def __init__(self) -> None:
        self._made: Dict[str, _Kind] = {}

    def named(self, name: str) -> _Kind:
        """The stand-in of a class or function by its whole name. Raises WouldRun where a file names too many."""
        if name not in self._made:
            if len(self._made) >= MOST_NAMES:
                raise WouldRun(f"more than {MOST_NAMES} functions")
            self._made[name] = _Kind("Inert", (Inert,), {"origin": shown(name[:200])})
        return self._made[name]

    def attribute(self, holder: Any, name: Any) -> _Kind:
        """Of a method that is stored with its object, or of a class within a class."""
        return self.named(f"{getattr(holder, 'origin', type(holder).__name__)}.{name}"[:400])

    @staticmethod
    def instance(kind: Any, *_: Any) -> Inert:
        """What ``copyreg`` rebuilds: an object of a class, which is not called."""
        if not isinstance(kind, _Kind):
            raise TypeError("expected a class")
        return new(kind)


def whole_name(module: str, name: str) -> Tuple[str, str]:
    """Module and name as this Python has them."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return {"pathlib._local": "pathlib", "_operator": "operator"}.get(module, module), name
