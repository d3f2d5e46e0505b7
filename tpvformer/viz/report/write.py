"""Write the page of a run, and draw its worst frames. A training ends with both."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

from tpvformer.config import Config
from tpvformer.errors import ConfigError
from tpvformer.files import replacing

PAGE = "report.html"
FRAMES = "worst_frames"  # folder of the pictures, below the work dir
_WIDTH = 1600  # pixels; width of a picture


def after_training(work_dir: Path, device: str, pictures: bool = True) -> None:
    """Draw the worst frames and write the page, in process 0. A failure is printed and never fails the run.

    ``pictures``: False for a checkout's own model, which nothing here draws.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    steps = [(PAGE, lambda: print(f"a page of this run: {write_report(work_dir, work_dir / PAGE)}", flush=True))]
    if pictures:
        steps.insert(0, ("the pictures of the worst frames", lambda: draw_worst(work_dir, device)))
    for what, do in steps:
        try:
            do()
        except Exception as err:  # any error: the training has succeeded, and its files are intact
            text = " ".join(str(err).split()) or type(err).__name__
            again = f"tpvformer report --work-dir {work_dir} --pictures"
            print(f"tpvformer train: {what} could not be made ({text}); try again: {again}", file=sys.stderr)


def write_report(work_dir: Path, out: Path) -> Path:
    """Write the page of the run in ``work_dir`` from its files; return ``out``. Raises ConfigError."""
    from tpvformer.labels import NUSCENES
    from tpvformer.viz.report.page import page
    from tpvformer.viz.report.read import read_run

    try:
        run = read_run(work_dir)
        pictures = [_read(file) for file in _files(work_dir, run.last)]
        classes = _config(work_dir).data.label_classes if run.config else NUSCENES
        hint = f"tpvformer report --work-dir {work_dir} --pictures draws them."
        text = page(run, classes, pictures, hint)
    except (FileNotFoundError, ValueError) as err:
        raise ConfigError(str(err)) from err
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(out, text.encode("utf-8"))
    except OSError as err:
        raise ConfigError(f"out is {out}, which cannot be written ({err.strerror}); name another file") from err
    return out


def draw_worst(work_dir: Path, device: str) -> List[str]:
    """Draw the worst frames of the last evaluation with the newest weights, latest.pth; return a line about each.

    Raises ConfigError, DataError and CheckpointError.
    """
    from tpvformer.data.dataset import FrameDataset
    from tpvformer.engine.checkpoint.files import LATEST
    from tpvformer.predict.draw import draw_frames
    from tpvformer.viz.picture import jpeg_of
    from tpvformer.viz.report.read import read_run

    try:
        last = read_run(work_dir).last
    except (FileNotFoundError, ValueError) as err:
        raise ConfigError(str(err)) from err
    if last is None or not last.get("worst"):
        raise ConfigError(f"{work_dir / 'metrics.jsonl'} names no worst frames; they come with an evaluation")
    config = _config(work_dir)
    tokens = FrameDataset(config.data, config.model.grid, "val", config.train.seed).tokens
    places = [tokens.index(frame["token"]) if frame["token"] in tokens else None for frame in last["worst"]]
    lines = []
    with tempfile.TemporaryDirectory(dir=work_dir, prefix=".worst") as folder:
        wanted = {Path(folder) / f"{k}.png": place for k, place in enumerate(places) if place is not None}
        lines += list(draw_frames(config, work_dir / LATEST, wanted, device))
        for old in (work_dir / FRAMES).glob("*.jpg"):
            old.unlink()
        for k, target in enumerate(_files(work_dir, last)):
            file = Path(folder) / f"{k}.png"
            if file in wanted:
                target.parent.mkdir(exist_ok=True)
                _write(target, jpeg_of(file, _WIDTH))
    return [f"{work_dir / FRAMES}: {line.partition(': ')[2]}" for line in lines]


def _files(work_dir: Path, last: Optional[dict]) -> List[Path]:
    """Return the paths of the pictures of an evaluation's worst frames; they may not exist."""
    if last is None:
        return []
    return [work_dir / FRAMES / f"step_{last['step']}_{k + 1}.jpg" for k in range(len(last.get("worst", ())))]


def _config(work_dir: Path) -> Config:
    """Return the configuration of the run. Raises ConfigError."""
    from tpvformer.compat.pretrained import RUN_CONFIG, read_run_config

    return read_run_config(work_dir / RUN_CONFIG)


def _read(path: Path) -> Optional[bytes]:
    return path.read_bytes() if path.is_file() else None


def _write(path: Path, content: bytes) -> None:
    """Write a file, completely or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)
