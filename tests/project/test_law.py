"""The rules that keep the package readable: who imports whom, where vendor words stand, file sizes, unsafe calls."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

import pytest
from package_files import FILES, PACKAGE, ROOT, name_of, parse

from tpvformer import cli

# What people import or type, and the base. A new module goes into the folder of what it hands on.
TOP_LEVEL = {"__init__", "__main__", "api", "cli", "upstream", "labels", "errors", "files", "geometry"}
FOLDERS = {
    "commands", "compat", "config", "data", "engine", "export", "model", "ops", "predict", "runtime", "untrusted",
    "viz", "weights",
}  # fmt: skip
SHIMS = {"sections": "config.sections", "grids": "config.grids"}  # paths that docs/api.md listed before they moved

# part: (parts of the package it may import, third-party packages it may import); None stands for everything
LAW = {
    "errors": ((), ()),
    "labels": ((), ()),
    "geometry": ((), ("numpy",)),
    "files": (("errors",), ("fsspec", "upath")),
    "runtime": ((), ("numba", "torch")),  # this machine's cores and processor, and kernels compiled for it
    "untrusted": (("untrusted", "errors", "files"), ("numpy", "numba", "yaml")),  # reads what others wrote
    "config": (("config", "errors", "untrusted", "labels"), ("yaml",)),
    "ops": (("ops", "runtime", "errors"), ("torch", "numba", "llvmlite", "numpy", "triton")),
    "model": (("model", "ops", "config", "errors"), ("torch",)),
    "data": (
        ("data", "untrusted", "config", "errors", "files", "geometry", "labels", "runtime"),
        ("numpy", "cv2", "numba", "simplejpeg", "torch", "fsspec", "upath"),
    ),
    "compat": (
        ("compat", "untrusted", "config", "errors", "files", "labels"),
        ("torch", "safetensors", "yaml", "huggingface_hub"),
    ),
    "compat/mmcv_ext/operations.py": (("ops",), ("torch",)),  # what it serves to mmcv
    "engine": (
        ("engine", "untrusted", "compat", "data", "model", "ops", "config", "runtime")
        + ("errors", "files", "geometry", "labels"),
        ("torch", "numpy", "rich"),
    ),
    "viz": (
        ("viz", "untrusted", "errors", "files", "geometry", "labels"),
        ("numpy", "cv2", "PIL", "matplotlib", "rerun"),
    ),
    # three files of viz that draw what other folders hand on: boxes, the frames of a data set, a run's worst frames
    "viz/boxes.py": (("data", "geometry", "labels"), ("numpy", "cv2")),
    "viz/check_geometry.py": (("viz", "data", "config", "errors", "geometry", "labels"), ("numpy",)),
    "viz/report/write.py": (
        ("viz", "predict", "engine", "compat", "data", "config", "errors", "files", "labels"),
        (),
    ),
    "predict": None,
    "export": None,
    "__init__": (("api", "runtime"), ()),  # when it is asked for
    "__main__": None,
    "api": None,
    "cli": None,
    "commands": None,  # what people type: they call the others
    "upstream": None,  # the reference's scripts as entry points: flags only, the work is cli's and predict's
    "sections": (("config",), ()),
    "grids": (("config",), ()),
}
# The one bridge to another framework: what its users import instead of the command, and nothing else does.
BRIDGE = "compat/openmmlab/"
BRIDGE_LAW = (("compat", "config", "errors", "model", "ops", "engine"), ("torch", "mmcv", "mmseg"))
LAZY_VENDOR_MODULES = {"mx_driving": ("ops/npu.py",), "torch_npu": ("ops/npu.py", "engine/device/accelerator.py")}
VENDOR_WORDS = re.compile(r"\b(cuda|npu|mx_driving|nccl|hccl|mps|xpu)\b", re.IGNORECASE)
NAME_DEVICES = tuple(
    f"engine/device/{name}.py" for name in ("accelerator", "names", "redirect")
)  # beside the backends in ops/
NO_VENDOR = ("reference.py", "numba")  # beginnings of the files in ops/ that serve every device or the CPU


class Import(NamedTuple):
    file: str
    line: int
    module: str  # dotted and absolute
    inside: bool  # within a function: it happens when first used
    names: Tuple[str, ...]  # what is imported from it

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
            names = tuple(alias.name for alias in node.names) if isinstance(node, ast.ImportFrom) else ()
            yield Import(name_of(file), node.lineno, module, id(node) in lazy, names)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_table(file: Path) -> None:
    part = part_of(file)
    assert part in LAW, f"{part} has no row in the table of imports"
    allowed = BRIDGE_LAW if name_of(file).startswith(BRIDGE) else LAW.get(name_of(file), LAW[part])
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


def test_the_top_level_is_as_listed() -> None:
    there = {path.stem for path in PACKAGE.glob("*.py")}
    assert there == TOP_LEVEL | set(SHIMS), "a new module goes into the folder of what it hands on"
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"weights"} == FOLDERS


@pytest.mark.parametrize("name", SHIMS)
def test_a_moved_path_still_holds_its_names(name: str) -> None:
    old, new = (importlib.import_module(f"tpvformer.{path}") for path in (name, SHIMS[name]))
    names = [n for n, value in vars(new).items() if getattr(value, "__module__", "") == new.__name__]
    assert names and all(getattr(old, n) is getattr(new, n) for n in names if not n.startswith("_"))


def graph() -> Dict[str, Set[str]]:
    """Module -> modules of the package that it imports when it is imported."""
    modules = {"tpvformer." + name_of(file)[:-3].replace("/", ".").replace(".__init__", ""): file for file in FILES}
    edges: Dict[str, Set[str]] = {}
    for module, file in modules.items():
        edges[module] = set()
        for found in imports(file):
            if found.inside:
                continue
            full = [f"{found.module}.{name}" for name in found.names] or [found.module]
            names = {name if name in modules else found.module for name in full}
            edges[module] |= {name for name in names if name in modules and name != module}
    return edges


def circles(edges: Dict[str, Set[str]]) -> List[List[str]]:
    """Paths that lead back to where they began, one for each module that has one."""
    found: List[List[str]] = []
    state: Dict[str, int] = {}  # 1: on the path, 2: done

    def walk(node: str, path: List[str]) -> None:
        state[node] = 1
        for after in sorted(edges.get(node, ())):
            if state.get(after) == 1:
                found.append([*path[path.index(after) :], after])
            elif after not in state:
                walk(after, [*path, after])
        state[node] = 2

    for node in sorted(edges):
        if node not in state:
            walk(node, [node])
    return found


def test_no_import_goes_in_a_circle() -> None:
    assert not circles(graph())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert graph()["tpvformer.engine.loop"] > {"tpvformer.engine.forward"}


def test_training_needs_no_measuring() -> None:
    """Nothing outside engine/bench, engine/selfcheck and the commands imports engine/bench."""
    allowed = ("tpvformer.engine.bench", "tpvformer.engine.selfcheck", "tpvformer.commands")
    arrows = [
        str(found) for file in FILES for found in imports(file)
        if found.module.startswith("tpvformer.engine.bench")
        and not ("tpvformer." + name_of(file)[:-3].replace("/", ".")).startswith(allowed)
    ]  # fmt: skip
    assert not arrows, arrows


COMMANDS = sorted({command.module for command in cli.COMMANDS} - {"completion"})  # completion prints the parser itself
FOR_FLAGS = {"__future__", "argparse", "dataclasses", "os", "pathlib", "shlex", "sys", "tpvformer", "typing"}
LONGEST_COMMAND = 12  # statements of a function, nested ones included; add_* only list options


def logic(tree: ast.AST) -> Iterator[str]:
    """What a command's module does beyond reading its flags, calling out and printing."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            foreign = {name.split(".")[0] for name in names} - FOR_FLAGS
            if foreign:
                yield f"line {node.lineno} imports {', '.join(foreign)}"
        elif isinstance(node, ast.ClassDef):
            yield f"line {node.lineno} defines the class {node.name}"
        elif isinstance(node, (ast.While, ast.Try)):
            yield f"line {node.lineno} has a {type(node).__name__.lower()}"
        elif isinstance(node, ast.For) and not all(isinstance(inner, ast.Expr) for inner in node.body):
            yield f"line {node.lineno} loops over more than lines to print"
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("add_"):
            if not node.name.startswith("_"):
                yield f"line {node.lineno} offers {node.name} to others"
            size = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
            size -= sum(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in ast.walk(node))
            if size > LONGEST_COMMAND:
                yield f"line {node.lineno}: {node.name} has {size} statements"


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_hold_no_logic(name: str) -> None:
    """A command reads its flags, makes one call out, and prints; the work stands in the folder of what it hands on."""
    found = list(logic(parse(PACKAGE / "commands" / f"{name}.py")))
    assert not found, found


