"""Read label maps of one's own: a file with the classes' names and colours, and the raw labels of each class.

A YAML or JSON file has these keys, a CSV file a row for each class with the same columns (docs/finetune.md)::

    classes:                # in the order of their numbers, from 0 on
      - {name: other, color: [110, 110, 110], raw: [0, 1, 5]}    # or color: "#6e6e6e"
      - {name: vehicle, color: "#0096f5", raw: [vehicle.car, 23], voxels: [3, 4, 9, 10]}
    ignore: other           # optional: the class that is neither taught nor evaluated
    empty: free             # optional: the class of free space
    unlabelled: [7]         # optional: raw labels without a class; they become 255
    rest: other             # optional: the class of the raw labels that are named nowhere
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, List, Optional, Tuple

from tpvformer.config.ranges import check_section
from tpvformer.errors import ConfigError
from tpvformer.labels import KITTI_RAW, RAW_NAMES, Classes
from tpvformer.untrusted.names import has_unseen, short
from tpvformer.untrusted.text import TextError, parse_json, parse_yaml

SUFFIXES = (".yaml", ".yml", ".json", ".csv")  # of files that data.label_map may name
UNLABELLED = 255  # the class of raw labels that have none; data.ignore_label is then this number
_LONGEST = 2**18  # bytes of a file
_MOST = 254  # classes
_HIGHEST_RAW = 4095
_KEYS = ("classes", "ignore", "empty", "unlabelled", "rest")
_OF_A_CLASS = ("name", "color", "raw", "voxels")
_COLUMNS = (*_OF_A_CLASS, "role")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class LabelMapConfig:
    """Hold a label map of one's own, which ``data.label_map`` read from a file; it is stored with the weights."""

    names: Tuple[str, ...] = ()  # by class number
    colors: Tuple[str, ...] = ()  # "#rrggbb", one a class
    ignored: Optional[int] = None  # the class that is neither taught nor evaluated; null: none
    empty: Optional[int] = None  # the class of free space; null: none
    raw: Tuple[int, ...] = ()  # the class of each raw label, from 0 on; 255: none
    voxels: Tuple[int, ...] = ()  # the class of each class of published dense labels, from 0 on; 255: none

    def __post_init__(self) -> None:
        check_section("data.classes", self)

    @property
    def known(self) -> Classes:
        """Return the classes as built-in label maps have them."""
        evaluated = (c for c in range(len(self.names)) if c not in (self.ignored, self.empty))
        empty = len(self.names) if self.empty is None else self.empty
        colors = tuple(_rgb(color) for color in self.colors) + (((255, 255, 255),) if self.empty is None else ())
        return Classes(self.names, tuple(evaluated), empty, colors)


def is_map_file(label_map: str) -> bool:
    """Tell whether ``data.label_map`` names a file."""
    return Path(label_map).suffix.lower() in SUFFIXES


def check_label_map(own: LabelMapConfig, where: str) -> None:
    """Raise ConfigError where the parts of a label map do not fit together; ``where`` begins the sentence."""
    count = len(own.names)
    if not 2 <= count <= _MOST:
        raise ConfigError(f"{where}: has {count} classes; expected 2 to {_MOST}")
    for name in own.names:
        if not name.strip() or len(name) > 80 or has_unseen(name):
            raise ConfigError(f"{where}: a class is called {short(name)}; expected 1 to 80 characters on one line")
        if own.names.count(name) > 1:
            raise ConfigError(f"{where}: two classes are called {short(name)}; expected each name once")
    if len(own.colors) != count or not all(map(_COLOR.fullmatch, own.colors)):
        raise ConfigError(f"{where}: colors are {short(own.colors)}; expected one '#rrggbb' for each class")
    for what, number in (("ignored", own.ignored), ("empty", own.empty)):
        if number is not None and not 0 <= number < count:
            raise ConfigError(f"{where}: {what} is class {number}; expected 0 to {count - 1}")
    if own.ignored is not None and own.ignored == own.empty:
        raise ConfigError(f"{where}: class {own.names[own.ignored]} is both ignored and empty; expected two classes")
    if not own.known.evaluated:
        raise ConfigError(f"{where}: no class is evaluated; expected one besides the ignored and the empty class")
    for what, table in (("raw", own.raw), ("voxels", own.voxels)):
        wrong = [number for number in table if number >= count and number != UNLABELLED]
        if wrong:
            raise ConfigError(f"{where}: {what} gives class {wrong[0]}; expected 0 to {count - 1}, or {UNLABELLED}")
    if own.ignored is not None and UNLABELLED in (*own.voxels, *own.raw):
        raise ConfigError(
            f"{where}: has labels without a class and the ignored class {own.names[own.ignored]}; list these labels "
            "under that class"
        )


