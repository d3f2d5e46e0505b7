"""What the scripts beside this file share. They run in an interpreter that has mmcv, mmdet and mmseg."""

from __future__ import annotations

import importlib.machinery
import json
import logging
import sys
import tempfile
import types
from typing import Any, Callable, Dict, List

import torch
from torch import Tensor, nn


class Absent(types.ModuleType):
    """mmcv's compiled module, not there: every name can be looked up, and says what it is when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"mmcv was installed without its compiled operation {name}")

        return missing


sys.modules["mmcv._ext"] = Absent("mmcv._ext")
# mmcv's optimizer constructor asks for it, by pkgutil.find_loader
sys.modules["mmcv._ext"].__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", importlib.machinery.BuiltinImporter)
DCN = {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False}


def main(checks: Dict[str, Callable[..., Any]]) -> None:
    """``script.py NAME ARGUMENTS``: the check's result as JSON, in the last line of the output."""
    torch.set_num_threads(1)
    result = checks[sys.argv[1]](*sys.argv[2:])
    print()
    print(json.dumps(result))


def outcome(run: Callable[[], Any]) -> str:
    """The kind and the text of the error that ``run`` ends with, "fine" without one."""
    try:
        run()
    except Exception as err:
        return f"{type(err).__name__}: {err}"
    return "fine"


def quiet(name: str) -> logging.Logger:
    """A logger that keeps what it is given to itself."""
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    return logger


class Student(nn.Module):
    """A backbone of mmdet that learns the mean colour of noise; the mmcv way of training, with ``train_step``."""

    def __init__(self, **backbone: Any) -> None:
        super().__init__()
        from mmdet.models import build_backbone

        torch.manual_seed(0)
        self.backbone = build_backbone({"type": "ResNet", **backbone})
        self.head = nn.Linear(self.backbone.feat_dim, 3)

    def forward(self, img: Tensor) -> Tensor:
        return self.head(self.backbone(img)[-1].mean((2, 3)))

    def train_step(self, data_batch: Dict[str, Any], optimizer: Any = None, **kwargs: Any) -> Dict[str, Any]:
        img = data_batch["img"]
        loss = (self(img) - img.mean((2, 3))).abs().mean()
        return {"loss": loss, "log_vars": {"loss": loss.item()}, "num_samples": len(img)}

    val_step = train_step


def batches(count: int, size: int = 2, seed: int = 1) -> List[Dict[str, Tensor]]:
    """Pictures of random brightness, (size,3,32,32) each."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.rand(size, 3, 32, 32, generator=generator) for _ in range(count)]
    return [{"img": picture * torch.rand(size, 3, 1, 1, generator=generator)} for picture in noise]


def train(model: Any, data: List[Dict[str, Any]], hook: Any, lr: float = 0.01, epochs: int = 1) -> Dict[str, Any]:
    """mmcv's EpochBasedRunner over ``data``; the losses and the norms that were logged, and its ``meta``."""
    from mmcv.runner import EpochBasedRunner, Hook

    seen: Dict[str, Any] = {"loss": [], "grad_norm": []}

    class Watch(Hook):
        def after_train_iter(self, runner: Any) -> None:
            for name in ("loss", "grad_norm"):
                seen[name] += runner.log_buffer.val_history.get(name, [])[-1:]

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    with tempfile.TemporaryDirectory() as folder:
        runner = EpochBasedRunner(
            model, optimizer=optimizer, work_dir=folder, logger=quiet("lane"), max_epochs=epochs, meta={}
        )
        runner.register_training_hooks({"policy": "fixed"}, optimizer_config=hook)
        runner.register_hook(Watch(), priority="VERY_LOW")
        runner.run([data], [("train", 1)])
    return {**seen, "meta": sorted(runner.meta)}
