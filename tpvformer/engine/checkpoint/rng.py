"""Read and restore the random states of a process as tensors: Python, NumPy, PyTorch and the device."""

from __future__ import annotations

import random
from typing import Any, Dict

import numpy as np
import torch
from torch import Tensor

from tpvformer.engine.device.accelerator import device_random_state, set_device_random_state


def seed_all(seed: int) -> None:
    """Seed all generators. ``seed`` may be any integer."""
    torch.manual_seed(seed % 2**63)  # the device's too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # code that uses NumPy's global generator repeats as well


def random_state(device: torch.device) -> Dict[str, Tensor]:
    """Return all states as tensors (n) on the CPU; their lengths are equal in all processes of one kind of device."""
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
    """Restore a state of ``random_state``; the device's state is only restored on the same kind of device."""
    (has_value, value), (*words, position, has_gauss) = state["python_gauss"].tolist(), state["numpy"].tolist()
    version, *python = state["python"].tolist()
    random.setstate((version, tuple(python), value if has_value else None))
    numpy = ("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, float(state["numpy_gauss"]))
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    set_device_random_state(device, state["device"])
