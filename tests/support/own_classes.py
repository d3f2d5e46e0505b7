"""A label map of six classes over nuScenes-lidarseg's raw labels, with colours of its own."""

from __future__ import annotations

from pathlib import Path

import yaml

from tpvformer.labels import RAW_NAMES

SIX = {  # the beginnings of the raw names of each class, and its colour
    "other": ("noise", "#101010", ("animal", "static.other", "vehicle.ego", "movable_object")),
    "person": ("human", "#ff2010", ()),
    "two wheels": ("vehicle.bicycle", "#20ff10", ("vehicle.motorcycle", "static_object")),
    "vehicle": ("vehicle", "#1020ff", ()),
    "ground": ("flat", "#c0c020", ()),
    "high": ("static", "#20c0c0", ()),
}
SIX = {name: (color, (first, *more)) for name, (first, color, more) in SIX.items()}


def class_of(raw: str) -> str:
    """Return the class whose beginning of the raw name is the longest."""
    fits = [(len(start), name) for name, (_, starts) in SIX.items() for start in starts if raw.startswith(start)]
    return max(fits)[1]


def write_six(folder: Path, name: str = "six.yaml") -> str:
    """Write the map as a YAML file; return its path."""
    rows = [
        {"name": own, "color": color, "raw": [raw for raw in RAW_NAMES if class_of(raw) == own]}
        for own, (color, _) in SIX.items()
    ]
    path = folder / name
    path.write_text(yaml.safe_dump({"classes": rows, "ignore": "other"}, sort_keys=False))
    return str(path)
