"""One training step of a configuration with the plain-PyTorch operations and with the kernels, in one interleaved run.

    python benchmarks/bench_step.py [--py-config config/demo.py] [--size 288x160] [--voxels 2000] [--repeats 7]

Prints the median process CPU time on one thread (robust on shared machines) of forward, backward and the optimiser's
step for both, their ratio, and the same as one line of JSON. Inputs are random; nothing is read from disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from typing import Dict, List

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch  # noqa: E402

from tpvformer.compat import load_config  # noqa: E402
from tpvformer.engine.device import image_dtype  # noqa: E402
from tpvformer.engine.optim import build_optimizer, clip_gradients  # noqa: E402
from tpvformer.model import TPVFormer  # noqa: E402

BACKENDS = ("reference", "numba")


def ring_of_cameras(height: int, width: int, cameras: int) -> torch.Tensor:
    """lidar2img (cameras,4,4) of level cameras all around."""
    rig = []
    for camera in range(cameras):
        yaw, focal = 2 * math.pi * camera / cameras, 0.8 * width
        intrinsics = torch.tensor([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        right, ahead = [math.cos(yaw), math.sin(yaw), 0, 0], [-math.sin(yaw), math.cos(yaw), 0, -0.5]
        rig.append(intrinsics @ torch.tensor([right, [0, 0, -1, -0.3], ahead, [0, 0, 0, 1]]))
    return torch.stack(rig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--py-config", default="config/demo.py")
    parser.add_argument("--size", default="288x160", help="image width x height")
    parser.add_argument("--voxels", type=int, default=2000, help="occupied voxels of the sample")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config(args.py_config)
    width, height = (int(n) for n in args.size.split("x"))
    grid, device = config.model.grid, torch.device("cpu")
    model = TPVFormer(config.model).train()
    model.image_autocast = image_dtype(device, config.train.precision)
    optimizer = build_optimizer(model, config.optim, device)
    images = torch.randn(1, config.model.num_cams, 3, height, width) * 60
    rig = ring_of_cameras(height, width, config.model.num_cams)[None]
    voxels = torch.stack([torch.randint(n, (1, args.voxels)) for n in grid.voxels], -1)

    def step() -> Dict[str, float]:
        marks = [time.process_time()]
        out = model(images, rig, voxels.float(), voxels=voxels)
        loss = out.voxel_logits.square().mean() + out.point_logits.square().mean()
        marks.append(time.process_time())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(time.process_time())
        clip_gradients(optimizer, config.optim.clip_norm)
        optimizer.step()
        marks.append(time.process_time())
        times = [1000 * (b - a) for a, b in zip(marks, marks[1:])]
        return {"forward": times[0], "backward": times[1], "optimiser": times[2], "step": sum(times)}

    runs: Dict[str, List[Dict[str, float]]] = {name: [] for name in BACKENDS}
    for repeat in range(args.repeats + 1):
        for name in BACKENDS:
            os.environ["TPVFORMER_OPS"] = name
            result = step()
            if repeat:  # the first compiles
                runs[name].append(result)
    parts = ("forward", "backward", "optimiser", "step")
    medians = {name: {p: statistics.median(r[p] for r in runs[name]) for p in parts} for name in BACKENDS}
    print(f"{'CPU ms, 1 thread':18s}" + "".join(f"{p:>12s}" for p in parts))
    for name in BACKENDS:
        print(f"{name:18s}" + "".join(f"{medians[name][p]:12.1f}" for p in parts))
    ratio = {p: medians["reference"][p] / medians["numba"][p] for p in parts}
    print(f"{'ratio':18s}" + "".join(f"{ratio[p]:12.2f}" for p in parts))
    print(json.dumps({"config": config.name, "torch": torch.__version__, "machine": platform.machine(), **medians}))


if __name__ == "__main__":
    main()
