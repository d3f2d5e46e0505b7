"""Log a run: lines in a file and on stdout, one JSON object an event, a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Generator, List, Optional, Sequence, TextIO

from tpvformer.engine.logging.meters import Lap
from tpvformer.engine.logging.progress import Ending
from tpvformer.engine.logging.writers import Writers
from tpvformer.files import replacing
from tpvformer.untrusted.names import shown_lines

TIMELINE = "timeline.csv"
# kinds of records: scores of the weights that count, and of the last step's where those are an average
EVALUATIONS = ("eval", "eval_raw")
FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


class RunLog:
    """Write the log of one process. Only the main process writes.

    ``path`` is ``<work_dir>/<YYYYmmdd_HHMMSS>.log``, always a new file. ``metrics.jsonl`` and ``timeline.csv`` in the
    same folder are appended to; each of their lines names its run. ``timeline.csv`` holds for every step the time of
    waiting for data and of computing. With ``work_dir`` None the log is written to stdout only.
    """

    def __init__(self, work_dir: Optional[Path], is_main: bool) -> None:
        self.is_main = is_main
        self.path: Optional[Path] = None
        self._metrics: Optional[TextIO] = None
        self._timeline: Optional[TextIO] = None
        self._logger = logging.getLogger("tpvformer")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._handlers: List[logging.Handler] = []
        self._bar = Progress(None, None)
        self._writers: Optional[Writers] = None
        if not is_main:
            return
        self._handlers.append(_Screen(sys.stdout))
        if work_dir is not None:
            self.path = _new_file(work_dir)
            self._handlers.append(_LogFile(self.path, encoding="utf-8"))
            self._metrics = (work_dir / "metrics.jsonl").open("a", encoding="utf-8")
            self._timeline = (work_dir / TIMELINE).open("a", encoding="utf-8")
            if self._timeline.tell() == 0:
                self._timeline.write("run,epoch,step,began_s,waited_s,computed_s\n")
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter(FORMAT))
            self._logger.addHandler(handler)

    def line(self, text: str) -> None:
        """Log one line of text."""
        self._write(logging.INFO, text)

    def warn(self, text: str) -> None:
        """Log one line of text as a warning."""
        self._write(logging.WARNING, text)

    def _write(self, level: int, text: str) -> None:
        if self.is_main:
            self._bar.make_room()
            self._logger.log(level, "%s", shown_lines(text))  # file names may hold control characters of the terminal

    def record(self, kind: str, **values: Any) -> None:
        """Record one JSON object; numbers that are not finite are written as null."""
        if self._metrics is not None and self.path is not None:
            entry = {"kind": kind, "run": self.path.stem, **values}
            self._metrics.write(json.dumps(finite(entry), allow_nan=False) + "\n")
            with contextlib.suppress(OSError):  # as in _LogFile
                self._metrics.flush()
        if self._writers is not None:
            self._writers.record(kind, values)

    def attach(self, writers: Writers) -> None:
        """Send the numbers of later records to ``writers`` too; they are closed with this log."""
        self._writers = writers

    def cut(self, step: int, evaluated: bool) -> None:
        """Remove the records after ``step`` and, unless ``evaluated``, its evaluation, because the run repeats them.

        The file of a resumed run then equals that of an uninterrupted one.
        """
        if self._metrics is None:
            return
        path = Path(self._metrics.name)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _stands(line, step, evaluated)]
        if len(kept) < len(lines):
            self._metrics.close()
            with replacing(path) as partial:
                partial.write_text("".join(kept), encoding="utf-8")
            self._metrics = path.open("a", encoding="utf-8")

    def timeline(self, epoch: int, last_step: int, laps: Sequence[Lap]) -> None:
        """Write rows of ``timeline.csv``: the steps of an epoch up to ``last_step``, in seconds since the run's start.

        On an accelerator the host runs ahead of the device: computing time appears at the step where the host waits for
        it.
        """
        if self._timeline is None or self.path is None:
            return
        for step, lap in enumerate(laps, start=last_step - len(laps) + 1):
            times = f"{lap.began:.4f},{lap.waited:.4f},{lap.spent - lap.waited:.4f}"
            self._timeline.write(f"{self.path.stem},{epoch},{step},{times}\n")
        with contextlib.suppress(OSError):  # as in _LogFile
            self._timeline.flush()

    def train_step(self, epoch: int, i: int, n: int, values: Dict[str, Any]) -> None:
        """Log a printed iteration: ``loss``, ``mean_loss``, ``grad_norm``, ``lr``; ``time``, ``data_time`` in s.

        All ``values`` are recorded, those too that the line does not have: scripts read it.
        """
        self.line(
            f"[TRAIN] Epoch {epoch} Iter {i}/{n}: Loss: {values['loss']:.3f} ({values['mean_loss']:.3f}), "
            f"grad_norm: {values['grad_norm']:.1f}, lr: {values['lr']:.7f}, "
            f"time: {values['time']:.3f} ({values['data_time']:.3f})"
        )
        self.record("train", epoch=epoch, iter=i, **values)

    def close(self) -> None:
        """Close the files."""
        if self._writers is not None:
            self._writers.close()
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
        for file in (self._metrics, self._timeline):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    @contextmanager
    def progress(self, title: str, total: int, later: int = 0) -> Generator[Progress, None, None]:
        """Show the progress of ``total`` parts in the main process; ``later`` more parts follow until the end."""
        if not self.is_main:
            yield Progress(None, None)
            return
        ending = Ending(title, total, self.line, later, "the training, evaluations not counted,")
        with progress(title, total, ending) as bar:
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = Progress(None, None)


class _Screen(logging.StreamHandler):
    """Write to stdout; training and log file continue if nobody reads it (a pipe to ``head``, a closed terminal)."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error, because it cannot be shown."""


