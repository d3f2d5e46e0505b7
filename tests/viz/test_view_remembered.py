"""What only past frames saw is hatched: on the page, in pictures, and not where there is nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from page_tools import MODE, press, share, shot, write
from view_tools import archive, save

from tpvformer.labels import COLORS
from tpvformer.predict.read_results import read_result
from tpvformer.viz.video import video_frame

BARRIER, CAR = 1, 4
DARK = tuple(int(round(0.35 * part)) for part in COLORS[BARRIER])


def marked(**more: object) -> dict:
    """The left half of the grid was seen before: 10 of 20 voxels in each row."""
    mask = np.zeros((20, 20, 4), np.uint8)
    mask[:10] = 1
    return archive(remembered=mask, **more)


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")


@needs_browser
def test_the_page_hatches_them_until_it_is_switched_off(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", archive(), marked(token="second", number=1))
    with Browser(tmp_path / "profile") as browser:
        browser.resize(1400, 900)
        browser.open(page)
        press(browser, MODE.format("prediction"))
        hidden = "document.querySelector('#remembered-row').hidden"
        assert browser.run(hidden) and share(shot(browser), DARK, 2) == 0
        plain = share(shot(browser), COLORS[BARRIER])
        press(browser, "#next")
        browser.wait("document.querySelector('#where').textContent === '2 / 2'")
        browser.settle()
        assert not browser.run(hidden)
        assert browser.run("document.querySelector('#unseen').textContent") == "(200)", "of 400 drawn voxels"
        seen = shot(browser)
        assert share(seen, DARK, 2) > 0.1 * plain and 0.5 * plain < share(seen, COLORS[BARRIER]) < 0.95 * plain
        press(browser, "#remembered")
        assert share(shot(browser), DARK, 2) == 0 and share(shot(browser), COLORS[BARRIER]) == plain
        press(browser, "#remembered")
        press(browser, MODE.format("truth"))
        assert share(shot(browser), DARK, 2) == 0, "the truth is not remembered"
        assert browser.problems == []


@needs_browser
def test_without_webgl_they_are_darker(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", marked())
    with Browser(tmp_path / "profile", flags=("--disable-3d-apis",)) as browser:
        browser.open(page)
        darker = tuple(int(0.6 * part) for part in COLORS[BARRIER])
        assert share(shot(browser), darker, 2) == pytest.approx(share(shot(browser), COLORS[BARRIER], 2), rel=0.1)
        press(browser, "#remembered")
        assert share(shot(browser), darker, 2) == 0


def test_pictures_hatch_them_and_say_so(tmp_path: Path) -> None:
    plain, hatched = (video_frame(read_result(save(tmp_path / "a.npz", each))) for each in (archive(), marked()))
    assert plain.shape == hatched.shape, "frames of one video have one size"
    dark, whole = DARK[::-1], COLORS[BARRIER][::-1]
    assert share(plain, dark, 1) < 1e-4 < 1e-3 < share(hatched, dark, 1)
    assert share(hatched, whole) < share(plain, whole)
    nothing = archive(remembered=np.zeros((20, 20, 4), np.uint8))
    assert np.array_equal(video_frame(read_result(save(tmp_path / "b.npz", nothing))), plain)
