"""Training processes that die at chosen moments, forked from one that has imported everything: a life costs no start.

Run as a program it reads one JSON object a line (see ``Lives.run``) and answers each with how the processes ended.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from programs import Program

TESTS = Path(__file__).parents[1]
PUTS = 1000  # pieces of a checkpoint, of 4,855, that count as one event of its writing
LIMIT = 240  # seconds of one life
Moment = Tuple[int, str, str, int]  # rank, signal, kind of event ("step", "save", "score"), which event of that kind


class Lives:
    """The program, from the outside."""

    def __init__(self) -> None:
        env = dict(os.environ, PYTHONPATH=str(TESTS.parent), TPVFORMER_OPS="reference", OMP_NUM_THREADS="1")
        self._process = Program([sys.executable, __file__], stdin=PIPE, stdout=PIPE, env=env)

    def run(self, config: Any, work_dir: Path, size: int = 1, moment: Optional[Moment] = None) -> List[int]:
        """Train ``config`` in ``size`` processes; one of them gets a signal at ``moment``. How each ended: as
        ``subprocess`` says it; where one is killed the others are too. Everything printed is in ``work_dir.txt``; a
        life of more than ``LIMIT`` seconds is aborted, and its stacks are there too."""
        work_dir.mkdir(exist_ok=True)
        asked = {"config": dataclasses.asdict(config), "work_dir": str(work_dir), "size": size, "moment": moment}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        answer = b""
        while not answer.endswith(b"\n"):
            ready = select.select([self._process.stdout], [], [], LIMIT + 60)[0]
            more = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                self.close()
                raise AssertionError(f"no answer: {self._process.said()}\n{output(work_dir)}")
            answer += more
        return json.loads(answer)

    def close(self) -> None:
        self._process.__exit__()


def records(work_dir: Path) -> List[Dict[str, Any]]:
    """What was noted of a run, without what differs from run to run."""
    lines = (json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("run", "time", "data_time")} for line in lines]


def output(work_dir: Path) -> str:
    return work_dir.with_suffix(".txt").read_text()


def kills(work_dir: Path) -> List[str]:
    """Before which function each signal came, in order: "step backward", "save fsync"."""
    return work_dir.with_suffix(".kills").read_text().splitlines()


def samples(work_dir: Path, size: int) -> Dict[str, List[str]]:
    """The samples of each step, "<epoch>.<iteration>", over all ranks, sorted."""
    steps: Dict[str, List[str]] = {}
    for rank in range(size):
        for line in (work_dir / f"samples.{rank}.jsonl").read_text().splitlines():
            step, tokens = json.loads(line)
            steps[step] = sorted(steps.get(step, []) + tokens)
    return steps


def main() -> None:
    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        if number == 0:
            _import_all(asked["config"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(asked["size"]):
            child = os.fork()
            if child == 0:
                _live(asked, rank, port)
            children.append(child)
        print(json.dumps(_wait(children)), flush=True)


def _import_all(tree: Dict[str, Any]) -> None:
    """Whatever is imported when it is first used. No backward pass: no process could be forked any more that does."""
    import torch
    from engine_tools import CPU, val_loader

    from tpvformer.config import from_dict
    from tpvformer.engine import train as run
    from tpvformer.engine.forward import predict
    from tpvformer.engine.losses import total_loss
    from tpvformer.engine.optim import Stepper

    torch.set_num_threads(1)
    config = from_dict(tree)
    model = run.build_model(config, CPU).train()
    stepper = Stepper(model, config.optim, CPU)
    for batch in val_loader(config):
        total_loss(predict(model, batch, config), batch, config.loss, config.data)
        break
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepper.update()


def _wait(children: Sequence[int]) -> List[int]:
    codes: Dict[int, int] = {}

    def abort(*_: Any) -> None:
        """Each that still runs writes its stack and ends."""
        for child in set(children) - set(codes):
            os.kill(child, signal.SIGABRT)

    signal.signal(signal.SIGALRM, abort)
    signal.alarm(LIMIT)
    while len(codes) < len(children):
        child, status = os.waitpid(-1, 0)
        codes[child] = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if codes[child]:
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGKILL)
    signal.alarm(0)
    return [codes[child] for child in children]


def _live(asked: Dict[str, Any], rank: int, port: int) -> None:
    """One process, which never returns."""
    code = 70
    try:
        work_dir = Path(asked["work_dir"])
        text = os.open(work_dir.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(text, number)
        os.close(0)
        faulthandler.enable()
        if asked["size"] > 1:
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": asked["size"], "LOCAL_WORLD_SIZE": asked["size"]}
            env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            os.environ.update({name: str(value) for name, value in env.items()})
        from tpvformer import cli
        from tpvformer.config import from_dict
        from tpvformer.engine import train as run

        _watch(asked["moment"], rank, work_dir)

        def train() -> int:
            run.train(from_dict(asked["config"]), work_dir, "cpu")
            return 0

        code = cli.in_one_line("lives", train)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(moment: Optional[Moment], rank: int, work_dir: Path) -> None:
    """Note each step's samples, and send this process the signal when its moment comes.

    Events of the kind "save" lie within the writing of a checkpoint, wherever else the same functions are called.
    """
    from tpvformer.compat import checksum as seal
    from tpvformer.engine import loop as train
    from tpvformer.engine import optim
    from tpvformer.engine.checkpoint import files as store
    from tpvformer.engine.distributed import agreement
    from tpvformer.engine.logging import meters

    agreement.SECONDS = 0.0  # the processes agree after every step, so that a signal ends that step
    counts, writing = {"step": 0.0, "save": 0.0, "score": 0.0}, [False]
    write, said = store.write, work_dir.with_suffix(".kills")

    def within(*args: Any, **kwargs: Any) -> Path:
        writing[0] = True
        try:
            return write(*args, **kwargs)
        finally:
            writing[0] = False

    store.write = within

    def event(kind: str, name: str, share: float) -> None:
        if kind == "save" and not writing[0]:
            return
        counts[kind] += share
        if moment is not None and moment[0] == rank and moment[2] == kind and counts[kind] >= moment[3]:
            counts[kind] = -1e9
            with said.open("a") as out:
                out.write(f"{kind} {name}\n")
            os.kill(os.getpid(), getattr(signal, moment[1]))
            time.sleep(0.01)  # SIGKILL is not always instant

    def before(owner: Any, name: str, kind: str, share: float = 1.0) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            event(kind, name, share)
            return real(*args, **kwargs)

        setattr(owner, name, watched)

    before(train, "predict", "step")
    before(optim.Stepper, "backward", "step")
    before(optim.Stepper, "update", "step")
    before(train, "log_step", "step")
    before(train, "save_if_due", "step")
    before(train, "evaluate", "score")
    before(seal._Hashing, "_put", "save", 1 / PUTS)
    before(os, "fsync", "save")
    before(os, "replace", "save")
    before(Path, "symlink_to", "save")
    real, file = meters.LossMeter.add, work_dir / f"samples.{rank}.jsonl"

    def add(self: Any, where: str, tokens: Any, loss: Any, *parts: Any) -> None:
        _, epoch, _, i = where.split()
        with file.open("a") as out:
            out.write(json.dumps([f"{epoch}.{i}", list(tokens)]) + "\n")
        real(self, where, tokens, loss, *parts)

    meters.LossMeter.add = add  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    main()
