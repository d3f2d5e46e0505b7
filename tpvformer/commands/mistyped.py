"""Suggest an option of this package for an option name of other programs."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any, Dict, Iterable, Set, Tuple

from tpvformer.config import Config
from tpvformer.engine.device.names import ACCEPTED, KINDS

# other programs' name -> our option, or a setting for --set, with its value if that is fixed. The first one that the
# command has is suggested.
_WAYS: Dict[str, Tuple[str, ...]] = {}


def _called(names: str, *ways: str) -> None:
    _WAYS.update(dict.fromkeys(names.split(), ways))


_called("config cfg conf config-file cfg-file config-path cfg-path", "--py-config")
_called(
    "weights weight checkpoint ckpt model model-path model-dir load load-from pretrained init-from",
    "--ckpt-path",
    "train.load_from",
)
_called("output output-dir out-dir save-dir save-path log-dir logdir project work-dir", "--out", "--work-dir")
_called("cfg-options options opts opt override overrides", "--set")
_called("learning-rate base-lr lr0", "optim.lr")
_called("wd", "optim.weight_decay")
_called("warmup warmup-iters", "optim.warmup_steps")
_called("amp fp16 bf16 half mixed-precision autocast use-amp", "train.precision=bf16")
_called("dtype", "train.precision")
_called("batch bs samples-per-gpu train-batch-size", "data.batch_size")
_called("max-epochs max-epoch num-epochs n-epochs epoch", "--max-epochs", "train.epochs")
_called("num-workers workers-per-gpu", "--workers", "data.workers")
_called("grad-accum accumulation gradient-accumulation-steps accumulate-grad-batches", "train.accumulate")
_called("manual-seed random-seed", "--seed", "train.seed")
_called("gpus num-gpus ngpus n-gpus nproc nproc-per-node launcher world-size", "--processes", "--device")
_called("gpu gpu-id gpu-ids local-rank", "--device")
for _kind in KINDS:
    _called(f"{_kind} use-{_kind} no-{_kind}", "--device")
_called("data-root dataroot data-path data-dir dataset data", "--root", "data.root")
_called("input image images img source", "--rig")
_called("img-size imgsz image-size resolution", "--size")
_called("frame sample idx frame-idx", "--index")
_called("continue auto-resume checkpoint-path", "--resume-from")


# one option with a form as its value, where ``export`` has an option for each form
_FORM_OPTIONS = ("format", "type", "form", "include", "target")
_FORMS = {
    **dict.fromkeys(("onnx",), "--onnx"),
    **dict.fromkeys(("pt2", "torch", "torch.export", "torch-export", "exported-program"), "--pt2"),
    **dict.fromkeys(("aoti", "aotinductor"), "--aoti"),
    **dict.fromkeys(("pth", "safetensors", "reference", "weights"), "--out"),
}
_FORM_ORDER = tuple(dict.fromkeys(_FORMS.values()))


def instead(name: str, value: str, options: Set[str]) -> str:
    """Return a suggestion for the option ``--name`` with ``value`` (empty: none) of a command that has ``options``."""
    if name in _FORM_OPTIONS and options.issuperset(_FORMS.values()):
        form = _FORMS.get(value.lower().lstrip("."))
        return f"give {form} FILE" if form else f"give one of {', '.join(f'{o} FILE' for o in _FORM_ORDER)}"
    ways = _WAYS.get(name, ()) + _settings(name.replace("-", "_"))
    if "--set" not in options:
        ways = tuple(way for way in ways if way.startswith("--"))
    for way in ways:
        if way in options:
            if way == "--device":
                return f"give {way} NAME: {ACCEPTED}"
            number = way in ("--processes", "--workers", "--seed", "--max-epochs", "--index")
            return f"give {way} {'N' if number and not value.isdigit() else value}".rstrip()
        if not way.startswith("--"):
            setting, equals, fixed = way.partition("=")
            word = fixed if equals else value or "VALUE"
            more = " (auto, the default, takes it where it is fast)" if setting == "train.precision" else ""
            return f"give --set {setting}={word}{more}"
    near = difflib.get_close_matches(name, sorted(option[2:] for option in options), 1)
    return f"did you mean --{near[0]}?" if near else _listed(options)


def _settings(name: str) -> Tuple[str, ...]:
    """Return the configuration fields of this name, with their sections."""
    config = Config(name="any")
    sections = ("train", "data", "optim", "model", "loss")
    return tuple(f"{s}.{name}" for s in sections if _has(getattr(config, s), name))


def _has(section: Any, name: str) -> bool:
    return any(field.name == name for field in fields(section))


def _listed(options: Iterable[str]) -> str:
    known = sorted(set(options) - {"--help"})
    return f"expected {', '.join(known)}" if known else "it takes none"
