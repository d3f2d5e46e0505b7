"""The files that a run leaves in its work dir: what each of their values is, for whoever reads them again."""

from __future__ import annotations

from typing import Any, Dict

from tpvformer.untrusted.names import is_file_name, short
from tpvformer.untrusted.schema import (
    Schema,
    SchemaError,
    anything,
    fields,
    flag,
    list_of,
    map_of,
    nothing_or,
    number,
    text,
    whole,
)


def _file_name(value: Any, where: str) -> None:
    if not isinstance(value, str) or not is_file_name(value):
        raise SchemaError(f"{where} is {short(value)}, expected a text that can be part of a file's name")


_percent = number(-1.0, 101.0, none=True)
_time = number(0.0, 1e12, none=True)
_share = fields(
    {
        "value": _percent,
        "interval": nothing_or(list_of(number(-1.0, 101.0), 2, 2)),
        "rings": map_of(_percent),
        **{name: map_of(_percent) for name in ("iou", "ap", "flicker")},
    },
    needed=("value", "interval", "rings"),
)
_size = number(none=True)
_error = fields(
    {
        "value": _size,
        "interval": nothing_or(list_of(number(), 2, 2)),
        "rings": map_of(_size),
        "unit": text(100),
        **{name: map_of(_size) for name in ("ate", "ase", "aoe", "ave", "aae")},
    },
    needed=("value", "interval", "rings", "unit"),
)


def _metric(value: Any, where: str) -> None:
    (_error if isinstance(value, dict) and "unit" in value else _share)(value, where)


_scores = nothing_or(fields({"miou": _percent}))
_evaluation: Dict[str, Schema] = {
    "loss": number(none=True),
    "samples": whole(),
    "scenes": whole(none=True),
    "pts": _scores,
    "vox": _scores,
    "metrics": map_of(_metric),
    "leading": text(200),
    "confusion": nothing_or(
        fields(
            {"classes": list_of(text(200), 0, 256), "counts": list_of(list_of(whole(), 0, 256), 0, 256)},
            needed=("classes", "counts"),
        )
    ),
    "worst": list_of(fields({"token": text(500), "loss": number(none=True)}, needed=("token", "loss")), 0, 100),
}
_run = {"run": text(200, none=True), "step": whole()}
_TRAIN = fields(
    {
        **_run,
        **{name: number(none=True) for name in ("loss", "mean_loss", "grad_norm", "lr", "time", "data_time")},
        **{name: map_of(number(none=True)) for name in ("parts", "mean_parts")},
    },
    needed=("step",),
)
_EVAL = fields({**_run, **_evaluation, "epoch": whole()}, needed=("epoch", "step", "samples"))
_NONFINITE = fields({**_run, "reports": list_of(text(lines=True), 0, 10_000)})
_KINDS = {"train": _TRAIN, "eval": _EVAL, "eval_raw": _EVAL, "nonfinite": _NONFINITE}
_START = fields(
    {
        **_run,
        "run": text(200),
        "max_steps": whole(none=True),
        "world_size": whole(1),
        "command": text(none=True, lines=True),
        "date": text(200, none=True),
        "device": text(1000, none=True),
        "versions": map_of(anything),
        "settings": map_of(anything),
    },
    needed=("run", "step"),
)
_NAMES = ("device", "device_name", "torch", "precision", "leading_metric")
_TIMES = ("step_time_ms", "samples_per_s", "peak_memory_mib", "final_loss", "best_val_leading", "best_val_miou_pts")
_SUMMARY = fields(
    {
        "config": _file_name,
        "run": text(200, none=True),
        "seed": whole(-(2**63), 2**64),
        "duration_s": number(0.0, 1e12),
        "evaluation": nothing_or(fields(_evaluation)),
        **{name: text(1000, none=True) for name in _NAMES},
        **{name: number(none=True) for name in (*_TIMES, "best_val_miou_vox", "waiting_share")},
        **{name: whole(1) for name in ("world_size", "batch_size", "accumulate", "global_batch")},
        **{name: whole() for name in ("epochs", "global_iter", "skipped_steps", "bad_samples", "best_epoch")},
        "stopped_early": flag,
        **{name: whole(none=True) for name in ("steps", "measured_steps")},
    },
    needed=(
        "config", "run", "world_size", "batch_size", "global_batch", "device_name", "duration_s", "steps",
        "measured_steps", "samples_per_s", "step_time_ms", "final_loss", "evaluation", "best_val_miou_pts",
        "best_val_leading", "leading_metric",
    ),
)  # fmt: skip


def check_record(record: Any) -> None:
    """Check a line of metrics.jsonl. Raises SchemaError."""
    if not isinstance(record, dict):
        raise SchemaError(f"it is {short(record)}, expected a dictionary")
    kind = record.get("kind")
    text(100)(kind, "kind")
    fields({"run": text(200, none=True)})(record, "")
    if kind in _KINDS:
        _KINDS[kind](record, "")
        confusion = record.get("confusion") or {}
        rows = confusion.get("counts", ())
        if any(len(row) != len(rows) for row in rows) or len(confusion.get("classes", ())) != len(rows):
            raise SchemaError("confusion is no square of as many rows as classes")


def check_start(record: Any) -> None:
    """Check a line of starts.jsonl. Raises SchemaError."""
    _START(record, "")


def check_summary(record: Any) -> None:
    """Check summary.json. Raises SchemaError."""
    _SUMMARY(record, "")
