"""Count what one training step asks of a GPU, without one: kernel launches, bytes, FLOP, by section.

    python benchmarks/step_counts.py [--py-config config/tpv_lidarseg_dim64.py] [--precision bf16] [--size 1600x900]
                                     [--points 34720] [--operations 20] [--out FILE]

The step runs on tensors without data (FakeTensorMode) through the training's own code, with what it does on a CPU alone
switched off; our operations run their own launching code, of which only the Triton kernels are replaced. An older state
is counted by PYTHONPATH=OLD_TREE python benchmarks/step_counts.py. Rules:

- A launch is an operation that is not a view and allocates more than memory. A convolution with a bias is two, because
  cuDNN adds the bias in a pass of its own; its backward pass is one for each gradient. Operations on lists of tensors
  take what PyTorch's multi-tensor kernels hold. Anything else is one, also where a library launches several.
- Bytes: each operand once, read or written; twice what is changed in place or added to by atomics. Caches are ignored.
- FLOP: matrix products and convolutions (torch.utils.flop_counter), and the sampling of our kernels, for as many
  cameras a query as see one.

Eager code only: what a compiler fuses is not known here. It needs PyTorch 2.5 or later, and Triton.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--py-config", default="config/tpv_lidarseg_dim64.py")
PARSER.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
PARSER.add_argument("--size", default="1600x900", help="images as they lie on the disk, WxH (default: %(default)s)")
PARSER.add_argument("--points", type=int, default=34_720)
PARSER.add_argument("--columns", type=float, default=14.0, help="GB for kept columns (default: of a card with 140)")
PARSER.add_argument("--operations", type=int, default=0, help="also print that many operations, the heaviest first")
PARSER.add_argument("--out", type=Path, help="also write JSON")

SECTIONS = (
    "preprocess", "backbone", "neck", "encoder", "aggregator", "loss", "backward loss and aggregator",
    "backward encoder", "backward images", "optimizer",
)  # fmt: skip
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
FILLS = {"zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full",
         "zero_", "fill_", "arange", "_foreach_zero_"}  # fmt: skip
HELD = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # tensors in one multi-tensor launch, by lists of tensors
BLOCKS, CHUNK = 320, 65536  # in one multi-tensor launch, and elements of a block
OURS = {  # registered operation -> the function that launches its kernels
    "anchored_attention": "_attend",
    "anchored_attention_backward": "_attend_backward",
    "packed_attention": "_attend_packed",
    "packed_attention_backward": "_attend_packed_backward",
    "deform_conv": "_convolve",
    "deform_conv_backward": "_convolve_backward",
    "deform_conv_raw": "_convolve_raw",
    "deform_conv_raw_backward": "_convolve_raw_backward",
    "bias_relu": "_bias_relu",
}
TABLES = {"attention": "ATTENTION", "dcn": "CONVOLUTION", "elementwise": "ELEMENTWISE"}  # of ops/library.py


class Row:
    """Sums of a section or an operation."""

    def __init__(self) -> None:
        self.launches, self.bytes, self.flop = 0, 0, 0

    def add(self, launches: int, size: int, flop: int) -> None:
        self.launches += launches
        self.bytes += size
        self.flop += flop

    def as_dict(self) -> Dict[str, int]:
        return {"launches": self.launches, "bytes": self.bytes, "flop": self.flop}


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements; an element that expand repeats counts once."""
    count = math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride) if tensor.numel() else 0
    return count * tensor.element_size()


