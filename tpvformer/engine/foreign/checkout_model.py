"""Building a checkout's own model, which executes the checkout's Python code: only where ``--own-model`` asks for it.

The reference has a package of model code and a builder for each of its two families. A checkout without the builder is
built by mmseg's registry, after the package and the configuration's ``custom_imports`` have registered their classes.
"""

from __future__ import annotations

import copy
import importlib
import re
import sys
from typing import Any, Dict

import torch
from torch import nn

from tpvformer.compat.own_model import FLAG, OwnSource
from tpvformer.config import Config
from tpvformer.engine.device.redirect import find_cards
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.foreign import remarks
from tpvformer.engine.foreign.own_model import OwnModel
from tpvformer.engine.foreign.preparations import prepare
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError

_PACKAGES = {False: "tpvformer10", True: "tpvformer04"}  # by ``occupancy``
_BUILDERS = {False: "builder.tpv_lidarseg_builder", True: "builder.tpv_occupancy_builder"}
_OPENMMLAB = ("mmcv", "mmdet", "mmseg", "mmdet3d")


def build_own(source: OwnSource, config: Config, world: World, device: torch.device, log: RunLog) -> OwnModel:
    """Return the checkout's model on the device, with fresh weights from the configured seed.

    The process is prepared as for ``tpvformer run``; what that replaces is a line of the log each. Raises ConfigError
    where a package is missing, and for a folder that is no checkout.
    """
    remarks.tell(log.warn)
    prepare(find_cards(device.type, least=world.local_size), device.index)
    torch.manual_seed(config.train.seed)
    model = _built(source)
    if getattr(model, "is_init", None) is False:  # of mmcv's BaseModule: the builder has left it to the script
        model.init_weights()  # ty: ignore[not-callable]
    log.line(f"the checkout's own model is used: {type(model).__name__} by {source.file}, code of {source.root}")
    return OwnModel(model, source, config.model).to(device)


def _built(source: OwnSource) -> nn.Module:
    """Import the checkout's code and call its builder."""
    package, builder = _PACKAGES[source.occupancy], _BUILDERS[source.occupancy]
    has_package = (source.root / package).is_dir()
    has_builder = (source.root / f"{builder.replace('.', '/')}.py").is_file()
    if not (has_package or has_builder or source.imports):
        raise ConfigError(
            f"{FLAG}: {source.root} has neither {package}/ nor {builder.replace('.', '/')}.py, and {source.file} no "
            "custom_imports; run it at the root of the checkout whose model is meant"
        )
    sys.path.insert(0, str(source.root))
    try:
        for name in source.imports:
            _import(name, source.may_fail)
        if has_package:
            importlib.import_module(package)
        if has_builder:
            build = getattr(importlib.import_module(builder), "build", None)
            if build is None:
                raise ConfigError(f"{FLAG}: {builder} of {source.root} has no function build(model)")
        else:
            build = importlib.import_module("mmseg.models").build_segmentor
        return build(_as_mmcv_reads(source.section))
    except ModuleNotFoundError as err:
        raise ConfigError(f"{FLAG}: {_missing(err)}") from err
    except KeyError as err:
        if "registry" not in str(err):
            raise
        raise ConfigError(
            f"{FLAG}: {source.file}: {err.args[0]}; correct that type, or import the module that registers it "
            "(custom_imports)"
        ) from err


def _import(name: str, may_fail: bool) -> None:
    """Import a module that the configuration names; with ``may_fail`` one that cannot be imported is a remark."""
    try:
        importlib.import_module(name)
    except ImportError as err:
        if not may_fail:
            raise
        remarks.remark(f"custom_imports: {name} was not imported ({err}), which allow_failed_imports permits")


def _as_mmcv_reads(section: Dict[str, Any]) -> Any:
    """Return a copy of the section as mmcv's configurations give it to builders, with its keys as attributes too."""
    kind = getattr(importlib.import_module("mmcv"), "ConfigDict", dict)
    return kind(copy.deepcopy(section))


def _missing(err: ModuleNotFoundError) -> str:
    """Return what to install. mmcv's registries raise the error again, with the name in its text alone."""
    named = re.search(r"No module named '([^']+)'", str(err))
    package = (err.name or (named[1] if named else str(err))).partition(".")[0]
    where = f"which is not installed in {sys.executable}"
    if package in _OPENMMLAB:
        return (
            f"the checkout's own model needs {package}, {where}; tools/openmmlab_env.sh DIR makes an environment with "
            "mmcv, mmdet and mmseg, without a compiler (docs/fork.md)"
        )
    return f"the checkout's code needs {package}, {where}; install it there"
