"""Boxes on the page of tpvformer view in headless Chromium: in space, on the pictures, from above, with the slider."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from page_tools import MODE, ROW, press, share, shot, write
from shown_boxes import boxed
from view_tools import archive

from tpvformer.labels import COLORS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")

CAR, PEDESTRIAN, WHITE = COLORS[4], COLORS[7], (255, 255, 255)
MANY = "document.querySelector('#many').textContent"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """Two frames; the second has no boxes."""
    return write(folder / "boxed.html", boxed(archive()), archive(token="second", number=1))


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Browser]:
    with Browser(folder / "profile") as browser:
        yield browser


@pytest.fixture()
def browser(shared: Browser, page: Path) -> Iterator[Browser]:
    """Without voxels and points, so that boxes alone have colours."""
    shared.resize(1400, 900)
    shared.problems.clear()
    shared.open(page)
    for box in ("#voxels", "#dots"):
        press(shared, box)
    yield shared
    assert shared.problems == []


def slide(browser: Browser, percent: int) -> None:
    browser.run(f"document.querySelector('#score').value = {percent}")
    browser.run("document.querySelector('#score').dispatchEvent(new Event('input'))")
    browser.settle()


def test_the_slider_leaves_out_boxes_with_a_lower_score(browser: Browser) -> None:
    press(browser, MODE.format("prediction"))
    assert browser.run("document.querySelector('#least').textContent") == "20 %"
    assert browser.run(MANY) == "2 of 3 predicted; 1 true"
    first = shot(browser)
    assert share(first, CAR) > 1e-4 and share(first, PEDESTRIAN) > 2e-5 and share(first, COLORS[8]) == 0
    slide(browser, 60)
    assert browser.run(MANY) == "1 of 3 predicted; 1 true"
    assert share(shot(browser), CAR) > 1e-4 and share(shot(browser), PEDESTRIAN) == 0
    slide(browser, 100)
    assert browser.run(MANY) == "0 of 3 predicted; 1 true" and share(shot(browser), CAR) == 0
    slide(browser, 0)
    assert browser.run(MANY) == "3 of 3 predicted; 1 true" and share(shot(browser), COLORS[8]) > 1e-5
    slide(browser, 90)
    assert browser.run(MANY) == "1 of 3 predicted; 1 true"  # float32's 0.9 is not below 90 %


def test_truth_has_its_own_view_and_is_white_in_the_difference(browser: Browser) -> None:
    assert browser.run("document.querySelector('#modes [aria-checked=true]').value") == "both"
    both = shot(browser)
    left, right = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
    assert share(left, CAR) > 1e-4 and share(right, CAR) > 1e-4
    assert share(left, PEDESTRIAN) > 2e-5 and share(right, PEDESTRIAN) == 0
    press(browser, "#boxes")
    plain = shot(browser)
    assert share(plain, CAR) == 0
    press(browser, "#boxes")
    press(browser, MODE.format("difference"))
    seen = shot(browser)
    assert share(seen, WHITE) > 1e-4 and share(seen, CAR) > 1e-4
    assert browser.run(MANY) == "2 of 3 predicted; 1 true, white"


def test_a_class_that_is_off_has_no_boxes(browser: Browser) -> None:
    press(browser, MODE.format("prediction"))
    press(browser, ROW.format(4) + " input")
    seen = shot(browser)
    assert share(seen, CAR) == 0 and share(seen, PEDESTRIAN) > 2e-5
    assert share(browser.picture(".cameras button"), CAR, 40) == 0


def test_boxes_lie_on_the_pictures_where_they_project(browser: Browser) -> None:
    press(browser, MODE.format("prediction"))
    front = browser.picture(".cameras button")
    scale = front.shape[1] / 64
    places = np.argwhere((np.abs(front.astype(int) - CAR) <= 40).all(-1))[:, ::-1] / scale
    # the car is 4 x 2 x 1.5 m, its near side 5 m ahead: u = 32 + 50 x / 5, v = 18 - 50 z / 5
    assert np.abs(places.min(0) - [32 + 10 * -1, 18 - 10 * 0.25]).max() < 1.5
    assert np.abs(places.max(0) - [64, 18 + 10 * 1.25]).max() < 1.5, "the arrow is cut off at the border"
    press(browser, "#boxes")
    assert share(browser.picture(".cameras button"), CAR, 40) == 0
    press(browser, "#boxes")
    press(browser, "#dots")
    assert share(browser.picture(".cameras button"), COLORS[16], 20) > 0


def test_from_above_a_box_is_as_long_as_it_is(browser: Browser) -> None:
    press(browser, MODE.format("prediction"))
    press(browser, "#above")
    places = np.argwhere((shot(browser).astype(int) == CAR).all(-1))
    high, wide = places.max(0) - places.min(0)
    assert 1.8 < wide / high < 2.6  # 4 m by 2 m, to the arrow's end 5 m at most


def test_a_frame_without_boxes_has_no_slider(browser: Browser, page: Path) -> None:
    hidden = "document.querySelector('#boxed').hidden"
    assert not browser.run(hidden)
    press(browser, "#next")
    browser.wait("document.querySelector('#where').textContent === '2 / 2'")
    browser.settle()
    assert browser.run(hidden) and browser.run("document.querySelector('#boxes-row').hidden")
    assert share(shot(browser), CAR) == 0


def test_boxes_behind_the_eye_are_cut_off(browser: Browser) -> None:
    """Very near the box: nothing is drawn across the picture from what lies behind."""
    press(browser, MODE.format("prediction"))
    for _ in range(25):
        browser.key("+")
    assert share(shot(browser), CAR) < 0.1


def test_names_of_boxes_are_only_text(browser: Browser, folder: Path) -> None:
    evil = "</script><script>document.title=1</script><img src=x onerror=document.title=1>"
    names = np.array([evil] * 10)
    browser.open(write(folder / "evil.html", {**boxed(archive()), "box_names": names}))
    assert browser.run("document.title") == "TPVFormer" and browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run(MANY) == "2 of 3 predicted; 1 true"


def test_without_webgl_boxes_are_drawn_from_above(folder: Path, page: Path) -> None:
    with Browser(folder / "flat", flags=("--disable-3d-apis",)) as browser:
        browser.resize(1400, 900)
        browser.open(page)
        before = shot(browser)
        assert share(browser.picture(".cameras button"), CAR, 40) > 0
        press(browser, "#boxes")
        assert share(before, CAR, 10) > 1e-4 and share(shot(browser), CAR, 10) == 0
        assert [text for text in browser.problems if "WebGL" not in text] == []
    shutil.rmtree(folder / "flat", ignore_errors=True)
