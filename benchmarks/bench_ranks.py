"""Measure training steps on 1, 2, 4 and 8 processes of this machine, with and without the all-reduce of gradients.

    python benchmarks/bench_ranks.py [--py-config FILE] [--size WxH] [--ranks 1 2 4 8] [--rounds 5] [--out FILE]
    python benchmarks/bench_ranks.py --bytes      parameters, optimiser memory and all-reduce bytes of config/*.py

All processes are started once, with one thread each. A round measures every number of processes, with and without the
all-reduce. With more processes than cores, the time of a step depends on how they share the cores; the cost of the
all-reduce is the difference to the same step without it, and shows in the CPU time of a sample.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from tpvformer.compat import load_config  # noqa: E402
from tpvformer.config import Config  # noqa: E402
from tpvformer.data.types import Batch  # noqa: E402
from tpvformer.engine.agent import run_agent  # noqa: E402
from tpvformer.engine.bench.inputs import random_batch  # noqa: E402
from tpvformer.engine.device.precompile import agree_on_threads  # noqa: E402
from tpvformer.engine.distributed import collectives as distributed  # noqa: E402
from tpvformer.engine.forward import predict  # noqa: E402
from tpvformer.engine.logging.environment import environment_info  # noqa: E402
from tpvformer.engine.loop import maybe_no_sync  # noqa: E402
from tpvformer.engine.losses import total_loss  # noqa: E402
from tpvformer.engine.optim import Stepper  # noqa: E402
from tpvformer.engine.train import build_model  # noqa: E402
from tpvformer.model import TPVFormer  # noqa: E402

CPU = torch.device("cpu")


class Team:
    """The first ``size`` processes, and this one's model and optimiser among them."""

    def __init__(self, size: int, model: TPVFormer, config: Config, batch: Batch) -> None:
        self.size, self.config, self.batch = size, config, batch
        self.group = dist.new_group(list(range(size)))  # all processes take part in making a group
        self.member = dist.get_rank() < size
        if self.member:
            self.model = copy.deepcopy(model)
            self.parallel = self.model
            if size > 1:
                self.parallel = DistributedDataParallel(self.model, process_group=self.group)
            self.stepper = Stepper(self.model, config.optim, CPU, config.train.precision)

    def steps(self, count: int, exchanged: bool) -> Tuple[float, float]:
        """Return the wall seconds of a step, and its CPU seconds over all processes of the team."""
        dist.barrier(self.group)
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.stepper.zero_grad()
            with maybe_no_sync(self.parallel, exchanged):
                prediction = predict(self.parallel, self.batch, self.config)
                loss = total_loss(prediction, self.batch, self.config.loss, self.config.data, self.config.model.grid)
                self.stepper.backward(loss)
            self.stepper.update()
        spent: List[Any] = [None] * self.size
        mine = (time.perf_counter() - wall, time.process_time() - processor)
        dist.all_gather_object(spent, mine, self.group)
        return max(w for w, _ in spent) / count, sum(p for _, p in spent) / count

    def all_reduce(self, numbers: int) -> float:
        """Return the seconds of an all-reduce alone, of as many numbers as the model has gradients."""
        tensor = torch.zeros(numbers)
        dist.barrier(self.group)
        began = time.perf_counter()
        dist.all_reduce(tensor, group=self.group)
        return time.perf_counter() - began


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def worker(args: argparse.Namespace) -> None:
    """Run one of the processes; process 0 writes the measurements to ``args.out``."""
    world = distributed.read_world()
    torch.set_num_threads(1)
    agree_on_threads()
    distributed.start(world, CPU)
    config = load_config(args.py_config)
    batch = random_batch(config, args.size, args.points).to(CPU)
    model = build_model(config, CPU).train()
    teams = [Team(size, model, config, batch) for size in args.ranks]
    kinds = {"alone": False, "exchanged": True}
    spent: Dict[Tuple[int, str], List[Tuple[float, float]]] = {(t.size, kind): [] for t in teams for kind in kinds}
    exchanges: Dict[int, List[float]] = {team.size: [] for team in teams}
    for turn in range(args.rounds + 1):  # the first is for warming up
        for team in teams:
            for kind, exchanged in kinds.items():
                if team.member:
                    seconds = team.steps(args.steps, exchanged)
                    if turn:
                        spent[team.size, kind].append(seconds)
            if team.member and turn:
                exchanges[team.size].append(team.all_reduce(trainable(model)))
            dist.barrier()
    if world.is_main:
        rows = [row(team, spent, exchanges[team.size]) for team in teams]
        head = {**environment_info(CPU, "python benchmarks/bench_ranks.py"), "load": os.getloadavg()}
        head["command"] = args.said
        result = {**head, "config": config.name, "parameters": trainable(model), "rounds": args.rounds, "ranks": rows}
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    distributed.stop()


