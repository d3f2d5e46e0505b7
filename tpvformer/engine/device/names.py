"""Parse device names of the command line and Python, without PyTorch, so that the help text is fast."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from tpvformer.errors import ConfigError

KINDS = ("npu", "cuda", "cpu")  # in the order in which "auto" tries them
UNTESTED = ("mps", "xpu")  # run on plain PyTorch operations in fp32, if named explicitly
ACCEPTED = "auto, cpu, cuda, cuda:1 (one card by its number), npu, npu:0, mps or xpu"


class DeviceName(NamedTuple):
    """Hold a parsed device name: ``kind`` is "auto" or in KINDS or UNTESTED; ``index`` is None without a number."""

    kind: str
    index: Optional[int]

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def read_name(name: object) -> DeviceName:
    """Parse a typed name or a ``torch.device``. Raises ConfigError for an unknown name."""
    found = re.fullmatch(r"([a-z]+)(?::([0-9]{1,4}))?", str(name))
    if found is None or found[1] not in ("auto", *KINDS, *UNTESTED) or (found[1] == "auto" and found[2]):
        raise ConfigError(f"device {str(name)!r} is unknown; expected {ACCEPTED}")
    return DeviceName(found[1], None if found[2] is None else int(found[2]))
