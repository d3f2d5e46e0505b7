"""PyTorch is loaded before OpenCV, Numba and the like, wherever a process takes both.

On Arm with a glibc before 2.32 libraries loaded first use up the room that PyTorch's OpenMP library must have:
"cannot allocate memory in static TLS block" (docs/ascend.md).
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set

from package_files import FILES, PACKAGE, name_of, parse

LATER = ("cv2", "numba", "llvmlite", "simplejpeg", "safetensors")
LATER_CODE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)  # runs when it is called
MODULES = {name_of(f)[:-3].replace("/", ".").replace(".__init__", ""): f for f in FILES}


def statements(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """The imports among these statements and in what they enclose, as far as they happen at once."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not (
            isinstance(node, LATER_CODE) or isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            yield from statements(list(ast.iter_child_nodes(node)))


def names(node: ast.AST, package: List[str]) -> Iterator[str]:
    """The modules that an import loads, dotted and absolute; a name that is no module of ours may be among them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        stem = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*stem, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def wanted(file: Path, body: Sequence[ast.AST]) -> List[str]:
    """The modules that statements of a file load, in order."""
    package = ("tpvformer." + name_of(file)[:-3].replace("/", ".")).split(".")[:-1]
    return [name for node in statements(body) for name in names(node, package)]


@functools.lru_cache(maxsize=None)
def wanted_by(file: Path) -> List[str]:
    return wanted(file, parse(file).body)


def loaded(file: Path, body: Optional[Sequence[ast.AST]] = None) -> List[str]:
    """Packages of others in the order in which the file, or statements of it, first loads them, ours followed."""
    order: Dict[str, None] = {}
    seen: Set[Path] = set()

    def visit(wanted: Sequence[str]) -> None:
        for name in wanted:
            if name.split(".")[0] == "tpvformer":
                enter(name)
            else:
                order.setdefault(name.split(".")[0])

    def enter(name: str) -> None:
        parts = name.split(".")[1:]
        for i in range(len(parts) + 1):  # packages before what is in them
            ours = MODULES.get(".".join(parts[:i]) or "__init__")
            if ours is not None and ours not in seen:
                seen.add(ours)
                visit(wanted_by(ours))

    enter(".".join(("tpvformer", *file.relative_to(PACKAGE).parts[:-1])))
    visit(wanted_by(file) if body is None else wanted(file, body))
    return list(order)


def too_early(order: List[str]) -> List[str]:
    return [name for name in order[: order.index("torch")] if name in LATER] if "torch" in order else []


def test_pytorch_comes_first() -> None:
    for file in FILES:
        check(file)


def check(file: Path) -> None:
    assert not too_early(loaded(file)), f"{name_of(file)}: PyTorch must come first of {loaded(file)}"
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef) and wanted(file, node.body):
            assert not too_early(loaded(file, node.body)), (
                f"{name_of(file)}: {node.name} loads {loaded(file, node.body)}"
            )


def test_the_check_above_can_fail() -> None:
    text = "import cv2\nfrom tpvformer.model import TPVFormer"
    assert too_early(loaded(PACKAGE / "predict.py", ast.parse(text).body)) == ["cv2"]
    assert not too_early(loaded(PACKAGE / "predict.py", ast.parse("import torch\n" + text).body))
