"""Measure the page of tpvformer view: its size, and the time from opening the file to the first 3-D picture, in
headless Chromium, which draws on the processor where there is no graphics card.

    python benchmarks/bench_view.py [RESULT ...] [--repeats 5] [--out FILE]

Without RESULTs it makes one frame of 200x200x16 voxels: a random street with houses, cars and trees, six pictures of
800x450, 34720 points; the prediction differs from the truth at random voxels. A browser is started for each repeat. The
page measures the time itself: from the start of navigation until a pixel can be read back from the drawn picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np  # noqa: E402
from browser import CHROMIUM, Browser  # noqa: E402
from view_tools import Arrays, archive, save  # noqa: E402

from tpvformer.engine.device.accelerator import pick_device  # noqa: E402
from tpvformer.engine.logging.environment import environment_info  # noqa: E402
from tpvformer.predict.read_results import read_results  # noqa: E402
from tpvformer.viz.viewer import write_page  # noqa: E402


def street(grid: Sequence[int] = (200, 200, 16), points: int = 34720) -> Arrays:
    """Make a frame with free space as class 17."""
    rng, (x, y, z) = np.random.RandomState(0), tuple(grid)
    truth = np.full((x, y, z), 17, np.uint8)
    truth[:, :, 1] = 14
    truth[2 * x // 5 : 3 * x // 5, :, 1] = 11
    for label, count, reach, height in ((15, 24, 12, z - 2), (4, 40, 4, 4), (16, 60, 3, 8), (7, 40, 1, 5)):
        for _ in range(count):
            i, j = rng.randint(0, x), rng.randint(0, y)
            truth[max(i - reach, 0) : i + reach, max(j - reach, 0) : j + reach, 2 : 2 + height] = label
    wrong = rng.rand(x, y, z) < 0.02
    voxels = np.where(wrong, np.roll(truth, 3, 0), truth)
    full = archive((x, y, z), 6, (800, 450), voxels=voxels, true_voxels=truth)
    places = rng.uniform((-50, -50, -4), (50, 50, 2), (points, 3)).astype(np.float32)
    labels = rng.randint(1, 17, points).astype(np.uint8)
    full.update(points=places, point_labels=labels, true_point_labels=labels)
    full.update(class_names=np.array([*full["class_names"], "empty"]))
    full.update(pc_range=np.array([-51.2, -51.2, -5, 51.2, 51.2, 3]))
    return full


def measure(results: Sequence[Path], repeats: int, folder: Path) -> Dict[str, Any]:
    page = folder / "page.html"
    with page.open("wb") as file:
        write_page(file, read_results(results), "bench_view")
    first: List[float] = []
    for i in range(repeats):
        with Browser(folder / f"profile{i}") as browser:
            browser.resize(1400, 900)
            browser.open(page)
            browser.wait("document.documentElement.dataset.firstPicture > 0")
            first.append(browser.run("Number(document.documentElement.dataset.firstPicture)") / 1000)
            assert not browser.problems, browser.problems
    seconds = {"median": statistics.median(first), "min": min(first), "max": max(first)}
    return {"page_mb": page.stat().st_size / 1e6, "first_picture_s": seconds, "repeats": repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("bench_view: no Chromium is installed (apt install chromium)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = args.results or [save(folder / "street.npz", street())]
        numbers = measure(results, args.repeats, folder)
    first = numbers["first_picture_s"]
    print(f"page: {numbers['page_mb']:.1f} MB")
    print(
        f"first picture: {first['median']:.2f} s (median of {args.repeats}; {first['min']:.2f} to {first['max']:.2f})"
    )
    numbers = {**environment_info(pick_device("cpu")[0], "tpvformer"), **numbers}
    if args.out is not None:
        args.out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
