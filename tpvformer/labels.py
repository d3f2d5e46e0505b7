"""Names, numbers and colours of the classes, and the tables from raw labels (nuScenes-lidarseg, SemanticKITTI) to them.

nuScenes: class 0 ("noise") is the ignore label of both tasks; 1 to 16 are evaluated; 17 ("empty") exists only under the
label map "nuscenes-noIgnore", where free space is a class of its own. Under "occ3d" class 0 is called "others" and some
metrics evaluate it, and 17 is called "free".

Under "surroundocc" class 0 is free space, as in models of SurroundOcc's own code and of GaussRender.

SemanticKITTI, scene completion: class 0 is free space, 1 to 19 are evaluated.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Tuple

CLASS_NAMES: Tuple[str, ...] = (
    "noise",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)

IGNORED = 0
EMPTY = 17
EVALUATED: Tuple[int, ...] = tuple(range(1, 17))
SMALL: Tuple[int, ...] = (2, 7, 8)  # bicycle, pedestrian, traffic cone: thin, and the hardest to predict
STATIC: Tuple[int, ...] = (1, 8, 11, 12, 13, 14, 15, 16)  # barrier, cone, flat, manmade, vegetation: they cannot move

# (raw name, class): the index is the byte in a lidarseg file. The order is alphabetical, as in the published label
# files; the numbering printed in the devkit's instructions differs between 25 and 30.
_RAW = (
    ("noise", 0),
    ("animal", 0),
    ("human.pedestrian.adult", 7),
    ("human.pedestrian.child", 7),
    ("human.pedestrian.construction_worker", 7),
    ("human.pedestrian.personal_mobility", 0),
    ("human.pedestrian.police_officer", 7),
    ("human.pedestrian.stroller", 0),
    ("human.pedestrian.wheelchair", 0),
    ("movable_object.barrier", 1),
    ("movable_object.debris", 0),
    ("movable_object.pushable_pullable", 0),
    ("movable_object.trafficcone", 8),
    ("static_object.bicycle_rack", 0),
    ("vehicle.bicycle", 2),
    ("vehicle.bus.bendy", 3),
    ("vehicle.bus.rigid", 3),
    ("vehicle.car", 4),
    ("vehicle.construction", 5),
    ("vehicle.emergency.ambulance", 0),
    ("vehicle.emergency.police", 0),
    ("vehicle.motorcycle", 6),
    ("vehicle.trailer", 9),
    ("vehicle.truck", 10),
    ("flat.driveable_surface", 11),
    ("flat.other", 12),
    ("flat.sidewalk", 13),
    ("flat.terrain", 14),
    ("static.manmade", 15),
    ("static.other", 0),
    ("static.vegetation", 16),
    ("vehicle.ego", 0),
)

RAW_NAMES: Tuple[str, ...] = tuple(name for name, _ in _RAW)
RAW_TO_CLASS: Tuple[int, ...] = tuple(number for _, number in _RAW) + (EMPTY,)  # raw 32, "empty", only in noIgnore

# RGB. 1 to 16 are the colours of the published pictures; grey and white stand for what is not evaluated.
COLORS: Tuple[Tuple[int, int, int], ...] = (
    (110, 110, 110),
    (255, 120, 50),
    (255, 192, 203),
    (255, 255, 0),
    (0, 150, 245),
    (0, 255, 255),
    (255, 127, 0),
    (255, 0, 0),
    (255, 240, 150),
    (135, 60, 0),
    (160, 32, 240),
    (255, 0, 255),
    (139, 137, 137),
    (75, 0, 75),
    (150, 240, 80),
    (230, 230, 250),
    (0, 175, 0),
    (255, 255, 255),
)


# SemanticKITTI: name, colour (RGB, as published), and the raw labels of a class; those above 250 are moving things.
_KITTI: Tuple[Tuple[str, Tuple[int, int, int], Tuple[int, ...]], ...] = (
    ("empty", (255, 255, 255), (0,)),
    ("car", (100, 150, 245), (10, 252)),
    ("bicycle", (100, 230, 245), (11,)),
    ("motorcycle", (30, 60, 150), (15,)),
    ("truck", (80, 30, 180), (18, 258)),
    ("other-vehicle", (0, 0, 255), (13, 16, 20, 256, 257, 259)),
    ("person", (255, 30, 30), (30, 254)),
    ("bicyclist", (255, 40, 200), (31, 253)),
    ("motorcyclist", (150, 30, 90), (32, 255)),
    ("road", (255, 0, 255), (40, 60)),
    ("parking", (255, 150, 255), (44,)),
    ("sidewalk", (75, 0, 75), (48,)),
    ("other-ground", (175, 0, 75), (49,)),
    ("building", (255, 200, 0), (50,)),
    ("fence", (255, 120, 50), (51,)),
    ("vegetation", (0, 175, 0), (70,)),
    ("trunk", (135, 60, 0), (71,)),
    ("terrain", (150, 240, 80), (72,)),
    ("pole", (255, 240, 150), (80,)),
    ("traffic-sign", (255, 0, 0), (81,)),
)
KITTI_UNKNOWN = 255  # occupied, but without a class: outlier, other-structure, other-object
KITTI_RAW: Dict[int, int] = {raw: number for number, (_, _, raws) in enumerate(_KITTI) for raw in raws}
KITTI_RAW.update({1: KITTI_UNKNOWN, 52: KITTI_UNKNOWN, 99: KITTI_UNKNOWN})


class Classes(NamedTuple):
    """The classes of one label map."""

    names: Tuple[str, ...]  # by number
    evaluated: Tuple[int, ...]
    empty: int  # the number of free space; not an index of ``names`` where the map has no such class
    colors: Tuple[Tuple[int, int, int], ...]  # RGB by number, with a colour for ``empty``

    @property
    def ignored(self) -> Tuple[int, ...]:
        """Return the classes that are neither evaluated nor free space."""
        return tuple(c for c in range(len(self.names)) if c not in self.evaluated and c != self.empty)


NUSCENES = Classes(CLASS_NAMES, EVALUATED, EMPTY, COLORS)

LABEL_MAPS: Dict[str, Classes] = {
    "nuscenes": NUSCENES,
    "nuscenes-noIgnore": NUSCENES._replace(names=(*CLASS_NAMES, "empty")),
    "occ3d": NUSCENES._replace(names=("others", *CLASS_NAMES[1:], "free")),
    "surroundocc": Classes(("empty", *CLASS_NAMES[1:]), EVALUATED, 0, ((255, 255, 255), *COLORS[1:17])),
    "semantickitti": Classes(tuple(k[0] for k in _KITTI), tuple(range(1, 20)), 0, tuple(k[1] for k in _KITTI)),
}


def classes_of(label_map: str) -> Classes:
    """Return the classes of a label map. Raises ValueError for an unknown map."""
    if label_map not in LABEL_MAPS:
        raise ValueError(f"data.label_map is {label_map!r}; expected one of {', '.join(LABEL_MAPS)}")
    return LABEL_MAPS[label_map]


def class_names(label_map: str) -> Tuple[str, ...]:
    """Return the names by class number: 17 for "nuscenes", 18 (the last is free space) for "nuscenes-noIgnore" and
    "occ3d", 17 for "surroundocc" and 20 for "semantickitti" (the first is free space)."""
    return classes_of(label_map).names


def raw_to_class(label_map: str) -> Tuple[int, ...]:
    """Return the class of each raw lidarseg label: 33 for "nuscenes-noIgnore" and "occ3d" (raw 32 is free), else 32.

    Under "surroundocc" noise has no class, 255.
    """
    if label_map == "surroundocc":
        return tuple(number or 255 for number in RAW_TO_CLASS[:32])
    return RAW_TO_CLASS if len(class_names(label_map)) == len(CLASS_NAMES) + 1 else RAW_TO_CLASS[:32]
