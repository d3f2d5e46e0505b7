"""Putting the stand-in where Python imports ``mmcv._ext`` from, and its attention where mmcv has one for a CPU."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, Callable, Optional, Sequence

EXTENSION = "mmcv._ext"
ATTENTION = "mmcv.ops.multi_scale_deform_attn"
PLAIN = "multi_scale_deformable_attn_pytorch"
_MARK = "SERVED_BY"


class Finder(importlib.abc.MetaPathFinder):
    """Find the stand-in under mmcv's name, and change mmcv's module of attention after it was executed."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if name == EXTENSION:
            return importlib.util.spec_from_loader(name, _Extension(found_by_others(self, name, path)))
        if name == ATTENTION:
            return changed(found_by_others(self, name, path), serve_attention)
        return None


class _Extension(importlib.abc.Loader):
    """Loads the stand-in. Names that it does not serve are those of the environment's own module, if it has one."""

    def __init__(self, other: Optional[importlib.machinery.ModuleSpec]) -> None:
        self._other = other
        self._loaded: Optional[ModuleType] = None

    def exec_module(self, module: ModuleType) -> None:
        from tpvformer.compat.mmcv_ext import extension

        module.__doc__ = extension.__doc__
        for name in (*extension.__all__, _MARK):
            setattr(module, name, getattr(extension, name))
        module.__getattr__ = self._ask  # PEP 562

    def _ask(self, name: str) -> Any:
        from tpvformer.compat.mmcv_ext import extension

        if self._other is None or name.startswith("__"):
            return extension.__getattr__(name)
        if self._loaded is None:
            self._loaded = importlib.util.module_from_spec(self._other)
            assert self._other.loader is not None
            self._other.loader.exec_module(self._loaded)
        return getattr(self._loaded, name)


class _Changed(importlib.abc.Loader):
    """Runs another loader, then a function on the module; it answers for the other loader, for tools that ask."""

    def __init__(self, loader: Any, change: Callable[[ModuleType], None]) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def found_by_others(
    finder: object, name: str, path: Optional[Sequence[str]]
) -> Optional[importlib.machinery.ModuleSpec]:
    """Return what Python would import under this name without ``finder``; None where there is nothing."""
    for other in sys.meta_path:
        find = None if other is finder else getattr(other, "find_spec", None)
        spec = None if find is None else find(name, path)
        if spec is not None:
            return spec
    return None


def changed(
    spec: Optional[importlib.machinery.ModuleSpec], change: Callable[[ModuleType], None]
) -> Optional[importlib.machinery.ModuleSpec]:
    """Return the spec of a module that ``change`` is called with after its own code has run."""
    if spec is not None and spec.loader is not None:
        spec.loader = _Changed(spec.loader, change)
    return spec


def serve_attention(module: ModuleType) -> None:
    """Replace mmcv's attention in plain PyTorch, here and in modules that have imported it by name."""
    from tpvformer.compat.mmcv_ext import operations

    theirs = getattr(module, PLAIN, None)
    for user in (module, *_modules_with(PLAIN, theirs)):
        setattr(user, PLAIN, operations.multi_scale_deformable_attn_pytorch)


def install() -> None:
    """Install the stand-in in this process, also where mmcv's operations were imported before. Again: no change."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder())
    theirs, attention = sys.modules.get(EXTENSION), sys.modules.get(ATTENTION)
    if theirs is not None and _MARK not in vars(theirs):
        del sys.modules[EXTENSION]
        for user in _modules_with("ext_module", theirs):
            user.ext_module = importlib.import_module(EXTENSION)  # ty: ignore[missing-attribute]
    if attention is not None and not getattr(attention.__spec__, "_initializing", False):
        serve_attention(attention)


def _modules_with(name: str, value: object) -> Sequence[ModuleType]:
    """Return the imported modules that have ``value`` under this name."""
    found = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [] if value is None else [module for module in found if vars(module).get(name) is value]
