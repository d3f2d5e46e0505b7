"""The files of ``tpvformer overlay`` in place of mmcv's and mmdet's for one process; nothing is written."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Optional, Sequence

from tpvformer.compat.mmcv_ext.finder import found_by_others
from tpvformer.compat.overlay import DROP_INS, SOURCES, STOCK, Place

_FILES = {f"{item.package}.{item.target[:-3].replace('/', '.')}": item for item in DROP_INS if item.published}


class DropIns(importlib.abc.MetaPathFinder):
    """Find our file for a module whose own file is the published one of the version that ours was made for."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        item = _FILES.get(name)
        spec = None if item is None else found_by_others(self, name, path)
        if item is None or spec is None or spec.origin is None or not Path(spec.origin).is_file():
            return None
        if Place(item, Path(spec.origin)).state != STOCK:
            return None
        return importlib.util.spec_from_file_location(name, SOURCES / item.source)


def serve_drop_ins() -> None:
    """Serve the files from now on. A second call changes nothing."""
    if not any(isinstance(finder, DropIns) for finder in sys.meta_path):
        sys.meta_path.insert(0, DropIns())
