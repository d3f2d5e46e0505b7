"""Configurations of a checkout whose own model is trained: its ``model`` section as it stands, the rest as ours.

``--own-model`` asks for it (engine/foreign/checkout_model.py builds the model). Keys of ``model`` that this package
does not know are the checkout's own; the data, the losses and the training are read as in any file of the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Dict, Generator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from tpvformer.compat.checkout import FOLDERS
from tpvformer.compat.config_file import read_tree
from tpvformer.compat.mmcv_config import beside_model
from tpvformer.config import Config, GridConfig, ModelConfig, override
from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import short

FLAG, VARIABLE = "--own-model", "TPVFORMER_OWN_MODEL"
_AXES = ("w", "h", "z")


class OwnSource(NamedTuple):
    """What a checkout's own model is built from: its folder, a configuration's ``model`` section, and which family."""

    root: Path
    file: str
    section: Dict[str, Any]
    occupancy: bool  # of the two families that the reference has a package and a builder for
    imports: Tuple[str, ...] = ()  # modules that the configuration's ``custom_imports`` names
    may_fail: bool = False  # its ``allow_failed_imports``
    unused: bool = False  # ``find_unused_parameters``: some steps do not use all parameters

    def text(self) -> str:
        """Return the section as one line of JSON, for checkpoints: equal for equal sections."""
        return json.dumps(_plain(self.section), sort_keys=True)


def _plain(value: Any) -> Any:
    """Return a value in JSON's types; a function or class becomes its name, which is the same in every process."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


def asked(flag: Optional[bool]) -> Optional[bool]:
    """Return whether the checkout's own model is wanted, by the flag or else the variable; None: nothing was said.

    Raises ConfigError for a variable that is neither 0 nor 1.
    """
    word = os.environ.get(VARIABLE, "")
    if flag is not None or not word:
        return flag
    if word not in ("0", "1"):
        raise ConfigError(
            f"environment: {VARIABLE} is {short(word)}; expected 1 (the checkout's own model) or 0 (ours)"
        )
    return word == "1"


@contextlib.contextmanager
def hinted(root: Path, chosen: Optional[bool]) -> Generator[None, None, None]:
    """Add the flag to a ConfigError about a model section in a checkout, where nobody said which model is meant."""
    try:
        yield
    except ConfigError as err:
        about_model = any(part in str(err) for part in (": model", "is not a key that is understood"))
        if chosen is None and about_model and any((root / name).is_dir() for name in FOLDERS):
            raise ConfigError(f"{err}; if the checkout's own model is meant, add {FLAG}") from err
        raise


def load_own(path: str, assignments: Sequence[str], root: Path) -> Tuple[Config, OwnSource]:
    """Return the configuration of a file in the reference's format for a run of the checkout's own model in ``root``.

    The configuration's ``model`` holds the grid, the classes and the cameras, which data and losses need; the rest of
    it has no meaning. ``assignments`` are those of ``--set``. Raises ConfigError, also for settings that only our model
    has.
    """
    file, tree = read_tree(path, strays=True)
    section = tree.get("model")
    if not isinstance(section, dict):
        raise ConfigError(
            f"{file}: {FLAG} needs the checkout's own configuration, with model = dict(type=...); this file is in "
            "this package's format, which describes this package's model"
        )
    if any(text.startswith("model.") for text in assignments):
        raise ConfigError(f"--set model...: with {FLAG} the model is that of {file}; change it there")
    config = override(beside_model(tree, file.stem, str(file), _stated(tree, section, str(file))), assignments)
    _check(config)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
    unused = bool(tree.get("find_unused_parameters"))
    source = OwnSource(root, str(file), section, bool(tree.get("occupancy")), unused=unused)
    names, may_fail = _imports(tree, str(file))
    return config, source._replace(imports=names, may_fail=may_fail)


