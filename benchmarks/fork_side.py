"""One side of bench_fork.py: a model in mmcv 1.x's idiom, trained on random numbers as its parent asks.

    python -m tpvformer run --device cpu benchmarks/fork_side.py SETTINGS            tpvformer's operations
    python benchmarks/fork_side.py SETTINGS --compiled FILE                          mmcv's own, FILE its ``_ext``

Each line on stdin names a function below; its result is a line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import sys
import time
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, POINTS, CLASSES = 8, 8, 17
DCN = {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False}


def load_compiled(file: str) -> None:
    """Make the extension ``file`` mmcv's; a name that it lacks raises where it is called."""
    spec = importlib.util.spec_from_file_location("mmcv._ext", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def missing(name: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{file} has no {name}")

        return call

    vars(module)["__getattr__"] = missing
    sys.modules["mmcv._ext"] = module


class Reader(nn.Module):
    """Deformable attention of queries (B,Q,C) to maps (B,S,C), as projects on mmcv write it for a CPU and a card."""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.offsets, self.weights = (nn.Linear(dim, HEADS * levels * POINTS * n) for n in (2, 1))
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.normal_(self.offsets.weight, std=0.05)

    def forward(self, query: Tensor, maps: Tensor, places: Tensor, shapes: Tensor, starts: Tensor) -> Tensor:
        """Places (Q,2) as (x,y) in [0,1]; returns (B,Q,C)."""
        from mmcv.ops import multi_scale_deform_attn as attention

        b, q, _ = query.shape
        value = self.value(maps).view(b, -1, HEADS, query.shape[2] // HEADS)
        sizes = shapes.flip(1).view(1, 1, 1, self.levels, 1, 2)
        offsets = self.offsets(query).view(b, q, HEADS, self.levels, POINTS, 2) / sizes
        weights = self.weights(query).view(b, q, HEADS, -1).softmax(-1).view(b, q, HEADS, self.levels, POINTS)
        places = places.view(1, q, 1, 1, 1, 2) + offsets
        if value.is_cuda:
            read = attention.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)
        else:
            read = attention.multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
        return self.output(read)


class Fork(nn.Module):
    """mmdet's ResNet with DCNv2; layers of attention to its maps and among the queries of a plane; a class a query."""

    def __init__(self, depth: int, side: int, dim: int, layers: int) -> None:
        from mmdet.models import build_backbone

        super().__init__()
        norm = {"type": "BN", "requires_grad": False}
        self.backbone = build_backbone({
            "type": "ResNet", "depth": depth, "out_indices": (1, 2, 3), "frozen_stages": 1, "norm_cfg": norm,
            "norm_eval": True, "dcn": DCN, "stage_with_dcn": (False, False, True, True), "zero_init_residual": False,
        })  # fmt: skip
        self.narrow = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in (512, 1024, 2048))
        self.queries = nn.Parameter(torch.randn(side * side, dim) * 0.1)
        self.looks = nn.ModuleList(Reader(dim, 3) for _ in range(layers))
        self.talks = nn.ModuleList(Reader(dim, 1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers))
        self.head = nn.Linear(dim, CLASSES)
        line = (torch.arange(side) + 0.5) / side
        self.register_buffer("places", torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1))
        self.side = side
        for name, module in self.backbone.named_modules():
            if name.endswith("conv_offset"):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,h,w) of one sample -> logits (Q,classes)."""
        maps = [narrow(m) for narrow, m in zip(self.narrow, self.backbone(images))]
        shapes = torch.tensor([m.shape[2:] for m in maps])
        starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        plane, query = torch.tensor([[self.side, self.side]]), self.queries[None]
        for i, (look, talk) in enumerate(zip(self.looks, self.talks)):
            query = query + talk(query, query, self.places, plane, starts[:1])
            query = self.norms[2 * i](query)
            seen = look(query.expand(len(images), -1, -1), tokens, self.places, shapes, starts)
            query = self.norms[2 * i + 1](query + seen.mean(0, keepdim=True))
        return self.head(query[0])


class Side:
    """A model, its optimiser and its data, from the seed."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.model = Fork(args.depth, args.side, args.dim, args.layers).train()
        self.learnt = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.learnt.values(), lr=2e-4, weight_decay=0.01)
        generator = torch.Generator().manual_seed(1)
        width, height = args.size
        self.images = torch.randn(args.cameras, 3, height, width, generator=generator)
        self.labels = torch.randint(0, CLASSES, (args.side**2,), generator=generator)
        self.file, self.generator, self.first = args.save, generator, True
        self.convolved = torch.randn(args.cameras, 256, height // 16, width // 16, generator=generator)

    def step(self) -> Dict[str, float]:
        """One step of training; the gradients of the first go to the file."""
        clock = [time.process_time()]
        loss = F.cross_entropy(self.model(self.images), self.labels)
        clock.append(time.process_time())
        self.optimizer.zero_grad()
        loss.backward()
        clock.append(time.process_time())
        if self.first:
            torch.save({name: p.grad.clone() for name, p in self.learnt.items()}, f"{self.file}.step")
            self.first = False
        again = time.process_time()
        norm = nn.utils.clip_grad_norm_(self.learnt.values(), 35.0)
        self.optimizer.step()
        spent = {"forward": clock[1] - clock[0], "backward": clock[2] - clock[1], "update": time.process_time() - again}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {**spent, "step": sum(spent.values()), "loss": float(loss), "norm": float(norm), "peak_mib": peak}

    def convolution(self) -> Dict[str, float]:
        """Forward and backward of the first DCNv2 of stage 3 that has stride 1; both formats of memory to the file."""
        layer = next(m for _, m in self.model.backbone.layer3[1].named_modules() if hasattr(m, "conv_offset"))
        saved: Dict[str, List[Tensor]] = {}
        spent = {}
        for name, kind in (("first", torch.contiguous_format), ("last", torch.channels_last)):
            given = [t.detach().clone() for t in convolution_inputs(layer, self.convolved)]
            given[0] = given[0].contiguous(memory_format=kind)
            seconds, saved[name] = _timed(lambda *g: _convolve(layer, *g), given)
            spent.update({f"{name}_{part}": value for part, value in seconds.items()})
            saved["given"] = given
        torch.save(saved, f"{self.file}.convolution")
        return spent

    def attention(self) -> Dict[str, float]:
        """Forward and backward of attention to the maps, at the model's sizes."""
        from mmcv.ops import multi_scale_deform_attn as attention

        shapes = torch.tensor([[s // n for s in self.images.shape[2:]] for n in (8, 16, 32)])
        tokens, queries, generator = int(shapes.prod(1).sum()), len(self.labels), torch.Generator().manual_seed(2)
        shape = (len(self.images), queries, HEADS, 3, POINTS)
        given = [
            torch.randn(len(self.images), tokens, HEADS, self.model.head.in_features // HEADS, generator=generator),
            torch.rand(*shape, 2, generator=generator) * 1.2 - 0.1,
            torch.rand(shape, generator=generator),
        ]
        run = attention.multi_scale_deformable_attn_pytorch
        return _timed(lambda v, x, w: run(v, shapes, x, w), given)[0]


def convolution_inputs(layer: Any, x: Tensor) -> Tuple[Tensor, ...]:
    with torch.no_grad():
        first, second, mask = layer.conv_offset(x).chunk(3, dim=1)
        return x, torch.cat((first, second), dim=1), mask.sigmoid(), layer.weight


def _convolve(layer: Any, x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    from mmcv.ops import modulated_deform_conv2d

    return modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)


def _timed(run: Callable[..., Tensor], given: List[Tensor]) -> Tuple[Dict[str, float], List[Tensor]]:
    """Return the CPU seconds of forward and backward, and the output with the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    began = time.process_time()
    out = run(*leaves)
    middle = time.process_time()
    slope = torch.linspace(-1, 1, out.numel()).view(out.shape)
    again = time.process_time()
    grads = torch.autograd.grad(out, leaves, slope)
    spent = {"forward": middle - began, "backward": time.process_time() - again}
    return {**spent, "both": sum(spent.values())}, [out.detach(), *grads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", default="")
    parser.add_argument("--save", required=True)
    parser.add_argument("--size", type=int, nargs=2, required=True)
    for name in ("depth", "side", "dim", "layers", "cameras"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # mmcv and mmdet print
    if args.compiled:
        load_compiled(args.compiled)
    side = Side(args)
    for line in sys.stdin:
        print(json.dumps(getattr(side, line.strip())()), file=answers, flush=True)


if __name__ == "__main__":
    main()
