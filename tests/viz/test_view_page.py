"""The page of tpvformer view in headless Chromium: opened from the disk, with no network, by mouse, finger and key."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from engine_tools import ROOT
from page_tools import MODE, ROW, press, share, shot, write
from view_tools import archive, save

from tpvformer.labels import COLORS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")

CAR, BARRIER, VEGETATION = 4, 1, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """Two frames; the second has only cars."""
    first = archive()
    only_cars = np.where(first["true_voxels"] > 0, CAR, 0).astype(np.uint8)
    second = archive(token="second", number=1, voxels=only_cars, true_voxels=only_cars)
    return write(folder / "two.html", first, second)


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Browser]:
    with Browser(folder / "profile") as browser:
        yield browser


@pytest.fixture()
def browser(shared: Browser, page: Path) -> Iterator[Browser]:
    shared.resize(1400, 900)
    shared.problems.clear()
    shared.open(page)
    yield shared
    assert shared.problems == []


def counts(browser: Browser, label: int) -> list:
    cells = f"[...document.querySelectorAll('{ROW.format(label)} i')].map((cell) => cell.textContent)"
    return browser.run(cells)


def test_the_first_view_shows_prediction_beside_truth_in_the_palettes_colours(browser: Browser) -> None:
    seen = shot(browser)
    left, right = seen[:, : seen.shape[1] // 2], seen[:, seen.shape[1] // 2 :]
    for label in range(1, 17):
        assert share(right, COLORS[label]) > 0.001, label
    assert share(left, COLORS[CAR]) == 0 and share(left, COLORS[BARRIER]) > 1.5 * share(right, COLORS[BARRIER])
    assert counts(browser, BARRIER) == ["60", "40"] and counts(browser, CAR) == ["0", "20"]
    assert browser.run("document.querySelector('#caption').textContent").startswith("This model was not taught free")
    tags = "[...document.querySelectorAll('.tag')].map((tag) => tag.textContent)"
    assert browser.run(tags) == ["Prediction", "Truth"]


def test_a_class_is_switched_off_and_on(browser: Browser) -> None:
    press(browser, MODE.format("truth"))
    before = shot(browser)
    assert share(before, COLORS[VEGETATION]) > 0.001
    press(browser, ROW.format(VEGETATION) + " input")
    assert share(shot(browser), COLORS[VEGETATION]) == 0
    press(browser, "#none")
    assert all(share(shot(browser), COLORS[label]) == 0 for label in range(1, 17))
    press(browser, "#all")
    assert (shot(browser) == before).all()


def test_the_difference_is_red_where_the_class_is_wrong(browser: Browser) -> None:
    press(browser, MODE.format("difference"))
    seen = shot(browser)
    assert 5 * share(seen, (235, 60, 50)) < share(seen, (120, 160, 130)) and share(seen, (235, 60, 50)) > 0.001
    kinds = "[...document.querySelectorAll('#kinds label')].map((row) => row.querySelector('i').textContent)"
    assert browser.run(kinds) == ["380", "20", "0", "0"]
    press(browser, '#kinds label[data-label="0"] input')
    seen = shot(browser)
    assert share(seen, (120, 160, 130)) == 0 and share(seen, (235, 60, 50)) > 0.001


def test_lidar_points_and_confidence(browser: Browser) -> None:
    press(browser, MODE.format("prediction"))
    press(browser, "#voxels")
    assert share(shot(browser), COLORS[BARRIER]) == 0
    press(browser, "#points")
    assert share(shot(browser), COLORS[BARRIER]) > 0.0001
    assert browser.run("document.querySelector('#counted').textContent") == "points: predicted, true"
    press(browser, "#voxels")
    press(browser, "#points")
    everything = share(shot(browser), COLORS[BARRIER])
    browser.run("document.querySelector('#confidence').value = 90")
    browser.run("document.querySelector('#confidence').dispatchEvent(new Event('input'))")
    browser.settle()
    assert 0 < share(shot(browser), COLORS[BARRIER]) < everything / 2
    press(browser, "#scanned")  # what stands in the air comes to light
    assert int(counts(browser, 15)[0]) > 20


def test_points_lie_on_the_pictures_where_they_project(browser: Browser) -> None:
    front = browser.picture(".cameras button")
    scale = front.shape[1] / 64
    assert share(front, COLORS[BARRIER], 20) == 0  # behind the camera
    seen = (np.abs(front.astype(int) - COLORS[VEGETATION]) <= 20).all(-1)
    rows = np.argwhere(seen)[:, 0] / scale
    assert seen.any() and 18 + 50 * 1.5 / 9.5 - 2 < rows.min() < rows.max() < 18 + 50 * 1.5 / 9.5 + 2  # 9.5 m ahead
    press(browser, ".cameras button")
    assert browser.picture(".cameras button").shape[1] > 2.5 * front.shape[1]
    press(browser, ".cameras button")


def test_the_slider_and_the_keys_go_over_the_frames(browser: Browser) -> None:
    browser.run("document.querySelector('#modes button[value=prediction]').click(); document.activeElement.blur()")
    browser.settle()
    assert share(shot(browser), COLORS[CAR]) == 0
    where = "document.querySelector('#where').textContent"
    browser.key("]")
    browser.wait(f"{where} === '2 / 2'")
    browser.settle()
    seen = shot(browser)
    assert share(seen, COLORS[CAR]) > 0.01 and share(seen, COLORS[VEGETATION]) == 0
    assert counts(browser, CAR)[0] == "400"
    browser.key("[")
    browser.wait(f"{where} === '1 / 2'")
    browser.run("document.querySelector('#frame').focus()")
    browser.key("ArrowRight")
    browser.wait(f"{where} === '2 / 2'")
    browser.run("document.activeElement.blur()")
    press(browser, "#play")
    browser.wait(f"{where} === '1 / 2'")
    press(browser, "#play")


def test_keys_turn_move_and_zoom(browser: Browser) -> None:
    browser.run("document.activeElement.blur()")
    home = shot(browser)
    for key, shift in (
        ("ArrowLeft", False),
        ("ArrowUp", False),
        ("ArrowRight", True),
        ("+", False),
        ("-", False),
        ("t", False),
    ):
        before = shot(browser)
        browser.key(key, shift=shift)
        assert (shot(browser) != before).any(), key
    browser.key("0")
    assert (shot(browser) == home).all()
    modes = []
    for _ in range(4):
        browser.key("v")
        modes.append(browser.run("document.querySelector('#modes [aria-checked=true]').value"))
    assert modes == ["difference", "prediction", "truth", "both"]


def test_everything_is_reached_by_the_tab_key(browser: Browser) -> None:
    browser.run("document.activeElement.blur()")
    reached = set()
    for _ in range(50):
        browser.key("Tab")
        reached.add(browser.run("document.activeElement.id || document.activeElement.closest('[id]')?.id || ''"))
    assert {"frame", "next", "modes", "voxels", "points", "canvas", "classes", "confidence", "cameras"} <= reached
    elements = "[...document.querySelectorAll('button, input, canvas[tabindex]')]"
    name = "(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())"
    assert browser.run(f"{elements}.filter((e) => !{name}).length") == 0


def test_mouse_and_finger(browser: Browser) -> None:
    left, top, right, bottom = browser.box("#canvas")
    x, y = left + (right - left) / 4, (top + bottom) / 2
    for button, held in (("left", 1), ("right", 2)):
        before = shot(browser)
        browser.mouse("mousePressed", x, y, button=button, buttons=held, clickCount=1)
        browser.mouse("mouseMoved", x + 60, y + 10, button=button, buttons=held)
        browser.mouse("mouseReleased", x + 60, y + 10, button=button, clickCount=1)
        browser.settle()
        assert (shot(browser) != before).any(), button
    before = shot(browser)
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    browser.settle()
    assert (shot(browser) != before).any()
    before = shot(browser)
    for kind, apart in (("touchStart", 20), ("touchMove", 60), ("touchEnd", 0)):
        fingers = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
    browser.settle()
    assert (shot(browser) != before).any()


def test_a_phones_width_is_enough(browser: Browser, page: Path) -> None:
    browser.resize(390, 844, mobile=True)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert browser.run("document.querySelector('#modes [aria-checked=true]').value") == "prediction"
    stage, classes, pictures = (browser.box(part) for part in (".stage", "aside", ".cameras"))
    assert all(350 < right - left <= 390 for left, _, right, _ in (stage, classes, pictures))
    assert stage[3] < 844 and classes[1] > stage[3] and pictures[1] > classes[3]  # one below the other
    assert share(shot(browser), COLORS[BARRIER]) > 0.001


def test_text_of_a_result_is_only_text(browser: Browser, folder: Path) -> None:
    evil = "</script><script>document.title=1</script><img src=x onerror=document.title=1>"
    names = np.array([*(f"c{i}" for i in range(16)), evil])
    token = evil.replace("/", "").replace("\\", "")
    bad = write(
        folder / "evil.html",
        archive(class_names=names, token=token, scene=evil + "@DATA@", camera_names=np.array([evil] * 2)),
    )
    browser.open(bad)
    assert browser.run("document.title") == "TPVFormer"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run(f"document.querySelector('{ROW.format(16)} em').textContent") == evil.replace("_", " ")


def test_frames_without_cameras_lidar_or_labels(browser: Browser, folder: Path) -> None:
    bare = archive()
    for name in list(bare):
        if name.startswith(("image", "camera", "point", "true", "scan", "lidar")):
            del bare[name]
    browser.open(write(folder / "bare.html", bare))
    assert "highest confidence" in browser.run("document.querySelector('#caption').textContent")
    assert browser.run("document.querySelector('#frames').hidden")
    assert share(shot(browser), COLORS[15]) > 0.001
    disabled = "[...document.querySelectorAll('#modes button')].filter((b) => b.disabled).map((b) => b.value)"
    assert browser.run(disabled) == ["truth", "both", "difference"]


def test_without_webgl_there_is_a_view_from_above(folder: Path, page: Path) -> None:
    with Browser(folder / "flat", flags=("--disable-3d-apis",)) as browser:
        browser.resize(1400, 900)
        browser.open(page)
        assert "draws nothing in 3-D" in browser.run("document.querySelector('#notice').textContent")
        seen = shot(browser)
        assert all(share(seen, COLORS[label]) > 0.001 for label in (BARRIER, VEGETATION))
        assert share(browser.picture(".cameras button"), COLORS[VEGETATION], 20) > 0
        browser.key("]")
        browser.wait("document.querySelector('#where').textContent === '2 / 2'")
        assert share(shot(browser), COLORS[CAR]) > 0.01
        problems = [
            text for text in browser.problems if "WebGL" not in text
        ]  # the browser itself says that it has none
        assert problems == []


def test_a_full_frame_stays_below_15_mb(folder: Path) -> None:
    """200x200x16 voxels, 34720 points, six pictures of 800x450 that compress badly; a class and a confidence at random
    everywhere, which is worse than any model."""
    rng, grid = np.random.RandomState(0), (200, 200, 16)
    full = archive(grid, 6, (800, 450), voxels=rng.randint(1, 17, grid).astype(np.uint8))
    labels = rng.randint(1, 17, 34720).astype(np.uint8)
    points = rng.uniform(-50, 50, (34720, 3)).astype(np.float32)
    full.update(points=points, point_labels=labels, true_point_labels=labels)
    page = write(folder / "full.html", full)
    assert 2e6 < page.stat().st_size < 15e6


def test_the_benchmark_measures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_view

    small = save(folder / "small.npz", bench_view.street((20, 20, 8), 50))
    (folder / "bench").mkdir()
    numbers = bench_view.measure([small], 1, folder / "bench")
    assert numbers["first_picture_s"]["median"] > 0 and numbers["page_mb"] > 0.05
