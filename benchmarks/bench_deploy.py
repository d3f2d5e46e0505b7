"""Measure the latency of a model (with the device's kernels and with plain PyTorch) and of its exports (torch.export,
AOTInductor, onnxruntime).

python benchmarks/bench_deploy.py --py-config demo --size 288x160 --cameras 6 --points 5000

Weights are random. Variants are interleaved. A number is the median CPU time of the process for one forward pass of
voxels and points with --threads threads; other programs affect it less than wall time. Needs
``pip install "tpvformer[onnx]"``; the row of AOTInductor needs a C++ compiler and is left out without one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch

from tpvformer.commands.options import positive, size
from tpvformer.compat import load_config
from tpvformer.config import Config, override
from tpvformer.engine.bench import report
from tpvformer.engine.logging.environment import environment_info
from tpvformer.errors import ConfigError
from tpvformer.export import export_aoti, export_onnx, export_program
from tpvformer.export.traced import Rig
from tpvformer.model import TPVFormer

FORMS = {"model.onnx": export_onnx, "model.pt2": export_program, "aoti.pt2": export_aoti}
PLAIN = "PyTorch, plain operations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--py-config", default="demo")
    parser.add_argument("--size", type=size, default=(288, 160))
    parser.add_argument("--cameras", type=positive, default=6)
    parser.add_argument("--points", type=positive, default=5000)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--out", type=Path, help="also write JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["NUMBA_NUM_THREADS"] = str(args.threads)  # before Numba is loaded, which sets PyTorch's threads too
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
        exported = export(network, config, Path(folder), args.cameras, args.size)
        runs = variants(network, config, Path(folder), given, args.threads)
        cpu, wall, answers = measure(runs, args.repeats)
    print(f"{config.name}, {args.cameras} images of {width}x{height}, {args.points} points, {args.threads} thread(s)")
    differences = {}
    for name in runs:
        differences[name] = max(float(np.abs(a - b).max()) for a, b in zip(answers[name], answers[PLAIN]))
        medians = [statistics.median(times[name]) for times in (cpu, wall)]
        said = f"{medians[0]:8.0f} ms of CPU, {medians[1]:8.0f} ms wall"
        print(f"{name:<32} {said}, differs from plain operations by {differences[name]:.1e}")
    if args.out:
        head = environment_info(torch.device("cpu"), "python benchmarks/bench_deploy.py")
        head["versions"].update({name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")})
        shape = {"config": config.name, "size": args.size, "cameras": args.cameras, "points": args.points}
        times = {"cpu_ms": cpu, "wall_ms": wall, "difference": differences}
        report.write({**head, **shape, "exported": exported, **times}, args.out)


def export(network: TPVFormer, config: Config, folder: Path, cameras: int, size: Tuple[int, int]) -> Dict[str, Any]:
    """Write every export; return the seconds (with the compilers' time) and the size of each."""
    done: Dict[str, Any] = {}
    for name, write in FORMS.items():
        began, used = time.perf_counter(), _with_children()
        try:
            print(write(network, config, folder / name, cameras, size).replace(f"{folder}/", ""))
        except ConfigError as err:
            print(f"{name} is left out: {err}")
            continue
        done[name] = {
            "cpu_s": _with_children() - used,
            "wall_s": time.perf_counter() - began,
            "mb": (folder / name).stat().st_size / 1e6,
        }
        print(f"{name}: {done[name]['cpu_s']:.0f} s of CPU, {done[name]['wall_s']:.0f} s wall")
    return done


def _with_children() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(runs: Dict[str, Callable[[], Any]], repeats: int) -> Tuple[Dict[str, List[float]], ...]:
    """Return CPU and wall milliseconds by variant, and each variant's output; the first round is not counted."""
    cpu: Dict[str, List[float]] = {name: [] for name in runs}
    wall: Dict[str, List[float]] = {name: [] for name in runs}
    answers: Dict[str, Any] = {}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            out = run()
            if repeat:
                cpu[name].append(1e3 * (time.process_time() - used))
                wall[name].append(1e3 * (time.perf_counter() - began))
            answers[name] = [np.asarray(each) for each in out]
    return cpu, wall, answers


def variants(
    network: TPVFormer, config: Config, folder: Path, given: Dict[str, np.ndarray], threads: int
) -> Dict[str, Callable[[], Any]]:
    import onnxruntime  # ty: ignore[import-not-found]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tensors = [torch.from_numpy(array) for array in given.values()]

    def ours(model: Callable[..., Any], backend: str = "") -> Callable[[], Any]:
        def run() -> Any:
            os.environ.pop("TPVFORMER_OPS", None)
            if backend:
                os.environ["TPVFORMER_OPS"] = backend
            with torch.no_grad():
                return model(*tensors)

        return run

    rig = Rig(network, config).eval()
    made = {
        "PyTorch, kernels of the device": ours(rig),
        PLAIN: ours(rig, "reference"),
        "program of torch.export": ours(torch.export.load(str(folder / "model.pt2")).module()),
    }
    if (folder / "aoti.pt2").exists():
        made["AOTInductor"] = ours(torch._inductor.aoti_load_package(str(folder / "aoti.pt2")))
    made["onnxruntime"] = lambda: session.run(None, given)
    return made


def ring(cameras: int, width: int, height: int) -> np.ndarray:
    """Return lidar2img (N,4,4) of level cameras at equal angles, with a field of view of 80 degrees."""
    focal, made = 0.6 * width, []
    for i in range(cameras):
        c, s = np.cos(2 * np.pi * i / cameras), np.sin(2 * np.pi * i / cameras)
        turn = np.array([[c, -s, 0, 0], [0, 0, -1, 0], [s, c, 0, 0], [0, 0, 0, 1]])
        made.append(np.array([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ turn)
    return np.stack(made).astype(np.float32)


if __name__ == "__main__":
    main()
