"""Reading the files in the work dir of a run for its report."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from tpvformer.untrusted.run_files import check_record, check_start, check_summary
from tpvformer.untrusted.schema import SchemaError
from tpvformer.untrusted.text import TextError, parse_json

Record = Dict[str, Any]


class Step(NamedTuple):
    """One row of timeline.csv, in seconds."""

    step: int
    waited: float
    computed: float


@dataclass(frozen=True)
class RunFiles:
    """The records of a run. Lists are in the order of steps; everything but ``train`` may be missing."""

    folder: str
    config: str  # config.yaml
    summary: Record  # summary.json; empty while a run is not finished
    starts: List[Record] = field(default_factory=list)  # of this training: command, versions, hardware
    train: List[Record] = field(default_factory=list)
    evals: List[Record] = field(default_factory=list)  # one an epoch
    raw: List[Record] = field(default_factory=list)  # of the last step's weights, in a run with an average of them
    nonfinite: List[Record] = field(default_factory=list)
    steps: List[Step] = field(default_factory=list)

    @property
    def last(self) -> Optional[Record]:
        """The newest evaluation."""
        return self.evals[-1] if self.evals else None


def read_run(work_dir: Path) -> RunFiles:
    """Read the records of the run in ``work_dir``.

    Records of a measurement (``--max-steps``) in the same folder are left out where there are others. Raises
    FileNotFoundError where there is no metrics.jsonl, ValueError where a file is not as a run writes it.
    """
    source = work_dir / "metrics.jsonl"
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: no run has written to {work_dir}")
    records = list(_records(source, check_record))
    starts = list(_records(work_dir / "starts.jsonl", check_start)) if (work_dir / "starts.jsonl").is_file() else []
    bounded = {start["run"] for start in starts if start.get("max_steps")}
    if all(r.get("run") in bounded for r in records):
        bounded = set()
    starts = [start for start in starts if start["run"] not in bounded]
    fresh = max((i for i, start in enumerate(starts) if not start["step"]), default=0)
    found: Dict[str, List[Record]] = {kind: [] for kind in ("train", "eval", "eval_raw", "nonfinite")}
    for record in records:
        if record.get("run") not in bounded and record.get("kind") in found:
            found[record["kind"]].append(record)
    train = {r["step"]: r for r in found["train"]}
    evals = {r["epoch"]: r for r in found["eval"]}  # a finished run that is started again evaluates the epoch again
    raw = {r["epoch"]: r for r in found["eval_raw"]}
    summary, config = work_dir / "summary.json", work_dir / "config.yaml"
    try:
        outcome = parse_json(summary.read_bytes()) if summary.is_file() else {}
        if outcome:
            check_summary(outcome)
        elif not isinstance(outcome, dict):
            raise ValueError("expected a dictionary")
    except (OSError, ValueError) as err:  # TextError, SchemaError
        raise ValueError(f"{summary} is not the summary of a run ({err}); remove it to report without it") from err
    return RunFiles(
        work_dir.resolve().name,
        _text(config) if config.is_file() else "",
        {} if outcome.get("run") in bounded else outcome,
        starts[fresh:],
        [train[step] for step in sorted(train)],
        [evals[epoch] for epoch in sorted(evals)],
        [raw[epoch] for epoch in sorted(raw)],
        found["nonfinite"],
        list(_steps(work_dir / "timeline.csv", bounded)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"{path} cannot be read ({err}); remove it to report without it") from err


def _records(path: Path, check: Callable[[Any], None]) -> Iterator[Record]:
    """Yield the checked records of a JSON lines file.

    An incomplete last line is skipped: a process that was killed leaves one. Raises ValueError with the line's number.
    """
    lines = _text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except TextError as err:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}, is not JSON ({err}); delete the line") from err
        try:
            check(record)
        except SchemaError as err:
            raise ValueError(f"{path}, line {number}: {err}; delete the line") from err
        yield record


def _steps(path: Path, left_out: Any) -> Iterator[Step]:
    """Yield each step of timeline.csv once, in order; of a repeated step, the last row."""
    if not path.is_file():
        return
    rows: Dict[int, Step] = {}
    for row in csv.DictReader(io.StringIO(_text(path).replace("\0", ""))):
        try:
            step = Step(int(row["step"]), float(row["waited_s"]), float(row["computed_s"]))
            fits = 0 <= step.step < 2**63 and all(0 <= value < 1e9 for value in step[1:])
        except (KeyError, TypeError, ValueError, OverflowError):  # an incomplete row, as a killed process leaves it
            continue
        if fits and row.get("run") not in left_out:
            rows[step.step] = step
    yield from (rows[number] for number in sorted(rows))
