"""Resolve ``train.precision`` on a device, and report the choice in one line."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, NamedTuple

import torch

from tpvformer.config import Config
from tpvformer.engine.device.accelerator import allow_tf32, fast_bf16, time_convolutions
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog

_COST = (  # a measurement on a processor with slow bf16
    "on 2 cores of an AMD EPYC with AVX2 alone a step of config/demo.py at 288x160 took 3689 ms in bf16, 587 in fp32"
)


class Precision(NamedTuple):
    """Hold the precision in use: its ``name`` ("fp32", "bf16", "fp16"), the configured ``setting``, the reason ``why``.

    ``warning`` names the cost of an explicit choice, if it is slow.
    """

    name: str
    setting: str
    why: str
    warning: str = ""

    def __str__(self) -> str:
        return f"precision {self.name} ({self.why})"

    def applied(self, config: Config) -> Config:
        """Return the configuration with the name in place of "auto"."""
        return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=self.name))

    def facts(self) -> Dict[str, str]:
        """Return the entries for the records of a run."""
        return {"precision": self.name, "precision_setting": self.setting, "precision_why": self.why}

    def otherwise(self, stored: Any, config: Config) -> str:
        """Return a warning if the checkpoint's precision ``stored`` differs from what "auto" is now; else empty.

        Files of older versions store no precision.
        """
        if config.train.precision != "auto" or stored in (None, self.name):
            return ""
        return f"was trained in {stored}, and goes on in {self.name} ({self.why}); train.precision={stored} keeps it"


def choose(setting: str, device: torch.device) -> Precision:
    """Resolve ``train.precision`` = ``setting`` on this device; an explicit choice is kept."""
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
    """Resolve the precision for all processes: "auto" is bf16 if it is fast for each. All processes must call it."""
    mine = choose(setting, device)
    fast = distributed.agree([mine.name == "bf16"])[0]
    if setting != "auto" or fast in (0, world.size):
        return mine
    return Precision("fp32", setting, f"auto: bf16 is fast for {fast} of {world.size} processes, all must use the same")


def prepare(config: Config, device: torch.device) -> List[str]:
    """Set the rounding of fp32 arithmetic in this process as ``train.tf32`` says; return a line about it, if any."""
    rounding = allow_tf32(device, config.train.tf32)
    return [rounding] if rounding else []


def begin(precision: Precision, config: Config, device: torch.device, log: RunLog) -> None:
    """Call ``prepare`` for a training, whose shapes hardly change, and log the chosen precision."""
    time_convolutions(device)
    for line in (str(precision), *prepare(config, device)):
        log.line(line)
    if precision.warning:
        log.warn(precision.warning)
