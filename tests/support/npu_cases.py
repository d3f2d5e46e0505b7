"""The stand-ins for an NPU's packages (tests/ascend)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[1]


SITE = HERE / "ascend" / "site"


VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


needs_card = pytest.mark.skipif(VERSION < (2, 10), reason="PyTorch cannot be given a device by Python before 2.10")
