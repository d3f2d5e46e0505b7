"""When something long will end: lines of a log where no bar can be drawn, by a clock that the test sets."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any, List

import pytest
from engine_tools import POINTS, tiny_config
from tiny_nuscenes import write_tiny

from tpvformer.engine import train as run
from tpvformer.engine.logging import progress as ending
from tpvformer.engine.logging.log import progress
from tpvformer.engine.logging.progress import Ending, print_every, print_quarters, remaining

NOON = time.mktime((2026, 11, 30, 12, 0, 0, 0, 0, -1))


class Clock:
    def __init__(self, monkeypatch: Any) -> None:
        self.now = NOON
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now - NOON)


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (42, "42 s left, ends 12:00"),
        (12 * 60, "12 min left, ends 12:12"),
        (7500, "2 h 5 min left, ends 14:05"),
        (14 * 3600, "14 h 0 min left, ends 2026-12-01 02:00"),
    ],
)
def test_what_is_left(seconds: float, text: str) -> None:
    assert remaining(seconds, NOON) == text


def test_lines_come_ever_more_rarely_and_the_first_part_does_not_count(clock: Clock) -> None:
    said: List[str] = []
    shown = Ending("epoch 0", 1000, said.append, later=1000, whole="the training")
    clock.now += 100  # what only the first part needs
    shown.advance()
    assert said == []
    for _ in range(999):
        clock.now += 2
        shown.advance()
    assert said[0] == "epoch 0: 2 of 1000, 33 min left, ends 12:34; the training 1 h 7 min left, ends 13:08"
    # each after twice the time, and after 600 s at most
    assert [line.split()[2] for line in said] == ["2", "53", "155", "359", "659", "959"]
    shown.advance()
    assert len(said) == 6  # nothing at the end, or beyond


def test_no_word_of_what_is_short(clock: Clock, capsys: Any) -> None:
    with progress("predict", 40) as bar:
        for _ in range(40):
            clock.now += 0.5
            bar.advance()
    assert capsys.readouterr().err == ""


def test_predict_says_it_in_a_pipe_and_draws_a_bar_on_a_terminal(clock: Clock, monkeypatch: Any) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with progress("predict", 40) as bar:
        for _ in range(40):
            clock.now += 10
            bar.advance()
    first, *_ = said.getvalue().splitlines()
    assert first == "predict: 3 of 40, 6 min left, ends 12:06"


def test_training_says_when_it_ends(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """On the log's own lines, which a pipe gets too; the line of a step stays as scripts read it."""
    monkeypatch.setattr(ending, "FIRST", 0.0)
    monkeypatch.setattr(ending, "LONGEST", 0.0)
    run.train(tiny_config(write_tiny(tmp_path / "set", POINTS)), tmp_path / "w", "cpu")
    (log,) = (tmp_path / "w").glob("2*.log")
    lines = [line.split(" - ", 3)[3] for line in log.read_text().splitlines()]
    first, last = ([line for line in lines if line.startswith(f"epoch {i}: ")] for i in (0, 1))
    assert len(first) == len(last) == 5  # seven steps an epoch, less its first and last
    assert all("left, ends " in line for line in first + last)
    assert all("; the training, evaluations not counted, " in line for line in first)
    assert not [line for line in last if ";" in line]  # the last epoch ends it
    assert [line for line in lines if line.startswith("evaluate: 2 of 7, ")]


def test_a_measurement_of_speed_ends_with_its_steps(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ending, "FIRST", 0.0)
    run.train(tiny_config(write_tiny(tmp_path / "set", POINTS)), tmp_path / "w", "cpu", max_steps=3)
    (log,) = (tmp_path / "w").glob("2*.log")
    assert "epoch 0: 2 of 3, " in log.read_text() and "the training" not in log.read_text()


def test_synth_and_data_say_it(clock: Clock, capsys: Any) -> None:
    say = print_quarters("frames")
    clock.now += 60
    say(10, 40)
    assert capsys.readouterr().err == "10 of 40 frames, 3 min left, ends 12:04\n"
    tell = print_every(5)
    tell("sample_data", 1, 800_000_000)
    clock.now += 60
    tell("sample_data", 200_000_000, 800_000_000)
    tell("sample_data", 200_000_001, 800_000_000)
    tell("key frames looked at", 1, 404)
    clock.now += 10
    tell("key frames looked at", 101, 404)
    assert capsys.readouterr().err.splitlines() == [
        "sample_data: 25 % of 800 MB, 3 min left, ends 12:05",
        "key frames looked at: 25 % of 404, 30 s left, ends 12:02",
    ]