def _imports(tree: Mapping[str, Any], file: str) -> Tuple[Tuple[str, ...], bool]:
    """Return the modules that ``custom_imports`` names, and whether they may be missing. Raises ConfigError."""
    given = tree.get("custom_imports") or {"imports": []}
    names = given.get("imports") if isinstance(given, Mapping) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{file}: custom_imports is {short(given)}; expected dict(imports=[...]) with module names")
    return tuple(names), isinstance(given, Mapping) and given.get("allow_failed_imports") is True


def _stated(tree: Mapping[str, Any], section: Mapping[str, Any], file: str) -> ModelConfig:
    """Return what data and losses need of a model, from the places where the reference's files write it."""
    part = section.get("tpv_aggregator")
    aggregator: Mapping[str, Any] = part if isinstance(part, Mapping) else {}

    def find(top: str, inner: str, otherwise: Any = None) -> Any:
        value = tree.get(top)
        return aggregator.get(inner, otherwise) if value is None else value

    scales = [find(f"scale_{axis}", f"scale_{axis}", 1) for axis in _AXES]
    sizes: List[Any] = [find(f"tpv_{axis}_", f"tpv_{axis}") for axis in _AXES]
    if None in sizes:
        sizes = _sizes_of(tree.get("grid_size"), scales, file)
    space = tree.get("dataset_params")
    space = space if isinstance(space, Mapping) else {}
    edges = tree.get("point_cloud_range")
    if edges is None:
        corners = [space.get(f"{end}_volume_space") for end in ("min", "max")]
        edges = [edge for corner in corners if isinstance(corner, (list, tuple)) for edge in corner]
    usable = isinstance(edges, (list, tuple)) and len(edges) == 6
    if not usable or not all(isinstance(edge, (int, float)) for edge in edges):
        raise ConfigError(f"{file}: point_cloud_range is {short(edges)}; expected six numbers, x0, y0, z0, x1, y1, z1")
    classes = find("nbr_class", "nbr_classes")
    if not isinstance(classes, int):
        raise ConfigError(f"{file}: nbr_class is {short(classes)}; expected the number of classes, a whole number")
    return ModelConfig(
        grid=GridConfig(*sizes, *scales, pc_range=tuple(float(edge) for edge in edges)),
        num_classes=classes,
        num_cams=tree.get("_num_cams_", 6),
        layers=("self",),  # and the smallest numbers: nothing is built from them
        image_heads=1,
        plane_heads=1,
        pillar_anchors=(1, 1, 1),
        image_points=(1, 1, 1),
        plane_points=1,
        plane_anchors=1,
    )


def _sizes_of(grid_size: Any, scales: Sequence[Any], file: str) -> List[Any]:
    """Return w, h, z of ``grid_size``, whose first two the reference and its variants write in either order."""
    usable = isinstance(grid_size, (list, tuple)) and len(grid_size) == 3 and grid_size[0] == grid_size[1]
    if not usable or scales != [1, 1, 1]:
        raise ConfigError(
            f"{file}: {FLAG} needs the size of the grid; expected tpv_w_, tpv_h_ and tpv_z_ (cells along x, y, z) as "
            "variables of the file, or a tpv_aggregator with tpv_w, tpv_h and tpv_z"
        )
    return list(grid_size)


def _check(config: Config) -> None:
    """Raise ConfigError for a setting that only this package's model has."""
    train, decay = config.train, config.optim.layer_decay
    ours = {
        "train.precision": (train.precision, train.precision not in ("auto", "fp32")),
        "train.freeze": (train.freeze, bool(train.freeze)),
        "train.recompute": (train.recompute, train.recompute is not None),
        "train.compile": (train.compile, bool(train.compile)),
        "optim.layer_decay": (decay, decay != 1),
    }
    for name, value in [(name, value) for name, (value, given) in ours.items() if given]:
        raise ConfigError(
            f"{name} is {value}, which is for this package's model; with {FLAG} leave it out (the checkout's own "
            "code runs as it is, in fp32)"
        )
