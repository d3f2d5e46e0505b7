"""Names, numbers and colours of the classes, and the table from nuScenes-lidarseg's 32 raw classes to them.

Class 0 ("noise") is the ignore label of both tasks; 1 to 16 are evaluated; 17 ("empty") exists only under the label map
"nuscenes-noIgnore", where free space is a class of its own. Under "occ3d" class 0 is called "others" and some metrics
evaluate it, and 17 is called "free".
"""

from __future__ import annotations

from typing import Tuple

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

# (raw name, class): the position is the byte in a lidarseg file. The order is alphabetical, which is what the published
# label files hold; the numbering printed in the devkit's instructions differs between 25 and 30.
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

LABEL_MAPS: Tuple[str, ...] = ("nuscenes", "nuscenes-noIgnore", "occ3d")

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


def class_names(label_map: str) -> Tuple[str, ...]:
    """Names by class number: 17 for "nuscenes", 18 (the last is free space) for the other two maps."""
    if label_map not in LABEL_MAPS:
        raise ValueError(f"data.label_map is {label_map!r}; expected one of {', '.join(LABEL_MAPS)}")
    if label_map == "occ3d":
        return ("others", *CLASS_NAMES[1:], "free")
    return CLASS_NAMES + ("empty",) if label_map == "nuscenes-noIgnore" else CLASS_NAMES


def raw_to_class(label_map: str) -> Tuple[int, ...]:
    """Class by raw label: 32 entries for "nuscenes", 33 for "nuscenes-noIgnore" (raw 32 is empty space)."""
    return RAW_TO_CLASS[: 32 + len(class_names(label_map)) - len(CLASS_NAMES)]
