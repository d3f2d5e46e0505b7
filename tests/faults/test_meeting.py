"""Processes that do not find each other: who is missing is said, what is wrong is said, and nobody waits for ever."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import programs
import pytest
from engine_tools import POINTS, environment, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.engine.distributed import connect as meeting
from tpvformer.engine.distributed.collectives import read_world
from tpvformer.errors import ConfigError, RunEnded

ABOUT = {"WORLD_SIZE": "2", "device": "cpu"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def place(monkeypatch) -> None:
    monkeypatch.setattr(meeting, "FIRST_WORD", 0.2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv(meeting.WAIT, "2")


def meet(*calls: Tuple[int, int, Dict[str, str]]) -> List[Any]:
    """What each process gets or raises, played by a thread each."""
    found: List[Any] = [None] * len(calls)

    def run(i: int, rank: int, size: int, about: Dict[str, str]) -> None:
        time.sleep(0.3 * i)
        try:
            found[i] = meeting.meet(rank, size, True, about)
        except Exception as err:
            found[i] = err

    threads = [threading.Thread(target=run, args=(i, *call), daemon=True) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    return found


def test_all_are_there() -> None:
    first, second = meet((0, 2, ABOUT), (1, 2, ABOUT))
    first.set("x", "y")
    assert second.get("x") == b"y"


def test_one_is_missing(monkeypatch, capfd) -> None:
    monkeypatch.setenv(meeting.WAIT, "0.03")
    about = {**ABOUT, "WORLD_SIZE": "3"}
    errors = meet((0, 3, about), (1, 3, about))
    assert all(isinstance(err, RunEnded) for err in errors), errors
    assert "waited 0.03 minutes for process 2 (RANK) of 3 to reach 127.0.0.1" in str(errors[0])
    assert "process 0 waits for process" in capfd.readouterr().err


def test_nobody_answers(monkeypatch, capfd) -> None:
    monkeypatch.setenv(meeting.WAIT, "0.02")
    (error,) = meet((1, 2, ABOUT))
    assert re.search(r"for process 0 at 127.0.0.1:\d+, which does not answer \(Connection refused\)", str(error))
    assert isinstance(error, RunEnded) and "process 1 waits for process 0" in capfd.readouterr().err


def test_something_else_answers(monkeypatch) -> None:
    monkeypatch.setenv(meeting.WAIT, "0.02")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        (error,) = meet((1, 2, ABOUT))
    assert isinstance(error, RunEnded) and "where another program seems to listen" in str(error)


def test_the_port_is_taken(monkeypatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        (error,) = meet((0, 2, ABOUT))
    assert isinstance(error, ConfigError) and f"MASTER_PORT {port} is in use on this machine" in str(error)


def test_a_number_twice(monkeypatch) -> None:
    monkeypatch.setenv(meeting.WAIT, "0.1")
    about = {**ABOUT, "WORLD_SIZE": "3"}
    errors = meet((0, 3, about), (1, 3, about), (1, 3, about))
    assert "two processes were started with RANK=1" in str(errors[2])


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "4"), ("device", "npu")])
def test_they_differ(name: str, value: str) -> None:
    errors = meet((0, 2, ABOUT), (1, 2, {**ABOUT, name: value}))
    text = f"the processes of this run differ: {name} is {value} in process 1 and {ABOUT[name]} in process 0 on "
    assert any(text in str(err) for err in errors), errors
    assert all(isinstance(err, (ConfigError, RunEnded)) for err in errors), errors


@pytest.mark.parametrize("port", ["", "x", "0", "65536", "-1", "²", "99999999999999999999"])
def test_ports_that_are_none(port: str, monkeypatch) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match=r"MASTER_PORT is .*expected a port, 1 to 65535"):
        meeting.meeting_place()


def test_no_address(monkeypatch) -> None:
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match="MASTER_ADDR is missing"):
        meeting.meeting_place()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_times_that_are_none(minutes: str, monkeypatch) -> None:
    monkeypatch.setenv(meeting.WAIT, minutes)
    with pytest.raises(ConfigError, match=f"{meeting.WAIT} is"):
        meeting.patience()


def test_an_empty_time_is_the_default(monkeypatch) -> None:
    monkeypatch.delenv(meeting.WAIT, raising=False)
    default = meeting.patience()
    monkeypatch.setenv(meeting.WAIT, "")
    assert meeting.patience() == default > 0


def test_an_interface_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib77")
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME names 'ib77'; this machine has .*lo"):
        meeting.check_interface()


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "2"), ("RANK", "-1"), ("RANK", "²"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "2"), ("LOCAL_RANK", "")],
)
def test_numbers_that_are_wrong(name: str, value: str, monkeypatch) -> None:
    for key, number in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, number)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="environment: "):
        read_world()


def test_the_command_says_it_and_ends(tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", tiny_config(write_tiny(tmp_path / "set", POINTS), epochs=1))
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", meeting.WAIT: "0.01"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = ["-m", "tpvformer", "train", "--py-config", str(file), "--device", "cpu", "--work-dir", str(tmp_path)]
    done = programs.run([sys.executable, *command], env=environment(**env, **place))
    assert done.returncode == 1
    assert re.fullmatch(r"tpvformer train: waited 0.01 minutes for process 1 \(RANK\) of 2 .*\n", done.stderr), (
        done.stderr
    )
