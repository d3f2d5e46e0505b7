"""The agent of torchrun's kind: what it says while it waits, and that Ctrl-Z reaches what it started."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import programs
import pytest
from engine_tools import environment
from programs import Start, state, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
TICKS = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\nwhile True: time.sleep(0.1)\n"
AGENT = [sys.executable, "-m", "tpvformer.engine.agent"]


def test_ctrl_z_reaches_the_processes(start: Start, tmp_path: Path) -> None:
    script, started = tmp_path / "ticks.py", tmp_path / "pid"
    script.write_text(TICKS)
    command = [*AGENT, "--standalone", "--nproc_per_node=1", str(script), str(started)]
    agent = start(command, env=environment())
    agent.until(lambda: started.exists() and bool(started.read_text()))
    child = int(started.read_text())
    for number, states in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "SR")):
        agent.send_signal(number)
        for pid in (child, agent.pid):
            wait_until(lambda pid=pid, states=states: state(pid) in states)
    agent.terminate()
    agent.wait(100)


def test_it_says_that_it_waits_and_ends(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = [f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_backend=c10d", "--rdzv_id=x", "--local_addr=127.0.0.1"]
    command = [*AGENT, "--nnodes=2", *there, "--nproc_per_node=1", str(tmp_path / "never.py")]
    done = programs.run(command, env=environment(TPVFORMER_WAIT_MINUTES="0.2"))
    assert done.returncode == 1, done.stderr
    said = f"agent: waits for the other machines (2 in all) at 127.0.0.1:{port}, until 0.2 minutes have passed"
    assert said in done.stderr and "agent: the machines did not find each other" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
