"""Where a run's numbers also go while it lasts: TensorBoard, Weights & Biases. Both are packages of their own."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Protocol, Sequence

from tpvformer.config import Config
from tpvformer.errors import ConfigError

WANDB_ID = "wandb_id.txt"  # in the work dir: under this name a resumed run goes on over there


class Writer(Protocol):
    """One place that draws curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, as they are after ``step`` optimiser steps."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorBoard:
    """Event files below ``folder``. What an interrupted run wrote there after ``step`` is hidden: it comes again."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Writer."""
        self._writer.close()


class WandB:
    """A run at Weights & Biases. WANDB_MODE, WANDB_PROJECT and their like are its own settings, and are left to it.

    Its steps cannot be taken back, so the step is one of the numbers and the axis of all others: what is written twice
    after an interruption lies at the same place.
    """

    def __init__(self, work_dir: Path, step: int, config: Config) -> None:
        wandb: Any = importlib.import_module("wandb")
        file = work_dir / WANDB_ID
        known = file.read_text(encoding="utf-8").strip() if step and file.is_file() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tpvformer"),
            name=work_dir.resolve().name,
            dir=str(work_dir),
            config=dataclasses.asdict(config),
            id=known,
            resume="allow" if known else None,
        )
        file.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """See Writer."""
        self._run.finish()


def check(names: Sequence[str]) -> None:
    """Raises ConfigError where a writer is asked for whose package is not installed."""
    for name in names:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.writers holds {name!r}, whose package is not installed; pip install {name}, or leave it away"
            )


class Writers:
    """Those that a run was asked for. One that fails later is left alone with a warning: training does not end for it.

    ``step``: optimiser steps done, after which the run goes on. Raises ConfigError where one cannot be started.
    """

    def __init__(self, config: Config, work_dir: Path, step: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        start: Dict[str, Callable[[], Writer]] = {
            "tensorboard": lambda: TensorBoard(work_dir / "tensorboard", step),
            "wandb": lambda: WandB(work_dir, step, config),
        }
        self._open: Dict[str, Writer] = {}
        for name in config.train.writers:
            try:
                self._open[name] = start[name]()
            except Exception as err:  # whatever a package of others finds wrong with its settings
                self.close()
                hint = "; log in with `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else ""
                raise ConfigError(f"train.writers: {name} cannot be started ({_line(err)}){hint}") from err

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """The numbers of one record of metrics.jsonl."""
        numbers = numbers_of(kind, values)
        if numbers:
            self._each(lambda writer: writer.scalars(values["step"], numbers))

    def close(self) -> None:
        """Close all of them."""
        self._each(lambda writer: writer.close())
        self._open.clear()

    def _each(self, do: Callable[[Writer], None]) -> None:
        failed: List[str] = []
        for name, writer in self._open.items():
            try:
                do(writer)
            except Exception as err:  # a full disk, a server that is gone, ...: theirs, not the training's
                failed.append(name)
                self._warn(f"{name} failed and gets nothing more from this run: {_line(err)}")
        for name in failed:
            del self._open[name]


def numbers_of(kind: str, values: Mapping[str, Any]) -> Dict[str, float]:
    """What of a record is worth a curve, as "train/loss": of an evaluation the loss, each metric, and the IoU of each
    class under the leading one. Empty for records without a step or without curves."""
    if kind not in ("train", "eval") or "step" not in values:
        return {}
    found: Dict[str, Any] = {f"{kind}/{name}": value for name, value in values.items() if name not in ("step", "iter")}
    for name, metric in values.get("metrics", {}).items():
        found[f"eval/{name}"] = metric["value"]
        if name == values["leading"]:
            found.update({f"eval/iou/{label}": value for label, value in metric["iou"].items()})
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _line(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__
