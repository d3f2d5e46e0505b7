"""The page of a run: it says what the run's files hold, opens in a browser, and never fails a training."""

from __future__ import annotations

import datetime
import json
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple, cast

import programs
import pytest
import torch
from browser import CHROMIUM, Browser
from engine_tools import POINTS, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.engine import train as run_module
from tpvformer.engine.evaluation import evaluate
from tpvformer.engine.logging.environment import environment_info
from tpvformer.labels import NUSCENES
from tpvformer.viz.report import write as report_command
from tpvformer.viz.report.charts import Series, line_chart, number
from tpvformer.viz.report.page import page
from tpvformer.viz.report.read import RunFiles, Step, read_run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick) -> Path:
    """The work dir of a run of two epochs, by the command."""
    folder = tmp_path_factory.mktemp("report")
    file = write_config(folder / "tiny.py", tiny_config(write_tiny(folder / "set", POINTS)))
    assert main(["train", "--py-config", str(file), "--work-dir", str(folder / "run"), "--device", "cpu"]) == 0
    return folder / "run"


def record(kind: str, **values: Any) -> str:
    return json.dumps({"kind": kind, "run": "a", **values})


def test_a_training_ends_with_its_page(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    run = read_run(finished)
    assert run.last is not None and len(run.evals) == 2 and len(run.train) == len(run.steps) == 14
    for title in ("Training", "Scores", "Classes", "Confusion", "Worst frames", "How it was made"):
        assert f"<h2>{title}</h2>" in text
    for title in ("Loss", "Validation, %", "Learning rate", "Norm of the gradient", "Time of a step, ms"):
        assert f"<figcaption>{title}" in text
    assert "Where the time went" in text and "waiting for data" in text
    for name, color in list(zip(NUSCENES.names, NUSCENES.colors))[1:]:
        assert f'style="background:rgb{str(color).replace(" ", "")}"></i>{name.replace("_", " ")}<' in text
    for name, metric in run.last["metrics"].items():
        assert name in text and f"{metric['value']:.2f} %" in text
    assert "tpvformer train --py-config" in text and "torch 2." in text and "dim: 16" in text
    assert text.count("data:image/jpeg;base64,") == len(run.last["worst"]) == evaluate.WORST
    assert all(frame["token"] in text for frame in run.last["worst"])
    assert "<script" not in text and "://" not in text


def test_what_an_evaluation_stores_agrees_with_its_scores(finished: Path) -> None:
    last = read_run(finished).last
    assert last is not None
    names, counts = last["confusion"]["classes"], last["confusion"]["counts"]
    assert last["leading"] == "miou_points"
    for label, iou in last["metrics"]["miou_points"]["iou"].items():
        k = names.index(label)
        union = sum(counts[k]) + sum(row[k] for row in counts) - counts[k][k]
        assert iou is None if not sum(counts[k]) else iou == pytest.approx(100 * counts[k][k] / union)
    losses = [frame["loss"] for frame in last["worst"]]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) > 1
    left = len(POINTS) * last["loss"] - sum(losses)  # that of the one sample which is not among the worst six
    assert 0 < left <= losses[-1] + 1e-6


def test_the_head_says_when_the_run_began_and_not_when_it_went_on() -> None:
    dates = ("2026-11-29 23:58 UTC", "2026-11-30 08:01 UTC")
    starts = [{"run": f"{i}", "step": 7 * i, "date": date} for i, date in enumerate(dates)]
    head = page(RunFiles("run", "", {"duration_s": 300.0}, starts), NUSCENES).partition("</header>")[0]
    assert "started 2026-11-29 23:58 UTC" in head and "08:01" not in head
    assert "finished, the last of its 2 starts took 5 min 0 s" in head
    head = page(RunFiles("run", "", {"duration_s": 300.0}, starts[:1]), NUSCENES).partition("</header>")[0]
    assert "finished in 5 min 0 s" in head


