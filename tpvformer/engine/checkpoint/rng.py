"""The random states of a process: Python's, NumPy's, PyTorch's and its device's, as tensors."""

from __future__ import annotations

import random
from typing import Any, Dict

import numpy as np
import torch
from torch import Tensor

from tpvformer.engine.device.accelerator import device_random_state, set_device_random_state


def seed_all(seed: int) -> None:
    """Begin all of them anew. ``seed`` may be of any size."""
    torch.manual_seed(seed % 2**63)  # the device's too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # whoever draws from NumPy's own stream repeats as well


def random_state(device: torch.device) -> Dict[str, Tensor]:
    """All of them, each as a tensor (n) on the CPU whose length is the same in every process of a kind of device."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state()  # noqa: NPY002
    return {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*numpy[1].tolist(), numpy[2], numpy[3]], dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy[4]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "device": device_random_state(device),
    }


def restore_random_state(state: Dict[str, Tensor], device: torch.device) -> None:
    """Put the state of ``random_state`` in place. One of another kind of device leaves the device's own alone."""
    (has_value, value), (*words, position, has_gauss) = state["python_gauss"].tolist(), state["numpy"].tolist()
    version, *python = state["python"].tolist()
    random.setstate((version, tuple(python), value if has_value else None))
    numpy = ("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, float(state["numpy_gauss"]))
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    set_device_random_state(device, state["device"])
