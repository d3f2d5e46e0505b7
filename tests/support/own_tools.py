"""A patched checkout with a model of its own, from tests/fork/checkout, and its commands with the tests' own mmcv."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Sequence

import programs
import stand_in
from engine_tools import ROOT, environment
from fork_tools import CHECKOUT, SITE
from needs import SITE as NPU

MODEL = "tpvformer10/former.py"
GRID = {"tpv_w": 10, "tpv_h": 12, "tpv_z": 4}
CONFIG = "config/own.py"


def make(folder: Path) -> Path:
    """The checkout: committed as published, then edited; with a configuration, data and weights."""
    folder.mkdir(parents=True)
    stand_in.make(folder)
    stand_in.git(folder, "apply", str(stand_in.PATCH))
    stand_in.furnish(folder)
    for name in ("tpvformer10", "builder", "forked"):
        shutil.copytree(CHECKOUT / name, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pyc"))
    write_config(folder)
    return folder


def section(**changes: Any) -> Dict[str, Any]:
    """The ``model`` section, with a key that this package does not know."""
    values: Dict[str, Any] = {
        "type": "EditedFormer",
        "use_grid_mask": True,
        "img_backbone": {"type": "Small"},
        "tpv_aggregator": {**GRID, "nbr_classes": 17},
        "pc_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
    }
    return {**values, **changes}


def write_config(folder: Path, name: str = CONFIG, model: Any = None, **changes: Any) -> Path:
    """A configuration of the checkout; its model section is written as Python."""
    values = stand_in.tree("tiny10")
    for unused in ("self_cross_layer", "self_layer"):
        values.pop(unused, None)
    values.update({f"{axis}_": size for axis, size in GRID.items()}, grid_size=[12, 10, 4], max_epochs=2, print_freq=1)
    values["dataset_params"]["version"] = "v1.0-mini"
    values.update(model=model or section(), load_from=None, an_option_of_theirs=3)
    return stand_in.write_config(folder / name, {**values, **changes})


def run(folder: Path, *command: str, status: int = 0, site: bool = True, **extra: str) -> programs.Done:
    """Run a command in the checkout, where ``python`` is this interpreter with the tests' mmcv; what came of it."""
    path = stand_in.link_python(folder.parent / "bin") + os.pathsep + os.environ["PATH"]
    pretended = [NPU] if "STANDIN_SDK" in extra else []
    packages = os.pathsep.join(str(place) for place in [*pretended, *([SITE] if site else []), ROOT])
    env = environment(PATH=path, PYTHONPATH=packages, **extra)
    done = programs.run(command, cwd=folder, env=env, seconds=600)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def train(
    folder: Path, work_dir: str, *flags: str, status: int = 0, config: str = CONFIG, **extra: Any
) -> programs.Done:
    """``python train.py`` on a processor, with the images as they are and sizes that a test can afford."""
    fixed: Sequence[str] = ("--device", "cpu", "--set", "data.photometric=false", "--set", "optim.warmup_steps=1")
    flags = ("--py-config", config, "--work-dir", work_dir, *fixed, "--deterministic", *flags)
    return run(folder, "python", "train.py", *flags, status=status, **extra)


def evaluate(folder: Path, weights: str, *flags: str, status: int = 0, **extra: Any) -> programs.Done:
    """``python eval.py``."""
    given = ("--py-config", CONFIG, "--ckpt-path", weights, "--device", "cpu", *flags)
    return run(folder, "python", "eval.py", *given, status=status, **extra)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