def row(team: Team, spent: Dict[Tuple[int, str], List[Tuple[float, float]]], exchanges: List[float]) -> Dict[str, Any]:
    """Return the medians for one number of processes."""
    n, samples = team.size, team.size * team.config.data.batch_size

    def median(kind: str, which: int) -> float:
        return statistics.median(seconds[which] for seconds in spent[n, kind])

    step = median("exchanged", 0)
    return {
        "processes": n,
        "step_s": step,
        "step_without_exchange_s": median("alone", 0),
        "samples_per_s": samples / step,
        "cpu_s_per_sample": median("exchanged", 1) / samples,
        "cpu_s_per_sample_without_exchange": median("alone", 1) / samples,
        "all_reduce_alone_s": statistics.median(exchanges),
    }


def table(result: Dict[str, Any]) -> str:
    """Return the measurements as a table; efficiencies are relative to one process and to the available cores."""
    cores = result["cores"]
    first = result["ranks"][0]
    lines = [
        "| processes | step, s | without exchange, s | samples/s | CPU s a sample | by the clock | by CPU time |",
        "| --- " * 7 + "|",
    ]
    for r in result["ranks"]:
        possible = first["samples_per_s"] / first["processes"] * min(r["processes"], cores)
        by_clock = r["samples_per_s"] / possible
        by_cpu = first["cpu_s_per_sample"] / r["cpu_s_per_sample"]
        lines.append(
            f"| {r['processes']} | {r['step_s']:.3f} | {r['step_without_exchange_s']:.3f} | {r['samples_per_s']:.2f} "
            f"| {r['cpu_s_per_sample']:.3f} | {100 * by_clock:.0f} % | {100 * by_cpu:.0f} % |"
        )
    return "\n".join(lines)


def bytes_table(names: Sequence[str]) -> str:
    """Return a table of the configurations: trainable parameters, AdamW's state, bytes that a process sends a step."""
    lines = ["| | trained parameters | AdamW state, MB | sent a step, MB: 2 ranks | 8 | 64 | 512 |", "| --- " * 7 + "|"]
    for name in names:
        with torch.device("meta"):
            count = trainable(TPVFormer(load_config(str(ROOT / "config" / f"{name}.py")).model))
        sent = [4e-6 * count * 2 * (n - 1) / n for n in (2, 8, 64, 512)]
        numbers = " | ".join(f"{value:.1f}" for value in (8e-6 * count, *sent))
        lines.append(f"| `{name}` | {count:,} | {numbers} |")
    return "\n".join(lines)


def main(argv: Optional[List[str]] = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--py-config", default=str(ROOT / "config" / "demo.py"))
    parser.add_argument("--size", default="288x160", help="random images, WxH (default: %(default)s)")
    parser.add_argument("--points", type=int, default=2000, help="lidar points of a sample (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn (default: %(default)s)")
    parser.add_argument("--out", default="bench_ranks.json", help="JSON to write (default: %(default)s)")
    parser.add_argument("--bytes", action="store_true", help="compute, measure nothing")
    parser.add_argument("--said", default=" ".join(["python benchmarks/bench_ranks.py", *argv]), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.bytes:
        print(bytes_table(sorted(file.stem for file in (ROOT / "config").glob("*.py"))))
        return 0
    if "RANK" in os.environ:
        width, height = args.size.split("x")
        args.size = (int(width), int(height))
        worker(args)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    flags = ["--standalone", f"--nproc_per_node={max(args.ranks)}", str(Path(__file__).resolve())]
    code = run_agent([*flags, *argv, "--said", args.said])
    if code == 0:
        print(table(json.loads(Path(args.out).read_text())))
    return code


if __name__ == "__main__":
    sys.exit(main())
