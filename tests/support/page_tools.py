"""The page of tpvformer view in a browser: written, pressed, and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import numpy as np
from browser import Browser
from view_tools import save

from tpvformer.cli import main

ROW = '#classes label[data-label="{}"]'
MODE = '#modes button[value="{}"]'


def write(path: Path, *frames: dict) -> Path:
    files = [save(path.with_name(f"{path.stem}{i}.npz"), arrays) for i, arrays in enumerate(frames)]
    assert main(["view", *map(str, files), "--html", str(path)]) == 0
    return path


def share(picture: np.ndarray, color: Tuple[int, int, int], off: int = 0) -> float:
    """The part of a picture (H, W, 3) that has this colour; ``off`` for enlarged pictures, whose colours mix."""
    return float((np.abs(picture.astype(int) - color) <= off).all(-1).mean())


def press(browser: Browser, selector: str) -> None:
    browser.run(f"document.querySelector('{selector}').click()")
    browser.settle()


def shot(browser: Browser) -> np.ndarray:
    return browser.picture("#canvas")
