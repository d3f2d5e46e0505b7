"""Check configuration fields that are one of a few words: their types are Literals, where the words stand once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, Sequence, Union, get_args, get_origin, get_type_hints

from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import short

types_of = lru_cache(maxsize=None)(get_type_hints)  # name of each field of a section -> its type


def check_words(section: str, value: Any) -> None:
    """Raise ConfigError for the first field whose type is a Literal, or a list of one, and that holds another word.

    Call it after ``check_section``.
    """
    for name, kind in types_of(type(value)).items():
        optional, many = get_origin(kind) is Union, get_origin(kind) is tuple
        literal = get_args(kind)[0] if optional or many else kind
        if get_origin(literal) is not Literal:
            continue
        known, held = get_args(literal), getattr(value, name)
        for word in held if many else (held,):
            if word not in known and not (optional and word is None):
                expected = either([*filter(None, known)], "nothing" if "" in known else "null" if optional else "")
                raise ConfigError(f"{section}.{name} is {short(word)}; expected {expected}")


def either(words: Sequence[str], last: str = "") -> str:
    """Return the quoted words as "'a', 'b' or 'c'"; ``last`` is added without quotes."""
    *first, end = [*map(repr, words), *filter(None, [last])]
    return f"{', '.join(first)} or {end}"


def plain(kind: Any) -> Any:
    """Return the type of the words of a Literal, str; any other type as it is."""
    return str if get_origin(kind) is Literal else kind
