"""Send a run's numbers to TensorBoard and Weights & Biases, which are optional packages."""

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

WANDB_ID = "wandb_id.txt"  # in the work dir; a resumed run continues under this id


class Writer(Protocol):
    """Define the interface of a backend that draws curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name, as measured after ``step`` optimiser steps."""

    def close(self) -> None:
        """Close the backend."""


class TensorBoard:
    """Write event files below ``folder``. Entries of an interrupted run after ``step`` are hidden; they come again."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name; see Writer."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """Write to a run at Weights & Biases, which reads its own settings (WANDB_MODE, WANDB_PROJECT and others).

    Its step counter cannot be set back. The step is therefore logged as a number and used as the axis of all others:
    values written twice after an interruption lie at the same place.
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
        """Write numbers by name; see Writer."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def check(names: Sequence[str]) -> None:
    """Raise ConfigError if the package of a configured writer is not installed."""
    for name in names:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.writers holds {name!r}, whose package is not installed; pip install {name}, or leave it out"
            )


class Writers:
    """Send records to the configured writers. A writer that fails later is dropped with a warning; training continues.

    ``step``: optimiser steps done at the start of the run. Raises ConfigError if a writer cannot be started.
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
            except Exception as err:  # any error of the package's settings
                self.close()
                hint = "; log in with `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else ""
                raise ConfigError(f"train.writers: {name} cannot be started ({_line(err)}){hint}") from err

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write the numbers of one record of metrics.jsonl."""
        numbers = numbers_of(kind, values)
        if numbers:
            self._each(lambda writer: writer.scalars(values["step"], numbers))

    def close(self) -> None:
        """Close all writers."""
        self._each(lambda writer: writer.close())
        self._open.clear()

    def _each(self, do: Callable[[Writer], None]) -> None:
        failed: List[str] = []
        for name, writer in self._open.items():
            try:
                do(writer)
            except Exception as err:  # a full disk, a lost server, ...: training continues
                failed.append(name)
                self._warn(f"{name} failed and is disabled for the rest of this run: {_line(err)}")
        for name in failed:
            del self._open[name]


def numbers_of(kind: str, values: Mapping[str, Any]) -> Dict[str, float]:
    """Return the numbers of a record to draw as curves, by names such as "train/loss".

    An evaluation gives the loss, each metric, and the IoU of each class under the primary metric (the AP, where boxes
    alone are trained). With an average of the weights (train.ema) those of the last step's are "eval_raw/...". The
    result is empty for records without a step or without curves.
    """
    if kind not in ("train", "eval", "eval_raw") or "step" not in values:
        return {}
    found: Dict[str, Any] = {f"{kind}/{name}": value for name, value in values.items() if name not in ("step", "iter")}
    for group, prefix in (("parts", "loss"), ("mean_parts", "mean_loss")):
        found.update({f"{kind}/{prefix}_{name}": value for name, value in values.get(group, {}).items()})
    for name, metric in values.get("metrics", {}).items():
        found[f"{kind}/{name}"] = metric["value"]
        if name == values["leading"]:
            share = "ap" if name == "nds" else "iou"
            of_classes = values["metrics"].get("map" if name == "nds" else name, {}).get(share, {})
            found.update({f"{kind}/{share}/{label}": value for label, value in of_classes.items()})
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _line(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__
