"""The files of the package, and their syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


PACKAGE = ROOT / "tpvformer"


FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))
