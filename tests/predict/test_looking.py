"""A result shows itself: as a page, as a picture, in a browser, in a notebook."""

from __future__ import annotations

import base64
import re
import sys
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List

import cv2
import numpy as np
import pytest
from api_tools import images_of
from browser import CHROMIUM, Browser
from rig_tools import THREE, write_rig

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.errors import ConfigError, DataError
from tpvformer.predict.result import Result, Results

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture()
def result(model: TPVFormer, rig: Path) -> Result:
    points = np.random.RandomState(0).uniform(-40, 40, (30, 3))
    return model.predict(images_of(rig), rig, points)


@pytest.fixture(autouse=True)
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)


def test_page_and_picture_are_those_of_the_command(result: Result, tmp_path: Path) -> None:
    archive = result.save(tmp_path / "given.npz")
    assert main(["view", str(archive), "--html", str(tmp_path / "v.html"), "--png", str(tmp_path / "png")]) == 0
    assert result.to_html(tmp_path / "deep" / "r.html") == tmp_path / "deep" / "r.html"
    page = (tmp_path / "v.html").read_text()
    assert (tmp_path / "deep" / "r.html").read_text() == page == result.to_html()
    assert "<title>A street</title>" in str(result.to_html(title="A street"))
    picture = result.plot(tmp_path / "r.png")
    expected = cv2.imread(str(tmp_path / "png" / "given.png"))[..., ::-1]
    assert picture.dtype == np.uint8 and np.array_equal(picture, expected), "RGB"
    assert np.array_equal(cv2.imread(str(tmp_path / "r.png"))[..., ::-1], expected)
    assert np.array_equal(result.plot(), expected)


def test_places_that_cannot_be_written(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"r.jpg; expected a name that ends in \.png"):
        result.plot(tmp_path / "r.jpg")
    for write in (result.plot, result.to_html, result.save):
        with pytest.raises(ConfigError, match="cannot be written"):
            write(tmp_path / "file" / "r.png")


def test_show_opens_a_browser_or_says_where_the_page_lies(result: Result, monkeypatch, capsys) -> None:
    asked: List[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or True)
    monkeypatch.setattr(sys, "platform", "linux")
    file = result.show()
    said = capsys.readouterr().out
    assert not asked and said == f"{file}: open it in any browser; none could be opened from here\n"
    assert file.read_text() == result.to_html()
    monkeypatch.setenv("DISPLAY", ":0")
    file = result.show()
    assert asked == [file.as_uri()] and capsys.readouterr().out == ""


def test_in_a_notebook_the_page_stands_below_the_cell(result: Result, monkeypatch, capsys) -> None:
    shown: List[Any] = []
    kernel = SimpleNamespace(kernel=object())
    display = SimpleNamespace(HTML=lambda text: text, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("a browser was opened"))
    result.show()
    assert len(shown) == 1 and shown[0].startswith("<iframe srcdoc=") and "<script" not in shown[0]
    del kernel.kernel  # IPython in a terminal has no place for a page
    result.show()
    assert len(shown) == 1 and "open it in any browser" in capsys.readouterr().out


def test_what_a_notebook_shows_by_itself(result: Result) -> None:
    text = result._repr_html_()
    data = re.fullmatch(r'<img alt="[^"<]*" src="data:image/jpeg;base64,([^"]+)".*', text, re.S)
    assert data and "<code>Result(6x5x4 voxels" in text and len(text) < 1_000_000
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data[1]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    whole = result.plot()
    small = cv2.resize(whole, (1200, picture.shape[0]), interpolation=cv2.INTER_AREA)
    assert picture.shape == small.shape and np.abs(picture.astype(int) - small).mean() < 5


def test_several_frames_are_one_page(model: TPVFormer, tmp_path: Path) -> None:
    rig = write_rig(tmp_path, THREE, (40, 30), labelled=False)
    results = model.predict(rig=rig)
    page = str(results.to_html())
    assert '"token": "frame0"' in page and '"token": "frame1"' in page
    assert results._repr_html_().endswith("</code>") and "Results(2 frames" in results._repr_html_()
    assert results.show().read_text() == page
    assert Results()._repr_html_() == "Results(0 frames: )"
    with pytest.raises(DataError, match="there are no frames to show"):
        Results().to_html()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
def test_the_page_opens_in_a_browser_and_in_a_cell(result: Result, tmp_path: Path) -> None:
    page = Path(result.to_html(tmp_path / "page.html"))
    source = page.read_text().replace("&", "&amp;").replace('"', "&quot;")
    cell = tmp_path / "cell.html"
    cell.write_text(f'<!doctype html><body><iframe srcdoc="{source}" style="width:100%;height:700px"></iframe>')
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert "given" in browser.run("document.body.innerText")
        browser.send("Page.navigate", url=cell.as_uri())
        browser.wait("document.querySelector('iframe')?.contentDocument?.documentElement?.dataset.ready === '1'")
        assert browser.problems == []
