"""Stand-ins for packages of scripts' environments that are not installed: nuscenes-devkit, timm, torchvision."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, Dict, Optional, Sequence, Tuple

from tpvformer.engine.foreign.remarks import remark

# module -> (module here, names); a module without names is there for those below it, or to be imported
MODULES: Dict[str, Dict[str, str]] = {
    "nuscenes": {"NuScenes": "tpvformer.engine.foreign.nuscenes"},
    "nuscenes.nuscenes": {"NuScenes": "tpvformer.engine.foreign.nuscenes"},
    "timm": {},
    "timm.scheduler": {"CosineLRScheduler": "tpvformer.engine.foreign.cosine"},
    "timm.scheduler.cosine_lr": {"CosineLRScheduler": "tpvformer.engine.foreign.cosine"},
    "torchvision": {},
}
_INSTALL = {
    "nuscenes": "pip install --no-deps nuscenes-devkit pyquaternion",
    "timm": "pip install --no-deps timm",
    "torchvision": "pip install --no-deps the torchvision of this PyTorch",
}
_PACKAGES: Tuple[str, ...] = ("nuscenes", "timm", "timm.scheduler", "torchvision")


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: what is installed is found before. Names that are not served raise one sentence."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        root = name.partition(".")[0]
        if root not in _INSTALL:
            return None
        if root != name and not isinstance(getattr(sys.modules.get(root), "__loader__", None), Absent):
            return None  # the package itself is installed
        if name not in MODULES:
            raise ModuleNotFoundError(_sentence(name), name=name)
        return importlib.util.spec_from_loader(name, self, is_package=name in _PACKAGES)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        """Return None: Python makes the module."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        found: Dict[str, Any] = {"__version__": "0.0.0", "__getattr__": lambda entry: _missing(name, entry)}
        for entry, home in MODULES[name].items():
            found[entry] = getattr(importlib.import_module(home), entry)
        vars(module).update(found)
        if "." not in name:
            served = sorted({entry for place, names in MODULES.items() if place.startswith(name) for entry in names})
            remark(f"{name} is not installed; tpvformer's {', '.join(served) or 'empty package'} stands in for it")


def _missing(module: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(_sentence(f"{module}.{name}"))


def _sentence(name: str) -> str:
    root = name.partition(".")[0]
    return f"{name}: {root} is not installed, and tpvformer's stand-in for it does not have this; {_INSTALL[root]}"


def serve_absent() -> None:
    """Let the stand-ins be imported where the packages are not there. A second call changes nothing."""
    if not any(isinstance(finder, Absent) for finder in sys.meta_path):
        sys.meta_path.append(Absent())
