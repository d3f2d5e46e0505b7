"""Measure what augmentation in space, crops of images and balanced classes cost the processor.

    python benchmarks/bench_augment.py [--height 900] [--repeat 3]

CPU time of this process on one thread: the preprocessing of six images without and with crops, without distortion; the
turn of one sample's dense labels; the classes of 28,130 frames with 35 boxes each, and of as many label files of 34,720
points, which are in memory after the first reading. The last two are measured on a hundredth and scaled up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import torch  # before OpenCV: see "static TLS" in docs/ascend.md

# isort: split
import cv2
import numpy as np

from tpvformer.config import GridConfig
from tpvformer.data.augment import moved_labels, scene_matrix
from tpvformer.data.balance import box_classes
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.images.crops import draw_crops
from tpvformer.data.images.preprocess_opencv import fill
from tpvformer.data.nuscenes.reader import classes_in
from tpvformer.data.record import Record
from tpvformer.data.types import DenseLabels

PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--height", type=int, default=900, help="of the images, which are 16:9 (default: %(default)s)")
PARSER.add_argument("--repeat", type=int, default=3, help="of which the median counts (default: %(default)s)")
FRAMES, PART, BOXES, POINTS = 28_130, 281, 35, 34_720


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Return the median CPU time of ``work``, which is called once before."""
    work()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def record(rng: np.random.RandomState) -> Record:
    places, ones = rng.uniform(-60, 60, (BOXES, 3)).astype(np.float32), np.ones((BOXES, 3), np.float32)
    boxes = Boxes(places, ones, ones[:, 0], ones[:, :2], rng.randint(0, 10, BOXES), points=rng.randint(0, 9, BOXES))
    return Record("", "", (), (), np.zeros((0, 4, 4)), boxes=boxes)


def main() -> None:
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rng, height, width = np.random.RandomState(0), args.height, args.height * 16 // 9
    images = torch.from_numpy(rng.randint(0, 256, (6, height, width, 3)).astype(np.uint8))
    crops = torch.from_numpy(draw_crops(rng, 6, height, width, (0.9, 1.1), True))
    out = torch.zeros(6, height, width, 3)
    for name, drawn in (("without crops", None), ("with crops", crops)):
        taken = seconds(lambda drawn=drawn: fill(out, images, None, (100.0, 110.0, 120.0), drawn), args.repeat)
        print(f"six images of {height}x{width} {name}: {1000 * taken:.0f} ms")
    grid = GridConfig()
    dense = DenseLabels(*(rng.randint(0, 4, grid.shape).astype(np.uint8) for _ in range(2)))
    taken = seconds(lambda: moved_labels(dense, scene_matrix(grid, 10.0), grid, 255), args.repeat)
    print(f"dense labels and mask of {grid.shape}: {1000 * taken:.0f} ms")
    records = [record(rng) for _ in range(PART)]
    taken = seconds(lambda: box_classes(records, grid), args.repeat) * FRAMES / PART
    print(f"boxes of {FRAMES} frames: {taken:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.bin" for i in range(PART)]
        for file in files:
            rng.randint(0, 32, POINTS).astype(np.uint8).tofile(file)
        taken = seconds(lambda: [classes_in(file, "", 32) for file in files], args.repeat) * FRAMES / PART
    print(f"label files of {FRAMES} frames: {taken:.1f} s")


if __name__ == "__main__":
    main()
