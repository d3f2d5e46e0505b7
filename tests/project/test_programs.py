"""The tests' own programs: none outlives its time, nor what it started, and what it said until then is shown."""

from __future__ import annotations

import sys
import time

import pytest
from programs import Overdue, Start, run, state, wait_until

# a process and one in a session of its own, both of which hold the output open
HANGS = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "100"], start_new_session=True)
print(child.pid, "hangs", flush=True)
time.sleep(100)
"""


def test_a_program_that_hangs_ends_with_what_it_started(start: Start) -> None:
    began = time.monotonic()
    program = start([sys.executable, "-c", HANGS])
    program.until("hangs", 60)
    with pytest.raises(Overdue, match=r"not done within 0.1 s\n--- stdout\n\d+ hangs"):
        program.wait(0.1)
    wait_until(lambda: state(program.out.split()[0]) in "ZX")
    assert time.monotonic() - began < 60
    with pytest.raises(Overdue, match="not done within"):
        run([sys.executable, "-c", HANGS], 0.1)


def test_a_program_that_does_not_say_it(start: Start) -> None:
    with pytest.raises(Overdue, match="0.1 s passed before ready"):
        start([sys.executable, "-c", HANGS]).until("ready", 0.1)
    with pytest.raises(Overdue, match=r"it ended before ready\n--- stdout\nfoo"):
        start(["echo", "foo"]).until("ready", 60)
    with pytest.raises(AssertionError, match="exit status 1"):
        run(["false"], 60, check=True)
