"""What a device is called on the command line and in Python; without PyTorch, for the help text."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from tpvformer.errors import ConfigError

KINDS = ("npu", "cuda", "cpu")  # in the order in which "auto" tries them
UNTESTED = ("mps", "xpu")  # served by plain PyTorch operations in fp32, when asked for by name
ACCEPTED = "auto, cpu, cuda, cuda:1 (one card by its number), npu, npu:0, mps or xpu"


class DeviceName(NamedTuple):
    """``kind`` is "auto" or one of KINDS and UNTESTED; ``index`` is None where no number was given."""

    kind: str
    index: Optional[int]

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def read_name(name: object) -> DeviceName:
    """A name as typed, or a ``torch.device``. Raises ConfigError for what is none."""
    found = re.fullmatch(r"([a-z]+)(?::([0-9]{1,4}))?", str(name))
    if found is None or found[1] not in ("auto", *KINDS, *UNTESTED) or (found[1] == "auto" and found[2]):
        raise ConfigError(f"device {str(name)!r} is unknown; expected {ACCEPTED}")
    return DeviceName(found[1], None if found[2] is None else int(found[2]))
