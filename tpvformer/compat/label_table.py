"""A check of the reference's YAML table from raw labels to classes. The table is built in here; another is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from tpvformer.errors import ConfigError
from tpvformer.labels import raw_to_class
from tpvformer.untrusted.text import parse_yaml

_RAW = range(32)  # the bytes of nuScenes-lidarseg


def check_label_table(path: str, label_map: str) -> None:
    """Raise ConfigError where the file at ``path`` maps raw labels differently than ``label_map`` does here.

    A missing file, and one without a table of all raw labels, are accepted.
    """
    file = Path(path)
    if not file.is_file():
        return
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:  # ValueError: TextError, or not UTF-8
        raise ConfigError(f"{path}: not YAML ({' '.join(str(err).split())}); expected the table of raw labels") from err
    wanted = raw_to_class(label_map)
    for table in _tables(content):
        for raw in _RAW:
            if table[raw] != wanted[raw]:
                raise ConfigError(
                    f"{path}: raw label {raw} becomes class {table[raw]}; expected {wanted[raw]}, because the table of "
                    f"{label_map} is built in (tpvformer/labels.py) and another one would not be used"
                )


def _tables(content: Any) -> List[Dict[int, int]]:
    """Return the mappings at a YAML document's top level that map all raw labels to integers."""
    parts = content.values() if isinstance(content, dict) else ()
    return [part for part in parts if isinstance(part, dict) and all(isinstance(part.get(raw), int) for raw in _RAW)]