def read_label_map(path: str, label_format: str) -> LabelMapConfig:
    """Read a label map of one's own for data of ``label_format``, which is ``data.format``.

    Raises ConfigError, in one sentence: a file that cannot be read, a key or column that is unknown, names, numbers
    or raw labels that occur twice, raw labels without a class, colours that are none.
    """
    where = f"data.label_map {path}"
    tree = _tree(Path(path), where)
    _only(tree, _KEYS, where)
    rows = tree.get("classes")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{where}: has no list 'classes' of {{name, color, raw}}; expected one entry for each class")
    for number, row in enumerate(rows):
        _only(row, _OF_A_CLASS, f"{where}: class {number}")
    names = tuple(str(row.get("name", "")) for row in rows)
    kitti = label_format == "semantickitti"
    if kitti and "ignore" in tree:
        raise ConfigError(
            f"{where}: has the key 'ignore', but SemanticKITTI's unknown voxels are {UNLABELLED}; list raw "
            "labels that have no class under unlabelled"
        )
    special = {key: _class_of(tree.get(key), names, f"{where}: {key}") for key in ("ignore", "empty")}
    unlabelled = _numbers(tree.get("unlabelled"), where, "unlabelled")
    rest = UNLABELLED if tree.get("rest") == "unlabelled" else _class_of(tree.get("rest"), names, f"{where}: rest")
    given = {number: _numbers(row.get("raw"), where, names[number]) for number, row in enumerate(rows)}
    by_name = any(isinstance(value, str) for row in rows for value in _listed(row.get("raw")) or ())
    needed = KITTI_RAW if kitti else range(len(RAW_NAMES)) if by_name else ()
    stored = {number: _numbers(row.get("voxels"), where, names[number]) for number, row in enumerate(rows)}
    colors = tuple(_color(row.get("color"), f"{where}: class {short(name)}") for row, name in zip(rows, names))
    raw = _table({**given, UNLABELLED: unlabelled}, needed, rest, f"{where}: raw label", kitti)
    voxels = _table(stored, (), None, f"{where}: voxel class", False)
    try:
        own = LabelMapConfig(names, colors, special["ignore"], special["empty"], raw, voxels)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err
    check_label_map(own, where)
    return own


def _tree(path: Path, where: str) -> Dict[str, Any]:
    """Return the content of a file as a dictionary. Raises ConfigError."""
    expected = "expected a label map, as docs/finetune.md shows"
    try:
        if path.is_file() and path.stat().st_size > _LONGEST:
            raise ConfigError(f"{where}: has {path.stat().st_size} bytes; {expected}, of {_LONGEST} at most")
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"{where}: cannot be read ({err.strerror}); {expected}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{where}: is no text in UTF-8; {expected}") from err
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _of_csv(text, where)
    try:
        tree = parse_json(text) if suffix == ".json" else parse_yaml(text)
    except TextError as err:
        raise ConfigError(f"{where}: is no {suffix[1:].upper()} ({err}); {expected}") from err
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: holds {short(tree)}; {expected}")
    return tree


