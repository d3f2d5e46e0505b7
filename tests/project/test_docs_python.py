"""docs/python.md documents the public Python interface: its tables are the signatures and attributes of the code."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any, Callable, Dict, List, Set, Tuple

import pytest
from docs_tools import DOCS, text_of

from tpvformer import api
from tpvformer.predict.result import Result, Results, Voxels

PAGE = text_of(DOCS / "python.md")
CLASSES = (api.TPVFormer, Result, Results)
TABLE = re.compile(
    r"^\| `([\w.]+)` \| type \| default \| meaning \|\n\| --- \|.*\n((?:\|.*\n)+)((?:(?!\| |## |::: ).*\n)*)", re.M
)
ATTRIBUTES = re.compile(r"^\| attribute of `(\w+)` \|.*\n\| --- \|.*\n((?:\|.*\n)+)", re.M)


def public_callables() -> Dict[str, Callable]:
    """Return each public method of the three classes, their constructor that a user calls, and the functions."""
    found: Dict[str, Callable] = {"TPVFormer": api.TPVFormer}
    found.update({"list_models": api.list_models, "decode_boxes": api.decode_boxes})
    for kind in CLASSES:
        for name, member in vars(kind).items():
            if not name.startswith("_") and not isinstance(member, property):
                found[f"{kind.__name__}.{name}"] = getattr(kind, name)
    return found


def arguments(function: Callable) -> List[Tuple[str, str]]:
    """Return name and default (as Python writes it, "" without one) of each argument but ``self``."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [(p.name, "" if p.default is p.empty else literal(p.default)) for p in parameters]


def literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def rows(table: str) -> List[List[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def tables(text: str) -> Dict[str, List[Tuple[str, str]]]:
    """Return name and default of each row, by the function that the table's header names."""
    return {
        name: [(row[0].strip("` "), row[2].strip("` ")) for row in rows(body)] for name, body, _ in TABLE.findall(text)
    }


CALLABLES = public_callables()
WITH_ARGUMENTS = sorted(name for name, function in CALLABLES.items() if arguments(function))


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_a_table_is_the_signature(name: str) -> None:
    assert tables(PAGE).get(name) == arguments(CALLABLES[name]), f"docs/python.md: the table of {name}"


def test_every_table_is_of_something_public() -> None:
    assert set(tables(PAGE)) == set(WITH_ARGUMENTS) and len(WITH_ARGUMENTS) > 12


def test_a_changed_default_is_seen() -> None:
    changed = PAGE.replace("| `cameras` | int | `6` |", "| `cameras` | int | `5` |")
    assert changed != PAGE and tables(changed)["TPVFormer.export"] != arguments(api.TPVFormer.export)


def test_each_row_has_type_and_meaning() -> None:
    for name, body, _ in TABLE.findall(PAGE):
        assert all(len(row) == 4 and row[1] and row[3] for row in rows(body)), name


@pytest.mark.parametrize("name", sorted(set(CALLABLES) - set(WITH_ARGUMENTS)))
def test_a_method_without_arguments_is_named(name: str) -> None:
    assert f"`{name}()`" in PAGE


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_the_errors_of_the_docstring_are_named(name: str) -> None:
    """In the rows of the function's table, or in the text until the next table."""
    errors = set(re.findall(r"\b[A-Z]\w*Error\b", inspect.getdoc(CALLABLES[name]) or ""))
    text = "".join(body + after for found, body, after in TABLE.findall(PAGE) if found == name)
    if name in ("Result.save", "Result.to_html", "Result.plot"):  # three tables, one text behind them
        text = next(after for found, _, after in TABLE.findall(PAGE) if found == "Result.plot")
    assert errors <= set(re.findall(r"`(\w+Error)`", text)), (name, errors)


def attributes(kind: type) -> Set[str]:
    """Return the public attributes: properties, fields of a dataclass, and what ``__init__`` and its helpers set."""
    found = {name for name, member in vars(kind).items() if isinstance(member, property)}
    if dataclasses.is_dataclass(kind):
        return found | {field.name for field in dataclasses.fields(kind)}
    for node in ast.walk(ast.parse(inspect.getsource(kind))):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.add(node.attr)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("kind", [api.TPVFormer, Result, Voxels], ids=lambda kind: kind.__name__)
def test_a_table_has_the_attributes(kind: type) -> None:
    documented = {name: {row[0].strip("` ") for row in rows(body)} for name, body in ATTRIBUTES.findall(PAGE)}
    assert documented[kind.__name__] == attributes(kind)