def test_nothing_is_built_on_commands() -> None:
    users = ("commands/", "cli.py", "upstream.py")  # the last two are what people type
    found = [str(i) for file in FILES if not name_of(file).startswith(users) for i in imports(file)]
    assert not [line for line in found if "tpvformer.commands" in line]


def test_tests_import_no_test() -> None:
    files = (ROOT / "tests").rglob("*.py")
    found = [f.name for f in files if re.search(r"(?m)^\s*(?:from|import) test_\w+", f.read_text(encoding="utf-8"))]
    assert not found, f"{found}: what several tests use stands in tests/support"


def test_tests_start_programs_with_a_limit() -> None:
    """By tests/support/programs.py; whatever else starts one may wait without end."""
    starts = re.compile(r"subprocess\.(run|Popen|call|check_call|check_output)|os\.(spawn|posix_spawn|popen|system)\w*")
    found = [
        f"{file.name}:{node.lineno}"
        for file in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call) and starts.fullmatch(ast.unparse(node.func))
    ]
    assert not found, f"{found}: run, Program and the fixture start do that"


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
    for text in (
        "def _f(): import numpy", "class A: pass", "while x: pass", "def seen(): pass", "for x in y: z = x + 1",
        "def _f():\n" + "    x = 1\n" * 13, "try: f()\nfinally: g()",
    ):  # fmt: skip
        assert list(logic(ast.parse(text))), text
    assert not list(logic(ast.parse("def add_a(p):\n" + "    p.add()\n" * 30 + "for line in f(): print(line)")))
    assert VENDOR_WORDS.search("x.to('CUDA:0')") and not VENDOR_WORDS.search("torch_npu NpuFusedAdamW barracuda")


def test_file_sizes() -> None:
    folders = ("tpvformer", "config", "tests", "benchmarks", "tools", "mmcv_need", "mmdet_need")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    sizes = {f.relative_to(ROOT).as_posix(): len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    long = {name: size for name, size in sizes.items() if size > 400}
    assert not long, f"more than 400 lines: {long}"
    assert sum(sizes.values()) / len(sizes) < 200