def tensors_of(values: Any) -> List[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Counts(TorchDispatchMode):
    """Count operations on the device, in the section named by ``section``."""

    def __init__(self, cameras_a_query: Dict[int, float]) -> None:
        super().__init__()
        self.section = SECTIONS[0]
        self.sections: Dict[str, Row] = defaultdict(Row)
        self.operations: Dict[Tuple[str, str], Row] = defaultdict(Row)
        self.synchronisations: Counter = Counter()
        self.cameras_a_query = cameras_a_query

    def clear(self) -> None:
        self.sections.clear()
        self.operations.clear()
        self.synchronisations.clear()

    def note(self, name: str, launches: int, size: int, flop: int = 0) -> None:
        for row in (self.sections[self.section], self.operations[self.section, name]):
            row.add(launches, size, flop)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "tpvformer":
            with self:
                return launching(func._schema.name.partition("::")[2])(*args, **kwargs)
        if func.namespace == "aten":  # composite operations arrive whole where no gradient is recorded
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        returns = func._schema.returns
        view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if name == "_local_scalar_dense":
            self.synchronisations[self.section] += 1
        read = {name: value for name, value in kwargs.items() if name != "out"}
        inputs, outputs = tensors_of((args, read)), tensors_of(out)
        if view or name in ALLOCATIONS or func.namespace != "aten" or not (inputs or outputs):
            return out
        size = sum(size_of(t) for t in outputs)
        if not outputs:  # lists changed in place return nothing
            size += sum(size_of(t) for t in inputs)
        if name not in FILLS:
            size += sum(size_of(t) for t in inputs[name == "copy_" :])
        launches = 1
        if name == "convolution" and args[2] is not None:
            launches, size = 2, size + 2 * size_of(out)
        elif name == "convolution_backward":
            launches = sum(args[-1])
        elif name.startswith(("_foreach", "_fused")):
            launches = multi_tensor(name, args)
        formula = flop_registry.get(func._overloadpacket)
        self.note(name, launches, size, formula(*args, **kwargs, out_val=out) if formula else 0)
        return out


def launching(operation: str) -> Callable[..., Any]:
    """Return the function that launches the kernels of a registered operation of ours."""
    for module in map(importlib.import_module, ("tpvformer.ops.library", "tpvformer.ops.fused")):  # newer states alone
        if hasattr(module, OURS[operation]):
            return getattr(module, OURS[operation])
    raise KeyError(operation)


def multi_tensor(name: str, args: Any) -> int:
    """Return the launches of an operation on lists of tensors."""
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and len(arg) and isinstance(arg[0], Tensor)]
    lists = lists[: 4 if name.startswith("_fused") else None]
    writes = 0 if name.endswith("_") else 1
    blocks = sum(-(-t.numel() // CHUNK) for t in lists[0])
    launches = max(-(-len(lists[0]) // HELD[min(5, len(lists) + writes)]), -(-blocks // BLOCKS))
    return launches + (1 if "norm" in name else 0)


class Kernel:
    """Stand for a Triton kernel: count its launches."""

    def __init__(self, counts: Counts, name: str, kernel: Any) -> None:
        self.counts, self.name, self.arguments = counts, name, kernel.arg_names

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            given = {**dict(zip(self.arguments, args)), **named}
            tensors = {name: t for name, t in given.items() if isinstance(t, Tensor)}
            twice = ("grad_value", "grad_x")  # atomics read and write
            size = sum(size_of(t) * (2 if name in twice else 1) for name, t in tensors.items())
            self.counts.note(self.name, 1, size, self.flop(given))

        return launch

    def flop(self, given: Dict[str, Any]) -> int:
        """Return multiplications and additions of channels: one pair a corner forward, two backward."""
        passes = 2 if "backward" in self.name else 1
        if "bits" in given:
            queries = given["bits"].numel()
            cameras = self.counts.cameras_a_query.get(queries, given["N"]) if given["N"] > 1 else 1
            samples = queries * cameras * given["H"] * given["L"] * given["P"]
            return int(samples * 4 * 2 * passes * given["D"])
        return int(given["samples"] * 4 * 2 * passes * given["C"]) if "samples" in given else 0


@contextlib.contextmanager
def pretended_gpu(counts: Counts) -> Iterator[None]:
    """Make tensors of the CPU take the GPU's ways: Triton kernels, here replaced, and no code of the CPU's own."""
    from tpvformer import ops
    from tpvformer.data.images import preprocess
    from tpvformer.model import dropout
    from tpvformer.ops import backends, library

    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for title in ("attention", "dcn", "elementwise"):
            if importlib.util.find_spec(f"tpvformer.ops.triton_{title}") is not None:  # older states lack one
                module = importlib.import_module(f"tpvformer.ops.triton_{title}")
                for name, kernel in list(vars(module).items()):
                    if hasattr(kernel, "arg_names"):
                        patch(module, name, Kernel(counts, f"{title}: {name.strip('_')}", kernel))
                table = getattr(library, TABLES[title])
                stack.enter_context(mock.patch.dict(table, {"cpu": module}))
        stack.enter_context(mock.patch.dict(os.environ, {ops.VARIABLE: ""}))
        patch(backends, "BACKENDS", {"triton": "cpu"})
        patch(backends, "_problems", {"triton": None})
        patch(preprocess, "pixels_opencv", preprocess.pixels_tensor)
        patch(ops, "in_blocks", lambda *_: False)
        patch(dropout.Dropout, "forward", _fused_dropout)
        for module_name in ("torch.nn.utils.clip_grad", "torch.utils._foreach_utils"):
            module = importlib.import_module(module_name)
            patch(module, "_has_foreach_support", lambda *_: True)
        yield


def _fused_dropout(layer: Any, x: Tensor) -> Tensor:
    """Return what ``nn.functional.dropout`` does on a GPU: one kernel."""
    return torch.native_dropout(x, layer.p, True)[0] if layer.training and layer.p else x


@contextlib.contextmanager
def without_data(model: Any) -> Iterator[FakeTensorMode]:
    """Replace parameters and buffers by tensors without data, and stay in their mode."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model._apply(mode.from_tensor)
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def follow(model: Any, counts: Counts) -> None:
    """Set the section as the modules run, forward and backward."""

    def enter(module: Any, name: str, backward: str) -> None:
        def before(*_: Any) -> None:
            counts.section = name

        def after(_: Any, __: Any, out: Any) -> None:
            first = tree_leaves(out)[0]

            def begin(grad: Tensor) -> Tensor:
                counts.section = backward
                return grad

            if first.requires_grad:
                first.register_hook(begin)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    enter(model.backbone, "backbone", "backward images")
    enter(model.neck, "neck", "backward images")
    enter(model.encoder, "encoder", "backward encoder")
    enter(model.aggregator, "aggregator", "backward loss and aggregator")


def cameras_a_query(model: Any, batch: Any) -> Dict[int, float]:
    """Return the mean number of cameras that see a query, by the number of queries of a launch."""
    height, width = batch.images.shape[2:4]
    grid2img = batch.grid2img if hasattr(batch, "grid2img") else batch.lidar2img  # older commits have the latter
    seen = [p.query_visible.sum().item() for p in model.encoder.project(grid2img, (height, width))]
    sizes = [model.encoder.cfg.grid.plane_sizes[i] * len(batch.tokens) for i in range(len(seen))]
    found: Dict[int, float] = {}
    for size in set(sizes):
        of = [s for s, n in zip(seen, sizes) if n == size]
        found[size] = sum(of) / len(of) / size
    for first in range(len(sizes)):  # several planes in one launch
        for last in range(first + 2, len(sizes) + 1):
            found[sum(sizes[first:last])] = sum(seen[first:last]) / sum(sizes[first:last])
    return found


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the counts of the second step; the first fills caches and makes the optimiser's state."""
    from tpvformer.compat import load_config
    from tpvformer.engine.bench.inputs import random_batch
    from tpvformer.engine.forward import predict
    from tpvformer.engine.losses import total_loss
    from tpvformer.engine.optim import Stepper
    from tpvformer.engine.train import build_model

    config = load_config(args.py_config)
    train = dataclasses.replace(config.train, precision="fp32", recompute="none")
    config = dataclasses.replace(config, train=train)
    width, height = (int(n) for n in args.size.split("x"))
    batch = random_batch(config, (width, height), args.points)
    model = build_model(config, torch.device("cpu")).train()
    counts = Counts(cameras_a_query(model, batch))
    model.backbone.column_budget = int(args.columns * 1e9)  # older states lack it
    model.image_autocast = torch.bfloat16 if args.precision == "bf16" else None
    follow(model, counts)
    with pretended_gpu(counts), without_data(model) as mode:
        stepper = Stepper(model, config.optim, torch.device("cpu"))
        tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        empty = {name: mode.from_tensor(t) for name, t in tensors.items() if isinstance(t, torch.Tensor)}
        moved = dataclasses.replace(batch, **empty)
        for _ in range(2):
            counts.clear()
            counts.section = "preprocess"
            with counts:
                (
                    stepper.zero_grad if hasattr(stepper, "zero_grad") else stepper.clear
                )()  # older commits have the latter
                prediction = predict(model, moved, config)
                counts.section = "loss"
                loss = total_loss(prediction, moved, config.loss, config.data)
                counts.section = "backward loss and aggregator"
                stepper.backward(loss)
                counts.section = "optimizer"
                stepper.update()
    total = Row()
    for row in counts.sections.values():
        total.add(row.launches, row.bytes, row.flop)
    operations = sorted(counts.operations.items(), key=lambda item: -item[1].bytes)
    return {
        "config": config.name,
        "precision": args.precision,
        "images": list(batch.images.shape),
        "mode": "eager",
        "sections": {name: counts.sections[name].as_dict() for name in SECTIONS},
        "total": total.as_dict(),
        "synchronisations": dict(counts.synchronisations),
        "operations": [{"section": s, "name": n, **row.as_dict()} for (s, n), row in operations],
    }


def table(result: Dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of sections."""
    yield f"{result['config']}, {result['precision']}, images {result['images']}, {result['mode']}"
    yield f"{'section':30s} {'launches':>9s} {'GB':>8s} {'TFLOP':>8s}"
    for name, row in [*result["sections"].items(), ("total", result["total"])]:
        yield f"{name:30s} {row['launches']:9d} {row['bytes'] / 1e9:8.2f} {row['flop'] / 1e12:8.3f}"
    if result["synchronisations"]:
        yield f"waits for the device: {result['synchronisations']}"


def main(arguments: Optional[List[str]] = None) -> int:
    args = PARSER.parse_args(arguments)
    result = measure(args)
    print("\n".join(table(result)))
    for row in result["operations"][: args.operations]:
        print(f"{row['section']:30s} {row['name']:40s} {row['launches']:6d} {row['bytes'] / 1e9:8.2f} GB")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
