"""Everything a run is made of, as frozen dataclasses.

A config file under ``config/`` is Python that binds one ``Config`` to the name ``config``; variants are made with
``dataclasses.replace``; ``override`` changes single fields by dotted name, checked for spelling and type.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Union, get_args, get_origin, get_type_hints

from tpvformer.config.grids import OCCUPANCY_GRIDS, ConfigError, GridConfig, OccupancyGrid
from tpvformer.config.label_maps import UNLABELLED, is_map_file
from tpvformer.config.ranges import short
from tpvformer.config.sections import (
    AugmentConfig,
    BackboneConfig,
    DataConfig,
    DetectionConfig,
    HistoryConfig,
    LabelMapConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from tpvformer.config.words import plain
from tpvformer.untrusted.names import is_file_name
from tpvformer.untrusted.text import TextError, parse_yaml

__all__ = [
    "OCCUPANCY_GRIDS",
    "AugmentConfig",
    "BackboneConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DetectionConfig",
    "GridConfig",
    "HistoryConfig",
    "LabelMapConfig",
    "LossConfig",
    "ModelConfig",
    "OccupancyGrid",
    "OptimConfig",
    "TrainConfig",
    "from_dict",
    "override",
]


@dataclass(frozen=True)
class Config:
    """A whole run: what is built, what it reads, what it minimises and for how long."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for part in dataclasses.fields(self):
            kinds = {"name": str, "model": ModelConfig, "data": DataConfig, "loss": LossConfig, "optim": OptimConfig}
            expected = kinds.get(part.name, TrainConfig)
            if not isinstance(getattr(self, part.name), expected):
                raise ConfigError(f"{part.name} is {short(getattr(self, part.name))}; expected {expected.__name__}")
        kind, grid, classes = self.data.occupancy, self.model.grid, self.model.num_classes
        if not is_file_name(self.name):
            raise ConfigError(f"name is {short(self.name)}; expected what can be part of a file's name")
        if self.loss.class_weights and len(self.loss.class_weights) != classes:
            raise ConfigError(
                f"loss.class_weights has {len(self.loss.class_weights)} numbers; expected model.num_classes, {classes}"
            )
        known = self.data.label_classes
        least = known.evaluated[-1] + 1
        if self.data.classes is not None:
            self._check_own_classes(self.data.classes)
        if not least <= classes <= len(known.colors):
            raise ConfigError(
                f"model.num_classes is {classes}, but data.label_map {self.data.label_map} has {least} to "
                f"{len(known.colors)}; set one of the two to what the other needs"
            )
        if self.data.fill_label >= classes and self.data.fill_label != self.data.ignore_label:
            raise ConfigError(
                f"data.fill_label is {self.data.fill_label}; expected a class below model.num_classes, {classes}"
            )
        if self.loss.affinity and self.data.fill_label == self.data.ignore_label:
            raise ConfigError("loss.affinity needs free space as a class; set data.fill_label to it")
        if self.loss.render and not (kind and self.loss.segmentation):
            raise ConfigError(
                f"loss.render is {self.loss.render:g}, and only dense labels say what a ray meets; set data.occupancy "
                "(docs/data.md) and leave loss.segmentation above 0, or set loss.render=0"
            )
        if bool(self.loss.image) != self.model.image_head or self.loss.image < 0:
            raise ConfigError(
                f"loss.image is {self.loss.image} and model.image_head is {self.model.image_head}; expected a weight "
                "above 0 with true, or 0 with false"
            )
        if self.loss.image and (not self.data.cells_are_even or self.data.fill_label != self.data.ignore_label):
            raise ConfigError("loss.image reads voxels that hold points, in even cells; set data.even_cells=true")
        if bool(self.loss.detection) != (self.model.detection is not None):
            raise ConfigError(
                f"loss.detection is {self.loss.detection} and model.detection is "
                f"{'null' if self.model.detection is None else 'set'}; expected a weight above 0 with a head, or 0 "
                "without one"
            )
        if self.model.detection is not None and self.data.format == "semantickitti":
            raise ConfigError(f"model.detection needs boxes, which data.format={self.data.format} does not have")
        if not self.loss.detection and not self.loss.segmentation:
            raise ConfigError("loss.segmentation and loss.detection are both 0; expected at least one above 0")
        if not kind:
            return
        wanted = self._labelled_grid()
        if wanted.part(grid) is None:
            raise ConfigError(
                f"data.occupancy={kind} has labels for {wanted.shape} voxels over {wanted.pc_range} m in the "
                f"{wanted.frame} frame, but model.grid makes {grid.shape} over {grid.pc_range} in the {grid.frame} "
                "frame; set model.grid to the labels' grid, or to whole voxels of it"
            )
        if "points" in (self.loss.lovasz_input, self.loss.ce_input):
            raise ConfigError(f"data.occupancy={kind} labels voxels; set loss.lovasz_input and loss.ce_input to voxel")
        if classes != wanted.classes or self.data.fill_label != wanted.empty:
            raise ConfigError(
                f"data.occupancy={kind} needs free space as a class; set model.num_classes={wanted.classes} and "
                f"data.fill_label={wanted.empty}"
            )
        if kind == "semantickitti" and self.data.ignore_label < classes:
            raise ConfigError(f"data.ignore_label is {self.data.ignore_label}; semantickitti's unknown voxels are 255")

    def _check_own_classes(self, own: LabelMapConfig) -> None:
        """Raise ConfigError where a label map of one's own does not fit model.num_classes and data's special labels."""
        name, count, data = self.data.label_map, len(own.names), self.data
        if self.model.num_classes != count:
            raise ConfigError(
                f"model.num_classes is {self.model.num_classes}, but the label map {name} has {count} classes; set "
                f"model.num_classes={count}"
            )
        wanted = UNLABELLED if own.ignored is None else own.ignored
        if data.ignore_label != wanted:
            why = "has no ignored class" if own.ignored is None else f"ignores class {own.names[own.ignored]}"
            raise ConfigError(
                f"data.ignore_label is {data.ignore_label}, but the label map {name} {why}; set "
                f"data.ignore_label={wanted}"
            )
        fills = [wanted] if own.empty is None else [own.empty, wanted]
        if data.fill_label not in fills:
            raise ConfigError(
                f"data.fill_label, the label of voxels without points, is {data.fill_label}, but the label map {name} "
                f"has another class of that number; set data.fill_label={fills[0]}"
            )

    def _labelled_grid(self) -> OccupancyGrid:
        """Return the grid of the dense labels, with free space as the label map has it. Raises ConfigError."""
        kind, own = self.data.occupancy, self.data.classes
        grid = OCCUPANCY_GRIDS[kind]
        if own is None:
            return grid._replace(classes=17, empty=0) if self.data.label_map == "surroundocc" else grid
        table, needed = ("raw", 1) if kind == "semantickitti" else ("voxels", grid.empty + 1)
        if own.empty is None or len(getattr(own, table)) < needed:
            raise ConfigError(
                f"data.occupancy={kind} needs the class of free space (empty) and the class of each label in its files "
                f"({table}{f', 0 to {needed - 1}' if needed > 1 else ''}); add both to the label map "
                f"{self.data.label_map}, or set data.occupancy to nothing"
            )
        return grid._replace(classes=len(own.names), empty=own.empty)

    def dump(self) -> str:
        """The whole configuration as YAML, as it is written into the work dir."""
        import yaml  # here, because a machine that only measures may lack it

        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply ``section.field=value`` strings; values are YAML scalars or lists. Validated when all are applied.

    Raises ConfigError that names the nearest known field when the name is unknown, and the expected type when the
    value does not fit.
    """
    tree = dataclasses.asdict(config)
    for text in assignments:
        path, eq, raw = text.partition("=")
        if not eq:
            raise ConfigError(f"override {text!r}: expected section.field=value, for example optim.lr=1e-4")
        try:
            value = parse_yaml(raw)
        except TextError as err:
            raise ConfigError(f"override {short(text)}: {short(raw)} is not a YAML value ({err})") from err
        _assign(tree, Config, " ".join(path.split()), value)
    return _from_tree(tree)


def _assign(node: Dict[str, Any], kind: Any, path: str, value: Any) -> None:
    """Set one field, named by its dotted path, in the tree of a dataclass of type ``kind``."""
    *sections, name = path.split(".")
    for head in (*sections, name):
        hints = get_type_hints(kind)
        if head not in hints:
            near = difflib.get_close_matches(head, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(hints))}"
            raise ConfigError(f"override {path}: {kind.__name__} has no field {head!r}{hint}")
        parent, kind = kind, hints[head]
        if head is name:
            break
        kind = _section(kind)
        if kind is None:
            raise ConfigError(f"override {path}: {head!r} of {parent.__name__} is a value and has no fields")
        if node[head] is None:  # a section that is left out: one of its fields asks for it
            node[head] = dataclasses.asdict(kind())
        node = node[head]
    if _section(kind) is not None and (value is not None or dataclasses.is_dataclass(kind)):
        raise ConfigError(f"override {path}: {name!r} is a section; name one of its fields")
    node[name] = _coerce(value, kind, f"override {path}")


def _section(kind: Any) -> Any:
    """Return the dataclass of a field that holds a section, or may hold one; None for a field that holds a value."""
    if get_origin(kind) is Union:
        kind = get_args(kind)[0]
    return kind if dataclasses.is_dataclass(kind) else None


def _coerce(value: Any, kind: Any, where: str) -> Any:
    kind = plain(kind)  # the section checks the words
    if get_origin(kind) is Union:  # Optional[...]
        if value is None:
            return None
        return _coerce(value, next(a for a in get_args(kind) if a is not type(None)), where)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list such as [1, 2, 3], got {short(value)}")
        return tuple(_coerce(v, get_args(kind)[0], where) for v in value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {kind.__name__}, got {short(value)}")


def _has_default(part: Any) -> bool:
    return part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING


def from_dict(tree: Dict[str, Any]) -> Config:
    """The inverse of ``dataclasses.asdict`` and of ``Config.dump`` (used by checkpoints); strict about names.

    It opens no file: stored with a configuration are the classes of a label map, in data.classes.
    """
    label_map = tree["data"].get("label_map") if isinstance(tree, dict) and isinstance(tree.get("data"), dict) else None
    if isinstance(label_map, str) and is_map_file(label_map):
        raise ConfigError(
            f"stored configuration: data.label_map names the file {short(label_map)}; expected its classes in "
            "data.classes, as a run stores them"
        )
    return _from_tree(tree)


def _from_tree(tree: Dict[str, Any]) -> Config:
    """Build a configuration from nested dictionaries; strict about names. Raises ConfigError."""

    def build(kind: Any, node: Dict[str, Any], where: str) -> Any:
        hints = get_type_hints(kind)
        if not isinstance(node, dict):
            what = type(node).__name__
            raise ConfigError(f"stored configuration: {where or 'Config'} is {what}; expected a dict of its fields")
        unknown = set(node) - set(hints)
        if unknown:
            raise ConfigError(
                f"stored configuration: {where or 'Config'} has unknown fields {short(sorted(map(str, unknown)))}"
            )
        lost = [f.name for f in dataclasses.fields(kind) if f.name not in node and not _has_default(f)]
        if lost:
            raise ConfigError(f"stored configuration: {where or 'Config'} has no {lost[0]}")
        values = {}
        for name, value in node.items():
            here = f"{where}.{name}" if where else name
            section = _section(hints[name])
            left_out = value is None and section is not hints[name]
            nested = section is not None and not left_out
            values[name] = build(section, value, here) if nested else _coerce(value, hints[name], here)
        return kind(**values)

    return build(Config, tree, "")
