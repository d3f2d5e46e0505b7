"""The rules that keep the package readable: who imports whom, where vendor words stand, file sizes, unsafe calls."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple, Tuple

import pytest
from package_files import FILES, ROOT, name_of, parse

# part: (parts of the package it may import, third-party packages it may import); None stands for everything
LAW = {
    "__init__": (("api", "cores"), ()),  # when it is asked for
    "config": (("grids", "sections", "ranges", "guard", "labels"), ("yaml",)),
    "sections": (("grids", "ranges", "labels"), ()),
    "grids": (("ranges", "guard"), ()),
    "ranges": (("guard",), ()),
    "labels": ((), ()),
    "guard": (("guard", "ranges"), ("numpy", "numba", "yaml")),  # of what comes from others; every reader may use it
    "compiling": ((), ("numba",)),
    "cores": ((), ()),
    "ops": (("ops", "compiling"), ("torch", "numba", "llvmlite", "numpy", "triton")),
    "model": (("model", "ops", "config"), ("torch",)),
    "data": (
        ("data", "guard", "ranges", "config", "labels", "compiling", "cores"),
        ("numpy", "cv2", "numba", "simplejpeg", "torch", "fsspec", "upath"),
    ),
    "compat": (("compat", "guard", "config", "labels"), ("torch", "safetensors", "yaml", "huggingface_hub")),
    "engine": (
        ("engine", "guard", "ranges", "compat", "data", "model", "ops", "labels", "config", "compiling", "cores"),
        ("torch", "numpy", "rich"),
    ),
    "viz": (("viz", "guard", "labels"), ("numpy", "cv2", "PIL", "matplotlib", "rerun")),
    "__main__": None,
    "api": None,
    "cli": None,
    "commands": None,  # what people type: they call the others
    "predict": None,
    "predict_files": None,
    "result": None,
    "looking": (("config", "data", "viz"), ("numpy", "cv2", "IPython")),
    "view_files": (("data", "guard", "view_labels", "viz"), ("numpy", "cv2")),
    "view_labels": (("config", "data", "guard", "labels", "viz"), ("numpy",)),
    "deploy": None,
    "upstream": None,  # the reference's scripts as entry points: flags only, the work is cli's and predict's
    "overlay": (("config",), ()),  # exchanges files of other packages, and imports none of them
}
# The one bridge to another framework: what its users import instead of the command, and nothing else does.
BRIDGE = "compat/openmmlab/"
BRIDGE_LAW = (("compat", "config", "model", "ops", "engine"), ("torch", "mmcv", "mmseg"))
LAZY_VENDOR_MODULES = {"mx_driving": ("ops/npu.py",), "torch_npu": ("ops/npu.py", "engine/device/accelerator.py")}
VENDOR_WORDS = re.compile(r"\b(cuda|npu|mx_driving|nccl|hccl|mps|xpu)\b", re.IGNORECASE)
NAME_DEVICES = ("engine/device/accelerator.py", "engine/device/names.py")  # beside the backends in ops/
NO_VENDOR = ("reference.py", "numba")  # beginnings of the files in ops/ that serve every device or the CPU


class Import(NamedTuple):
    file: str
    line: int
    module: str  # dotted and absolute
    inside: bool  # within a function: it happens when first used

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def part_of(file: Path) -> str:
    return name_of(file).split("/")[0].replace(".py", "")


def imports(file: Path) -> Iterator[Import]:
    tree = parse(file)
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lazy = {id(inner) for function in functions for inner in ast.walk(function)}
    package = ("tpvformer." + name_of(file)[:-3].replace("/", ".")).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            # `from tpvformer import data` names a part, `from tpvformer.data import x` does not
            modules = [f"{stem}.{alias.name}" for alias in node.names] if stem == "tpvformer" else [stem]
        else:
            continue
        for module in modules:
            yield Import(name_of(file), node.lineno, module, id(node) in lazy)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_table(file: Path) -> None:
    part = part_of(file)
    assert part in LAW, f"{part} has no row in the table of imports"
    allowed = BRIDGE_LAW if name_of(file).startswith(BRIDGE) else LAW[part]
    if allowed is None:
        return
    standard = getattr(sys, "stdlib_module_names", None)  # Python 3.10 on
    broken = []
    for found in imports(file):
        top, _, rest = found.module.partition(".")
        if top == "tpvformer":
            target = rest.split(".")[0]
            fine = target in allowed[0] or target == "__version__"
        elif top in LAZY_VENDOR_MODULES:
            fine = found.file in LAZY_VENDOR_MODULES[top] and found.inside
        else:
            fine = top in allowed[1] or top == "__future__" or standard is None or top in standard
        if not fine:
            broken.append(str(found))
    assert not broken, broken


def test_nothing_of_ours_needs_the_bridge() -> None:
    elsewhere = [found for file in FILES if not name_of(file).startswith(BRIDGE) for found in imports(file)]
    assert not [str(found) for found in elsewhere if found.module.startswith("tpvformer.compat.openmmlab")]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_vendor_words_stay_where_devices_are_chosen(file: Path) -> None:
    name = name_of(file)
    if name in NAME_DEVICES or (name.startswith("ops/") and not file.name.startswith(NO_VENDOR)):
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [f"{name}:{i} {line.strip()}" for i, line in enumerate(lines, start=1) if VENDOR_WORDS.search(line)]
    assert not found, found


def unsafe(node: ast.AST) -> str:
    """What is wrong with this piece of code; empty where nothing is."""
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "bare except"
    if not isinstance(node, ast.Call):
        return ""
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("pickle.load", "pickle.loads", "yaml.load", "os.system", "eval", "marshal.loads", "os.popen"):
        return called
    if called == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if given.get("shell") == "True":
        return "a shell string"
    if given.get("strict") == "False":
        return "strict=False"
    return ""


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_runs_what_it_reads(file: Path) -> None:
    found: List[Tuple[int, str]] = []
    for node in ast.walk(parse(file)):
        complaint = unsafe(node)
        if complaint:
            found.append((getattr(node, "lineno", 0), complaint))
        executes = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "exec"
        if executes and name_of(file) != "compat/config_file.py":  # configurations are programs
            found.append((node.lineno, "exec"))
    assert not found, found


def test_the_checks_above_can_fail() -> None:
    for text in ("torch.load(f)", "pickle.load(f)", "yaml.load(f)", "run(c, shell=True)", "m.load(s, strict=False)"):
        assert any(unsafe(node) for node in ast.walk(ast.parse(text))), text
    assert any(unsafe(node) for node in ast.walk(ast.parse("try:\n    f()\nexcept:\n    pass")))
    assert VENDOR_WORDS.search("x.to('CUDA:0')") and not VENDOR_WORDS.search("torch_npu NpuFusedAdamW barracuda")


def test_file_sizes() -> None:
    folders = ("tpvformer", "config", "tests", "benchmarks", "tools", "mmcv_need", "mmdet_need")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    sizes = {f.relative_to(ROOT).as_posix(): len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    long = {name: size for name, size in sizes.items() if size > 400}
    assert not long, f"more than 400 lines: {long}"
    assert sum(sizes.values()) / len(sizes) < 200
