"""Define the section of the detection head, and the sizes that head and boxes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from tpvformer.config.ranges import check_section

# classes of each branch of the head, in nuScenes' order: car | truck, construction vehicle | bus, trailer | barrier |
# motorcycle, bicycle | pedestrian, traffic cone (CenterPoint, arXiv:2006.11275)
GROUP_SIZES: Tuple[int, ...] = (1, 2, 2, 1, 2, 2)
BOX_VALUES = 10  # of a box in the head's output; data/detection/targets.py names them


@dataclass(frozen=True)
class DetectionConfig:
    """Configure the head of 3-D boxes (model/detection.py). Its map has the grid's x and y range."""

    scale: int = 1  # cells of the map for each cell of plane hw, along either axis
    channels: int = 64  # of the map from which all groups of classes are read
    group_channels: int = 32  # of the layer that each group has of its own
    blocks: int = 2  # residual blocks at the planes' resolution
    min_score: float = 0.1  # boxes below it are not returned

    def __post_init__(self) -> None:
        check_section("model.detection", self)
