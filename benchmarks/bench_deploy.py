"""Latency of a model and of its exports: ours with the device's kernels, ours with plain PyTorch, onnxruntime.

python benchmarks/bench_deploy.py --py-config demo --size 288x160 --cameras 6 --points 5000

Weights are random. Variants are interleaved; a number is the median wall time of one forward pass, voxels and points,
on the CPU with --threads threads. Needs ``pip install "tpvformer[onnx]"``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import torch

from tpvformer.compat import load_config
from tpvformer.config import override
from tpvformer.deploy import Rig, export_onnx
from tpvformer.model import TPVFormer
from tpvformer.options import positive, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--py-config", default="demo")
    parser.add_argument("--size", type=size, default=(288, 160))
    parser.add_argument("--cameras", type=positive, default=6)
    parser.add_argument("--points", type=positive, default=5000)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--threads", type=positive, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = override(load_config(args.py_config), ["train.precision=fp32"])
    torch.manual_seed(0)
    network = TPVFormer(config.model).eval()
    rng, (width, height) = np.random.RandomState(0), args.size
    given = {
        "images": rng.randint(0, 256, (args.cameras, height, width, 3)).astype(np.uint8),
        "lidar2img": ring(args.cameras, width, height),
        "points": rng.uniform(-30, 30, (args.points, 3)).astype(np.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        file = Path(folder) / "model.onnx"
        print(export_onnx(network, config, file, args.cameras, args.size).replace(folder + "/", ""))
        print(f"exported in {time.perf_counter() - began:.1f} s")
        runs = variants(network, config, file, given, args.threads)
    times: Dict[str, List[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - began))
    print(f"{config.name}, {args.cameras} images of {width}x{height}, {args.points} points, {args.threads} threads")
    for name, values in times.items():
        print(f"{name:<32} {statistics.median(values):8.1f} ms  (fastest {min(values):.1f})")


def variants(
    network: TPVFormer, config: object, file: Path, given: Dict[str, np.ndarray], threads: int
) -> Dict[str, Callable[[], object]]:
    import onnxruntime  # ty: ignore[import-not-found]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    rig, tensors = Rig(network, config), [torch.from_numpy(array) for array in given.values()]  # ty: ignore

    def ours(backend: str) -> Callable[[], object]:
        def run() -> object:
            os.environ.pop("TPVFORMER_OPS", None)
            if backend:
                os.environ["TPVFORMER_OPS"] = backend
            with torch.no_grad():
                return rig(*tensors)

        return run

    return {
        "PyTorch, kernels of the device": ours(""),
        "PyTorch, plain operations": ours("reference"),
        "onnxruntime": lambda: session.run(None, given),
    }


def ring(cameras: int, width: int, height: int) -> np.ndarray:
    """lidar2img (N,4,4) of level cameras that look evenly around, 80 degrees wide."""
    focal, made = 0.6 * width, []
    for i in range(cameras):
        c, s = np.cos(2 * np.pi * i / cameras), np.sin(2 * np.pi * i / cameras)
        turn = np.array([[c, -s, 0, 0], [0, 0, -1, 0], [s, c, 0, 0], [0, 0, 0, 1]])
        made.append(np.array([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ turn)
    return np.stack(made).astype(np.float32)


if __name__ == "__main__":
    main()
