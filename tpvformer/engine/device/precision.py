"""``train.precision``: what "auto" comes to on a device, and one line that says so."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, NamedTuple

import torch

from tpvformer.config import Config
from tpvformer.engine.device.accelerator import allow_tf32, fast_bf16
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog

_COST = (  # what was measured where bf16 is slow
    "on 2 cores of an AMD EPYC with AVX2 alone a step of config/demo.py at 288x160 took 3689 ms in bf16, 587 in fp32"
)


class Precision(NamedTuple):
    """``name`` is "fp32", "bf16" or "fp16", ``setting`` the configured one; ``why`` it was chosen; ``warning`` what an
    explicit choice costs, if it does."""

    name: str
    setting: str
    why: str
    warning: str = ""

    def __str__(self) -> str:
        return f"precision {self.name} ({self.why})"

    def applied(self, config: Config) -> Config:
        """The configuration with the name in place of "auto"."""
        return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=self.name))

    def facts(self) -> Dict[str, str]:
        """What records of a run hold."""
        return {"precision": self.name, "precision_setting": self.setting, "precision_why": self.why}

    def otherwise(self, stored: Any, config: Config) -> str:
        """What to say of a checkpoint of a run that was in the precision ``stored``, where "auto" comes to another one
        now; else empty. Older files hold none."""
        if config.train.precision != "auto" or stored in (None, self.name):
            return ""
        return f"was trained in {stored}, and goes on in {self.name} ({self.why}); train.precision={stored} keeps it"


def choose(setting: str, device: torch.device) -> Precision:
    """What ``train.precision`` = ``setting`` means on this device; an explicit choice is kept."""
    if setting == "auto":
        fast, why = fast_bf16(device)
        return Precision("bf16" if fast else "fp32", setting, f"auto: {why}")
    warning = ""
    if setting == "bf16" and device.type == "cpu":
        fast, why = fast_bf16(device)
        if not fast:
            warning = f"train.precision=bf16 is slow here ({why}): {_COST}; train.precision=auto takes fp32 here"
    return Precision(setting, setting, f"train.precision={setting}", warning)


def choose_together(setting: str, device: torch.device, world: World) -> Precision:
    """The same for all processes of a run: "auto" is bf16 where it is fast for each of them. All must call it."""
    mine = choose(setting, device)
    fast = distributed.agree([mine.name == "bf16"])[0]
    if setting != "auto" or fast in (0, world.size):
        return mine
    return Precision("fp32", setting, f"auto: bf16 is fast for {fast} of {world.size} processes, all must use the same")


def prepare(config: Config, device: torch.device) -> List[str]:
    """Let fp32 arithmetic of this whole process round as ``train.tf32`` says; what there is to say of that, if any."""
    rounding = allow_tf32(device, config.train.tf32)
    return [rounding] if rounding else []


def begin(precision: Precision, config: Config, device: torch.device, log: RunLog) -> None:
    """``prepare``, and say in the log what was chosen."""
    for line in (str(precision), *prepare(config, device)):
        log.line(line)
    if precision.warning:
        log.warn(precision.warning)
