"""Define the section of the augmentations that change the geometry of training samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from tpvformer.config.ranges import check_section
from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import short


@dataclass(frozen=True)
class AugmentConfig:
    """Configure how training samples are changed in space, and their images in the plane (docs/data.md).

    All of it is off by default. Evaluation draws none. The scene turns, grows and is mirrored about the middle of the
    grid's x and y range and z = 0.
    """

    rotation: float = 0.0  # degrees about z, drawn from -rotation to rotation
    scale: Tuple[float, ...] = (1.0, 1.0)  # the least and the greatest factor of lengths
    flip_x: bool = False  # half of the samples: x is mirrored, in the axes of model.grid.frame
    flip_y: bool = False  # half of the samples: y is mirrored
    image_resize: Tuple[float, ...] = (1.0, 1.0)  # the least and the greatest factor of each image, then cut or filled
    image_flip: bool = False  # half of the images, each by itself, are mirrored left to right

    def __post_init__(self) -> None:
        check_section("data.augment", self)
        for name in ("scale", "image_resize"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(
                    f"data.augment.{name} is {short(getattr(self, name))}; expected the least factor first"
                )

    @property
    def in_space(self) -> bool:
        """Whether scenes are changed."""
        return bool(self.rotation) or tuple(self.scale) != (1, 1) or self.flip_x or self.flip_y

    @property
    def of_images(self) -> bool:
        """Whether images are placed anew."""
        return tuple(self.image_resize) != (1, 1) or self.image_flip
