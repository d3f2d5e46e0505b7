"""Draw the photometric distortion of one training sample; ``preprocess.py`` applies it on the device.

The draws and their order are the reference's, so one seed gives the same picture there and here: camera by camera
brightness, order of contrast, contrast, saturation, hue, contrast, channels; then one GridMask for all cameras.
"""

from __future__ import annotations

import numpy as np

DRAWS = 8
UNCHANGED = (0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 2.0)


def draw_photometric(rng: np.random.RandomState) -> np.ndarray:
    """Draw the distortion of one image, (8,) float32, in the order in which it is applied.

    Added brightness, contrast before, factor of saturation, degrees added to the hue, contrast after, and for each of
    the three channels its source channel. Parameters that are not drawn keep the value of ``UNCHANGED``.
    """
    draw = np.array(UNCHANGED, np.float32)
    if rng.randint(2):
        draw[0] = rng.uniform(-32, 32)
    contrast_first = rng.randint(2) == 1
    if contrast_first and rng.randint(2):
        draw[1] = rng.uniform(0.5, 1.5)
    if rng.randint(2):
        draw[2] = rng.uniform(0.5, 1.5)
    if rng.randint(2):
        draw[3] = rng.uniform(-18, 18)
    if not contrast_first and rng.randint(2):
        draw[4] = rng.uniform(0.5, 1.5)
    if rng.randint(2):
        draw[5:] = rng.permutation(3)
    return draw
