"""Several machines, played by agents on loopback: one is lost and comes back, and the result is as if nothing was."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict

import programs
import pytest
import torch
from engine_tools import POINTS, ROOT, environment, tiny_config, write_config
from launchers import BLOCK, block
from programs import LOOPBACK, Program, Start, family, listening
from tiny_nuscenes import write_tiny

from tpvformer.engine.checkpoint import files as store

SCRIPT = ROOT / "test" / "train_multi_node.sh"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """The agents of one training."""

    def __init__(self, start: Start, folder: Path, config: Path, *flags: str) -> None:
        self._start, self.work_dir = start, folder / "work"
        common = [f"--py_config={config}", f"--work_dir={self.work_dir}", "--nproc_per_node=2"]
        self.command = ["bash", str(SCRIPT), *common, *flags]
        self.started: Dict[str, Program] = {}

    def start(self, name: str, *flags: str) -> Program:
        env = environment()
        if env.pop("PYTHONDONTWRITEBYTECODE", ""):  # else each of a dozen processes compiles all of PyTorch's modules
            env["PYTHONPYCACHEPREFIX"] = str(self.work_dir.parents[1] / "compiled")
        self.started[name] = self._start([*self.command, *flags], env=env, stderr=subprocess.STDOUT)
        return self.started[name]

    def output(self, name: str) -> str:
        return self.started[name].out

    def wait_for(self, file: str, agent: Program) -> None:
        agent.until((self.work_dir / file).exists)

    def finish(self, *agents: Program) -> None:
        for agent in agents:
            assert agent.wait() == 0, self.outputs()

    def outputs(self) -> str:
        return "\n".join(f"--- {name}\n{self.output(name)[-3000:]}" for name in self.started)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    return write_config(folder / "tiny.py", tiny_config(write_tiny(folder / "set", POINTS), epochs=6))


@pytest.fixture
def job(start: Start, tmp_path: Path, config: Path) -> Callable[..., Job]:
    """Makes jobs; none of their processes outlives the test."""
    return lambda name, *flags: Job(start, tmp_path / name, config, *flags)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_machine_is_lost_and_comes_back(job) -> None:
    """Four processes on two agents each time; once with fixed numbers and undisturbed, once with one agent killed."""
    undisturbed = job("undisturbed", "--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    agents = [undisturbed.start(f"agent {rank}", f"--node_rank={rank}") for rank in (0, 1)]
    undisturbed.wait_for("epoch_1.pth", agents[0])
    assert listening([pid for agent in agents for pid in family(agent.pid)]) == {LOOPBACK}
    undisturbed.finish(*agents)
    assert list(block(undisturbed.output("agent 0"))) == BLOCK
    assert not block(undisturbed.output("agent 1"))

    elastic = ("--nnodes=2", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--local_addr=127.0.0.1")
    disturbed = job("disturbed", *elastic)
    host = disturbed.start("host")
    host.until(lambda: LOOPBACK in listening(family(host.pid)))  # the one that keeps the rendezvous
    other = disturbed.start("other")
    disturbed.wait_for("epoch_2.pth", host)
    assert listening(family(host.pid) + family(other.pid)) == {LOOPBACK}
    other.end()  # as a machine without power: the agent and its processes, at once
    assert not (disturbed.work_dir / "epoch_6.pth").exists(), "killed too late to show anything"
    disturbed.finish(disturbed.start("other again"), host)
    log = "\n".join(disturbed.output(name) for name in disturbed.started)
    assert "resumed " in log and "tiny on 4 x cpu" in log
    assert list(block(disturbed.output("host"))) == BLOCK

    assert_same_result(undisturbed, disturbed, 1e-6)


@pytest.mark.skipif("TPVFORMER_SLOW" not in os.environ, reason="set TPVFORMER_SLOW=1 for it")
def test_one_machine_goes_on_where_two_began(job) -> None:
    """The global batch of four is kept by two processes, and so is the result but for the order of sums."""
    undisturbed = job("undisturbed", "--nnodes=1", "--nproc_per_node=4", "--node_rank=0", "--master_addr=127.0.0.1")
    undisturbed.finish(undisturbed.start("agent", f"--master_port={free_port()}"))
    flags = ("--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--local_addr=127.0.0.1")
    disturbed = job("disturbed", *flags)
    host = disturbed.start("host")
    host.until(lambda: LOOPBACK in listening(family(host.pid)))
    other = disturbed.start("other")
    disturbed.wait_for("epoch_2.pth", host)
    other.end()  # as a machine without power: the agent and its processes, at once
    disturbed.finish(host)
    log = disturbed.output("host")
    assert "tiny on 4 x cpu" in log and "tiny on 2 x cpu" in log
    assert "train.accumulate is 2 instead of 1" in log
    assert_same_result(undisturbed, disturbed, 2e-4)


@pytest.mark.skipif("TPVFORMER_SLOW" not in os.environ, reason="set TPVFORMER_SLOW=1 for it")
def test_a_warning_to_one_machine_saves_and_ends_all(job) -> None:
    elastic = ("--nnodes=2", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--local_addr=127.0.0.1")
    warned = job("warned", *elastic)
    agents = [warned.start(name) for name in ("host", "other")]
    warned.wait_for("epoch_1.pth", agents[0])
    agents[1].terminate()
    warned.finish(*agents)
    assert "stopped by " in warned.output("host") + warned.output("other")
    assert "the same command resumes it" in warned.output("host")
    assert not (warned.work_dir / "summary.json").exists()


def assert_same_result(one: Job, other: Job, tolerance: float) -> None:
    contents = [store.read(job.work_dir / "latest.pth") for job in (one, other)]
    assert [content["epoch"] for content in contents] == [6, 6]
    for name, value in contents[0]["state_dict"].items():
        torch.testing.assert_close(contents[1]["state_dict"][name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_warning_reaches_the_processes_of_an_agent() -> None:
    """In a process of its own, for it reaches whatever that process has started."""
    code = """
import signal, subprocess
from tpvformer.engine.agent import _pass_on
child = subprocess.Popen(["bash", "-c", "trap 'exit 7' USR1; echo; while :; do sleep 0.01; done"], stdout=-1)
child.stdout.readline()  # it listens from here on
_pass_on(signal.SIGUSR1)
print(child.wait(60))
"""
    done = programs.run([sys.executable, "-c", code], env=environment())
    assert done.stdout == "7\n", done.stderr