def test_the_time_that_is_written_down_is_that_of_the_beginning(tmp_path: Path, monkeypatch) -> None:
    """Compiling and reading infos come before a run's line in starts.jsonl, and belong to the run."""
    now = datetime.datetime.now(datetime.timezone.utc)
    dates = [environment_info(torch.device("cpu"), "x", past)["date"] for past in (0, 3 * 86400)]
    days = [datetime.datetime.strptime(date, "%Y-%m-%d %H:%M UTC").replace(tzinfo=now.tzinfo) for date in dates]
    assert days[0] - days[1] == datetime.timedelta(days=3)
    seen: List[float] = []
    monkeypatch.setattr(run_module, "environment_info", lambda device, program, past: seen.append(past) or {})
    run = SimpleNamespace(log=SimpleNamespace(path=tmp_path / "a.log"), progress=SimpleNamespace(global_iter=0))
    run.max_steps, run.world, run.device, run.work_dir = 1, SimpleNamespace(size=1), torch.device("cpu"), tmp_path
    run.precision = SimpleNamespace(facts=dict)
    run_module._record_start(cast(Any, run), "x", time.perf_counter() - 50.0)
    assert seen[0] >= 50


def test_the_worst_of_several_processes(monkeypatch) -> None:
    theirs = json.dumps([("far", math.inf), ("c", 3.5), ("d", 1.0)])
    monkeypatch.setattr(evaluate, "all_gather_strings", lambda mine: [mine, theirs])
    monkeypatch.setattr(evaluate, "WORST", 4)
    worst = evaluate.worst_of(["a", "b", "odd", "e"], [3.0, 4.0, math.nan, 0.5])
    assert [token for token, _ in worst] == ["far", "odd", "b", "c"]


def test_report_is_made_again_and_pictures_too(finished: Path, tmp_path: Path, capsys) -> None:
    pictures = sorted((finished / report_command.FRAMES).iterdir())
    assert len(pictures) == 6
    pictures[0].unlink()
    out = tmp_path / "deep" / "page.html"
    assert main(["report", "--work-dir", str(finished), "--out", str(out)]) == 0
    assert out.read_text().count("data:image/jpeg") == 5
    assert main(["report", "--work-dir", str(finished), "--out", str(out), "--pictures", "--device", "cpu"]) == 0
    assert out.read_text().count("data:image/jpeg") == 6
    said = capsys.readouterr().out
    assert said.count("points right") == 6 and f"{out}: " in said
    assert not [p for p in finished.iterdir() if p.name.startswith(".")]


