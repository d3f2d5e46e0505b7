"""Convert tensors to arrays and images to the layout (height, width, 3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tpvformer.errors import DataError


def as_array(value: Any) -> Any:
    """Return the NumPy array of a tensor of any device, float32 where NumPy has no such type; anything else as it
    is."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4 else tensor).numpy()


def as_image(image: Any, name: str) -> Any:
    """Return an image in NumPy's layout, (height, width, 3) uint8, of a tensor or array that is (3, height, width),
    uint8 or of numbers from 0 to 1, as torchvision has them; anything else as it is. RGB stays RGB. Raises DataError
    for numbers that are no colours, such as those of a normalised image.
    """
    array = as_array(image)
    if not isinstance(array, np.ndarray) or array.ndim != 3 or not array.size:
        return array
    if array.dtype.kind == "f":
        low, high = float(np.min(array)), float(np.max(array))
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"image {name} holds {array.dtype} numbers from {low:.4g} to {high:.4g}; expected uint8, or numbers "
                "from 0 to 1: give the image as the camera took it, without normalisation"
            )
        array = np.rint(array * 255).astype(np.uint8)
    first, last = array.shape[0] in (1, 3), array.shape[2] in (1, 3, 4)
    return np.ascontiguousarray(array.transpose(1, 2, 0)) if first and not last else array
