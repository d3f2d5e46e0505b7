"""Estimate confidence intervals of scores by the bootstrap over scenes (Efron, Annals of Statistics 1979).

Frames of one scene are correlated, so whole scenes are drawn: as many as the set has, with replacement.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor

DRAWS = 1000
LEVEL = 0.95
SEED = 0  # fixed, so that every metric, model and run uses the same draws


def interval(per_scene: Tensor, score: Callable[[Tensor], Tensor]) -> Optional[Tuple[float, float]]:
    """Return the bounds of the central 95 % of ``score`` over resampled sets of scenes; None for fewer than two scenes.

    per_scene (S, ...) counts or sums on the CPU. ``score`` maps sums (draws, ...) float64 to (draws,). Draws with a NaN
    score are left out.
    """
    scenes = len(per_scene)
    if scenes < 2:
        return None
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(0, scenes, (DRAWS, scenes), generator=generator)
    times = torch.zeros(DRAWS, scenes, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    # exact where they are whole numbers
    sums = (times @ per_scene.double().flatten(1)).view(DRAWS, *per_scene.shape[1:])
    values = score(sums)
    values = values[~values.isnan()]
    if not len(values):
        return None
    low, high = values.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return low, high