def test_a_run_that_goes_on_has_a_page(tmp_path: Path, capsys) -> None:
    lines = [record("train", step=s, epoch=0, loss=4 / s, mean_loss=None, lr=1e-4, grad_norm=1.0) for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "tr']))
    (tmp_path / "timeline.csv").write_text("run,epoch,step,began_s,waited_s,computed_s\na,0,1,0,0.5,1.5\na,0,2,0,")
    assert main(["report", "--work-dir", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "not finished" in text and "Loss" in text and "25.0 %" in text and "Confusion" not in text
    assert "Parts of the loss" not in text  # files of older versions have none
    lines = [record("train", step=s, mean_parts={"ce": 1 / s, "l<vasz": 2.0, "image": None}) for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert main(["report", "--work-dir", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "not averaged" not in text
    metrics = {"miou_points": {"value": 30.0, "interval": None, "rings": {}}}
    evals = [
        record(kind, step=3 * n, epoch=n, samples=4, loss=1.0, leading="miou_points", metrics=metrics)
        for n in (1, 2)
        for kind in ("eval_raw", "eval")
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines + evals))
    assert main(["report", "--work-dir", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    chart = text.partition("<figcaption>Validation")[2].partition("</figure>")[0]
    assert "miou_points, not averaged" in chart
    chart = text.partition("Parts of the loss")[2].partition("</figure>")[0]
    assert chart.count("<polyline") == 2 and "l&lt;vasz" in chart and "l<vasz" not in text


def test_a_measurement_is_not_taken_for_the_training(tmp_path: Path) -> None:
    def write(name: str, *records: Dict[str, Any]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))

    losses = [{"kind": "train", "run": run, "step": step, "loss": step} for run, step in (("b", 1), ("d", 2), ("c", 1))]
    runs = (("a", 0, None), ("b", 0, None), ("c", 0, 9), ("d", 1, None))
    write("starts.jsonl", *({"run": run, "step": step, "max_steps": most} for run, step, most in runs))
    write("metrics.jsonl", *losses)
    found = read_run(tmp_path)
    assert [r["run"] for r in found.train] == ["b", "d"]
    assert [start["run"] for start in found.starts] == ["b", "d"], "a was begun afresh by b"
    write("metrics.jsonl", losses[2])
    assert [r["run"] for r in read_run(tmp_path).train] == ["c"]


def test_mistakes_are_one_line(tmp_path: Path, finished: Path, capsys) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text("no json\n{}\n")
    (tmp_path / "file").touch()
    for words, text in (
        ((str(tmp_path),), "metrics.jsonl does not exist: no run has written to"),
        ((str(tmp_path / "broken"),), "line 1, is not JSON"),
        ((str(tmp_path), "--pictures"), "metrics.jsonl does not exist"),
        ((str(finished), "--out", str(tmp_path / "file" / "x.html")), "cannot be written"),
    ):
        assert main(["report", "--work-dir", *words]) == 2
        err = capsys.readouterr().err
        assert text in err and err.startswith("tpvformer report: ") and err.count("\n") == 1


def test_a_page_that_cannot_be_made_does_not_fail_the_training(tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("whatever\nit is")

    monkeypatch.setattr(report_command, "draw_worst", broken)
    monkeypatch.setattr(report_command, "write_report", broken)
    report_command.after_training(tmp_path, "cpu")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tpvformer train: the pictures of the worst frames could not be made (")
    assert second.startswith("tpvformer train: report.html could not be made (")
    monkeypatch.setenv("RANK", "1")
    report_command.after_training(tmp_path, "cpu")
    assert not capsys.readouterr().err


HOSTILE = "</style><script>alert('&\"')</script>"


def test_every_text_is_escaped() -> None:
    metric = {"value": 1.0, "interval": None, "iou": {HOSTILE: 2.0}, "rings": {HOSTILE: 3.0}}
    evaluation: Dict[str, Any] = {
        "epoch": 1,
        "step": 1,
        "samples": 1,
        "scenes": HOSTILE,
        "loss": 1.0,
        "leading": "miou_points",
        "metrics": {"miou_points": metric, HOSTILE: metric},
        "confusion": {"classes": [HOSTILE], "counts": [[5]]},
        "worst": [{"token": HOSTILE, "loss": None}],
    }
    start = dict.fromkeys(("command", "device", "processor", "date", "python", "world_size"), HOSTILE)
    start.update(step=4, versions={HOSTILE: HOSTILE}, settings={HOSTILE: HOSTILE})
    summary = {"config": HOSTILE, "duration_s": 1.0, "skipped_steps": 2, "bad_samples": 3, "precision": HOSTILE}
    bad = [{"reports": [HOSTILE]}]
    run = RunFiles(
        HOSTILE, f"name: {HOSTILE}", summary, [start], [], [evaluation], [evaluation], bad, [Step(1, 0.1, 0.2)]
    )
    text = page(run, NUSCENES, [b"jpeg"], HOSTILE)
    assert "<script" not in text and text.count("</style>") == 1
    assert text.count("&lt;script&gt;") > 15
    assert "2 steps were left out" in text and "3 samples could not be read" in text


def test_curves_of_a_long_run_stay_small_and_true() -> None:
    points = [(float(x), None if 400 <= x < 500 else 5.0 + (x >= 500)) for x in range(100_000)]
    figure = line_chart("Loss", [Series("loss", points)], "step")
    lines = re.findall(r'<polyline class="line t1" points="([^"]*)"', figure)
    corners = [tuple(map(float, pair.split(","))) for line in lines for pair in line.split()]
    assert 100 < len(corners) <= 140
    assert corners[0][1] > corners[-1][1], "a higher value lies higher"
    assert [x for x, _ in corners] == sorted(x for x, _ in corners)
    assert figure.count("<title>") == len(corners) and "step 99642\nloss: 6" in figure
    gap = line_chart("Loss", [Series("loss", [(0, 1.0), (1, 2.0), (2, None), (3, 2.0), (4, 1.0)])], "step")
    assert gap.count("<polyline") == 2
    assert "logarithmic" in line_chart("Norm", [Series("n", [(0, 0.1), (1, 90.0)])], "step")
    cut = line_chart("Time", [Series("t", [(0, 1.0), (1, 500.0), (2, 1.5)])], "step", linear=True, cap=4.0)
    assert "cut at 4" in cut and "t: 500" in cut
    assert line_chart("Loss", [Series("loss", [(0, None)])], "step") == ""
    assert [number(v) for v in (0, 28130, 1e-5, 0.0015, 0.25)] == ["0", "28.13k", "1e-5", "1.5e-3", "0.25"]


def ticks(figure: str) -> List[Tuple[str, float]]:
    """Label and height of each tick at the left."""
    found = re.findall(r'<text class="tick" x="49" y="([\d.]+)" text-anchor="end">([^<]*)<', figure)
    return [(label, float(y)) for y, label in found]


@pytest.mark.parametrize("value", [64.257, 0.0, 100.0, 2e-4, -3.0, 12345.0, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-4])
@pytest.mark.parametrize("linear", [False, True])
def test_ticks_of_what_hardly_changes_are_apart_and_at_their_place(value: float, noise: float, linear: bool) -> None:
    """Each tick once, from top to bottom, all at one scale; the line lies between those around it; percentages do not
    go below 0."""
    points = [(float(x), value * (1 + noise * (x % 3))) for x in range(9)]
    figure = line_chart("A", [Series("a", points)], "step", linear=linear)
    found = ticks(figure)
    assert len(found) >= 2 and len({label for label, _ in found}) == len(found)
    heights = [y for _, y in found]
    gaps = [a - b for a, b in zip(heights, heights[1:])]
    assert min(gaps) > 10 and max(gaps) - min(gaps) < 0.5, found
    numbers = [float(label.replace("k", "e3")) for label, _ in found]
    assert numbers == sorted(numbers) and (value < 0 or min(numbers) >= 0)
    line = [float(pair.split(",")[1]) for pair in re.findall(r'points="([^"]*)"', figure)[0].split()]
    scale = (heights[0] - heights[-1]) / (numbers[-1] - numbers[0])
    expected = heights[0] - 4 - (value - numbers[0]) * scale
    assert line[0] == pytest.approx(expected, abs=1.5), (line[0], found)


def test_steps_far_behind_the_first_have_ticks_that_differ() -> None:
    figure = line_chart("A", [Series("a", [(1_000_000.0 + x, 1.0 + x) for x in range(9)])], "step")
    labels = re.findall(r'text-anchor="middle">([^<]*)<', figure)
    assert len(labels) > 3 and len(set(labels)) == len(labels) and "1000002" in labels


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")
def test_it_is_as_wide_as_a_phone(finished: Path, tmp_path: Path) -> None:
    """Also with days in the table of times, long tokens, and a long command: nothing sticks out beside what scrolls."""
    text = (finished / "report.html").read_text()
    long = re.sub(r"<td>[\d.]+ (s|min)</td>", "<td>13 d 22 h 59 min</td>", text)
    assert long != text
    (tmp_path / "long.html").write_text(long)
    with Browser(tmp_path / "profile", (390, 844)) as browser:
        for file in (finished / "report.html", tmp_path / "long.html"):
            for width in (320, 390):
                browser.resize(width, 844, mobile=True)
                browser.send("Page.navigate", url=file.resolve().as_uri())
                browser.wait("document.readyState === 'complete'")
                browser.settle()
                wide = browser.run("document.documentElement.scrollWidth")
                assert browser.run("innerWidth") == wide == width, (file.name, width, wide)
        assert browser.problems == []


def opened(file: Path, profile: Path) -> programs.Done:
    """The page after it was loaded by a browser that reaches no network; its console is on stderr."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", "--dump-dom", file.as_uri()]
    return programs.run([str(CHROMIUM), *flags])


def complaints(done: programs.Done) -> List[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")
def test_it_opens_in_a_browser_without_a_word_in_the_console(finished: Path, tmp_path: Path) -> None:
    done = opened(finished / "report.html", tmp_path / "a")
    assert done.returncode == 0 and complaints(done) == []
    assert done.stdout.count("<polyline") > 8 and done.stdout.count("<img ") == 6
    bad = tmp_path / "bad.html"
    text = (finished / "report.html").read_text()
    bad.write_text(text.replace("<main>", "<main><img src='https://example.invalid/x.png'>"))
    assert "Content Security Policy" in "".join(complaints(opened(bad, tmp_path / "a")))