def _of_csv(text: str, where: str) -> Dict[str, Any]:
    """Return the dictionary of a table: a row for each class; ``role`` is ignore, empty or nothing."""
    table = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = [name or "" for name in table.fieldnames or ()]
    odd = [name for name in columns if name not in _COLUMNS]
    if odd or "name" not in columns:
        raise ConfigError(f"{where}: has the columns {short(columns)}; expected some of {', '.join(_COLUMNS)}")
    tree: Dict[str, Any] = {"classes": []}
    for row in table:
        if None in row:
            raise ConfigError(f"{where}: line {table.line_num} has too many columns; expected {len(columns)}")
        cells = {name: (value or "").strip() for name, value in row.items()}
        role = cells.pop("role", "")
        if role not in ("", "ignore", "empty") or role in tree:
            raise ConfigError(
                f"{where}: line {table.line_num} has the role {short(role)}; expected ignore or empty, once"
            )
        if role:
            tree[role] = cells["name"]
        lists = {key: [_whole(word) for word in cells.pop(key, "").split()] for key in ("raw", "voxels")}
        tree["classes"].append({**cells, **lists})
    return tree


def _whole(word: str) -> Any:
    return int(word) if word.isdecimal() and len(word) < 10 else word


def _only(tree: Dict[Any, Any], known: Iterable[str], where: str) -> None:
    odd = [key for key in tree if key not in known]
    if odd:
        raise ConfigError(f"{where}: has the key {short(odd[0])}; expected {', '.join(known)}")


def _class_of(value: Any, names: Tuple[str, ...], where: str) -> Optional[int]:
    """Return the number of a class that is given by name or number; None for None."""
    if value is None:
        return None
    if value in names:
        return names.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    raise ConfigError(f"{where} is {short(value)}; expected one of the classes {short(', '.join(names))}")


def _listed(value: Any) -> Optional[List[Any]]:
    """Return a list of labels, also where one label stands alone; None for what is no list."""
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(v, (int, str)) and not isinstance(v, bool) for v in values) else None


def _numbers(value: Any, where: str, name: str) -> List[int]:
    """Return raw labels as numbers; those of nuScenes-lidarseg may be given by name."""
    values = _listed(value)
    numbers = [RAW_NAMES.index(v) if v in RAW_NAMES else v for v in values or ()]
    wrong = [v for v in numbers if not isinstance(v, int) or not 0 <= v <= _HIGHEST_RAW]
    if values is None or wrong:
        raise ConfigError(
            f"{where}: {name} lists {short(value if values is None else wrong[0])}; expected raw labels, 0 to "
            f"{_HIGHEST_RAW}, or names of nuScenes' categories"
        )
    return numbers


def _table(
    lists: Dict[int, List[int]], needed: Collection[int], rest: Optional[int], what: str, gaps: bool
) -> Tuple[int, ...]:
    """Return the class of each label from 0 on. Raises ConfigError for one that is listed twice or, unless ``rest``
    has a class for it, not at all; with ``gaps`` only the labels that are ``needed`` must be there."""
    table: Dict[int, int] = {}
    for number, labels in lists.items():
        for label in labels:
            if label in table:
                raise ConfigError(f"{what} {label} is listed twice; expected it under one class")
            table[label] = number
    if not table and rest is None:
        return ()
    if rest is not None and not gaps:
        return tuple(table.get(label, rest) for label in range(max([255, *table]) + 1))
    size = max([*table, *needed]) + 1
    for label in needed if gaps else range(size):
        if label not in table and rest is None:
            named = f" ({RAW_NAMES[label]})" if needed and not gaps and label < len(RAW_NAMES) else ""
            raise ConfigError(f"{what} {label}{named} has no class; list it under one, under unlabelled, or set rest")
        table.setdefault(label, UNLABELLED if rest is None else rest)
    return tuple(table.get(label, UNLABELLED) for label in range(size))


def _color(value: Any, where: str) -> str:
    """Return a colour as "#rrggbb". Raises ConfigError."""
    if isinstance(value, str) and _COLOR.fullmatch(value):
        return value.lower()
    whole = isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
    if not whole:
        raise ConfigError(
            f"{where} has the color {short(value)}; expected '#rrggbb', or red, green, blue from 0 to 255"
        )
    return "#{:02x}{:02x}{:02x}".format(*value)


def _rgb(color: str) -> Tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