class _LogFile(logging.FileHandler):
    """Write to the log file. On a full disk lines stay buffered until the next one, and training continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error; failed checkpoints report a full disk."""


@contextmanager
def progress(title: str, total: int, ending: Optional[Ending] = None) -> Generator[Progress, None, None]:
    """Show a bar on stderr for ``total`` parts.

    If stderr is no terminal, ``ending`` prints the estimated end from time to time, by default on stderr.
    """
    if not sys.stderr.isatty():
        ending = ending or Ending(title, total, lambda line: print(line, file=sys.stderr, flush=True))
        yield Progress(None, None, ending)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # otherwise rich redirects stdout too, and wraps the log's lines at the width of the terminal
    with Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        yield Progress(bar, bar.add_task(title, total=total))


class Progress:
    """Advance a progress bar, or do nothing without one."""

    def __init__(self, bar: Any, task: Any, ending: Optional[Ending] = None) -> None:
        self._bar, self._task, self._ending = bar, task, ending

    def advance(self) -> None:
        """Count one finished part."""
        if self._bar is not None:
            self._bar.advance(self._task)
        if self._ending is not None:
            self._ending.advance()

    def make_room(self) -> None:
        """Clear the bar before a line is printed; it is drawn again below the line."""
        if self._bar is not None:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def finite(value: Any) -> Any:
    """Return the same structure with None in place of every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stands(line: str, step: int, evaluated: bool) -> bool:
    """Return whether a record belongs to a finished step; an incomplete line of a killed process does not."""
    try:
        record = json.loads(line)
        return bool(
            record["step"] < step or (record["step"] == step and (record["kind"] not in EVALUATIONS or evaluated))
        )
    except (ValueError, KeyError, TypeError):
        return False


def _new_file(work_dir: Path) -> Path:
    """Create ``<work_dir>/<now>.log``; if another run started in the same second, use the next second."""
    moment = time.time()
    while True:
        path = work_dir / time.strftime("%Y%m%d_%H%M%S.log", time.localtime(moment))
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            moment += 1
