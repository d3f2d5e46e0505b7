"""Configuration files: ours (which bind ``config``) and the reference's (which bind ``model = dict(...)``).

Both are Python and are executed: run only files you trust. The reference's are read without importing its framework.
"""

from __future__ import annotations

import ast
import difflib
import os
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Tuple, Union

from tpvformer.compat.mmcv_config import KNOWN, from_reference
from tpvformer.config import Config
from tpvformer.errors import ConfigError

_MARKS = ("_base_", "_delete_")
_PACKAGE = Path(__file__).parents[1]


def shipped() -> Dict[str, Path]:
    """Return the shipped configuration files by name: config/ of a checkout or, once installed, inside the package."""
    inside = _PACKAGE / "configs"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "config"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def load_config(path: Union[str, "os.PathLike[str]"]) -> Config:
    """Return the configuration of a file. Raises ConfigError with the file and line, or with the unknown key.

    Where there is no such file, ``demo``, ``demo.py`` and ``config/demo.py`` name the shipped one.
    """
    file, tree = read_tree(path)
    if "config" in tree:
        config = tree["config"]
        if not isinstance(config, Config):
            raise ConfigError(f"{file}: 'config' is a {type(config).__name__}; expected a tpvformer.config.Config")
        return config
    if "model" not in tree:
        raise ConfigError(
            f"{file}: no configuration found; expected a variable 'config' (tpvformer.config.Config) "
            "or, in the reference's format, 'model = dict(type=\"TPVFormer\", ...)'"
        )
    return from_reference(tree, file.stem, str(file))


def read_tree(path: Union[str, "os.PathLike[str]"], strays: bool = False) -> Tuple[Path, Dict[str, Any]]:
    """Execute a file; return its path and its values, those of ``_base_`` merged in, or ``config`` alone where it is.

    Raises ConfigError, also for a name that is no key of the reference's, unless ``strays``.
    """
    file = Path(path)
    if not file.is_file() and file.parent in (Path(), Path("config")):
        file = shipped().get(file.name[: -len(".py")] if file.suffix == ".py" else file.name, file)
    names = _execute(file)
    if "config" in names:
        return file, {"config": names["config"]}
    return file, _merged(file, names, (file.resolve(),), strays)


def _execute(file: Path) -> Dict[str, Any]:
    """Run a file and return the public names that it binds.

    Raises ConfigError for an error inside it: one sentence, with the line that it comes from.
    """
    if not file.is_file():
        near = difflib.get_close_matches(file.stem, shipped(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{file}: no such configuration file; known by name are {', '.join(shipped())}{hint}")
    names: Dict[str, Any] = {"__file__": str(file), "__name__": "__config__"}
    try:
        source = file.read_text(encoding="utf-8")
        exec(compile(source, str(file), "exec"), names)  # noqa: S102 - a configuration is a program by design
    except SyntaxError as err:
        raise ConfigError(f"{err.filename or file}:{err.lineno}: {err.msg}: {(err.text or '').strip()}") from err
    except Exception as err:
        lines = [frame.lineno for frame in traceback.extract_tb(err.__traceback__) if frame.filename == str(file)]
        where = f"{file}:{lines[-1]}" if lines else str(file)
        kind = "" if isinstance(err, ConfigError) else f"{type(err).__name__}: "
        raise ConfigError(f"{where}: {kind}{err}") from err
    return {name: value for name, value in names.items() if not name.startswith("__")}


def _merged(file: Path, names: Dict[str, Any], seen: Tuple[Path, ...], strays: bool) -> Dict[str, Any]:
    """Merge the file's values over those of its ``_base_`` files (paths relative to the file)."""
    bases = names.get("_base_", [])
    own = {name: value for name, value in names.items() if name != "_base_" and _is_value(value)}
    if not strays:
        _refuse_stray(file, own)
    tree: Dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else list(bases):
        inherited = (file.parent / base).resolve()
        if inherited in seen:
            raise ConfigError(f"{file}: _base_ {base!r} leads back to a file that is already being read")
        part = _merged(inherited, _execute(inherited), seen + (inherited,), strays)
        double = sorted(set(tree) & set(part))
        if double:
            raise ConfigError(f"{file}: {', '.join(double)} set by more than one _base_ file; expected each key once")
        tree.update(part)
    return _over(tree, own, str(file))


def _over(base: Dict[str, Any], child: Dict[str, Any], where: str) -> Dict[str, Any]:
    """Merge dictionaries key by key, unless the child has ``_delete_=True``; replace every other value."""
    out = dict(base)
    for key, value in child.items():
        if not isinstance(value, dict):
            out[key] = value
            continue
        fresh = value.get("_delete_", False)
        old = out.get(key, {})
        if not fresh and not isinstance(old, dict):
            raise ConfigError(f"{where}: {key} is a dictionary over a {type(old).__name__}; did you mean _delete_?")
        inner = {name: item for name, item in value.items() if name not in _MARKS}
        out[key] = _over({} if fresh else old, inner, where)
    return out


def _is_value(value: Any) -> bool:
    return not isinstance(value, (ModuleType, type)) and not callable(value)


def _refuse_stray(file: Path, own: Dict[str, Any]) -> None:
    """Raise ConfigError for a name that is no key and that the file does not use itself: most likely a misspelt key.

    Names that start with an underscore are left alone.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    stray: List[str] = [name for name in own if name not in KNOWN and name not in used and not name.startswith("_")]
    if stray:
        near = difflib.get_close_matches(stray[0], KNOWN, 1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it, or start its name with an underscore"
        raise ConfigError(f"{file}: {stray[0]!r} is not a key that is understood here; {hint}")
