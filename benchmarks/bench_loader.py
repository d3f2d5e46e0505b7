"""Measure the CPU time of one training sample from disk to batch, relative to decoding its six JPEGs alone, and the
samples a second that the training process gets from one and from two workers.

    python benchmarks/bench_loader.py [--infos FILE --root FOLDER --version NAME] [--repeats 15] [--out FILE]

Without a data set it writes one sample: six images 900x1600 with a natural spectrum (quality 92) and a lidar turn.
Variants are interleaved in one process on one thread; medians of CPU time are printed. Workers are measured by wall
time, interleaved as well: other work on the machine changes their numbers, but less their ratios. All numbers are also
printed as one line of JSON. Pixels and labels are first compared, bit by bit, with those of the specified pipeline
(tests/support/specified.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import specified  # noqa: E402
import torch  # noqa: E402
from tiny_nuscenes import CAMERAS, VERSION, write_tiny  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402

from tpvformer.config import DataConfig, GridConfig  # noqa: E402
from tpvformer.data.dataset import FrameDataset  # noqa: E402
from tpvformer.data.formats import load_infos  # noqa: E402
from tpvformer.data.images import decode as images  # noqa: E402
from tpvformer.data.images.preprocess import network_images  # noqa: E402
from tpvformer.data.loader import collate, start_worker  # noqa: E402
from tpvformer.data.nuscenes.reader import resolve  # noqa: E402
from tpvformer.data.types import Batch  # noqa: E402
from tpvformer.data.voxels.voxelize import grid_index, occupied_voxels, vote  # noqa: E402
from tpvformer.engine.bench.inputs import POINTS, lidar_turn  # noqa: E402

DECODE, DECODE_CV2 = "decode, fastest decoder", "decode, OpenCV"
LOADER, SHARED = "sample and batch", "the same into memory that processes share"
CACHED, CACHED_SHARED = "sample and batch, images from the cache", "cached, into memory that processes share"
SAMPLES = 24  # an epoch of the measured loaders
CHECKED = 5  # epochs whose draws are compared
SPECIFIED = "specified pipeline, NumPy and OpenCV, float32"


def natural_image(height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw (height, width, 3) uint8 with a spectrum that falls with frequency, as that of photographs."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    noise = (np.fft.rfft2(rng.randn(height, width)) for _ in range(4))
    grey, *colours = (np.fft.irfft2(spectrum * falloff, (height, width)) for spectrum in noise)
    image = np.stack([grey + 0.1 * colour for colour in colours], -1)
    return np.clip(image / image.std() * 40 + 120, 0, 255).astype(np.uint8)


def write_sample(root: Path) -> DataConfig:
    """Write a data set of one sample of nuScenes' size."""
    rng = np.random.RandomState(0)
    cfg = write_tiny(root, points=(POINTS,))
    for camera in CAMERAS:
        data = cv2.imencode(".jpg", natural_image(900, 1600, rng), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (root / "samples" / camera / f"log__{camera}__0.jpg").write_bytes(data.tobytes())
    points, _ = lidar_turn(POINTS, rng)
    scan = np.concatenate([points, np.zeros((POINTS, 2), np.float32)], 1)
    (root / "samples/LIDAR_TOP/log__LIDAR_TOP__0.pcd.bin").write_bytes(scan.tobytes())
    return cfg


def decode(files: List[bytes]) -> None:
    for data in files:
        if images.FAST:
            images.simplejpeg.decode_jpeg(data, "BGR")
        else:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def decode_cv2(files: List[bytes]) -> List[np.ndarray]:
    return [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in files]


def shared(dataset: FrameDataset) -> Batch:
    """Make a batch in shared memory, as a loader's worker does."""
    images.get_worker_info = lambda: True
    try:
        return collate([dataset[0]], 0)
    finally:
        images.get_worker_info = torch.utils.data.get_worker_info


def interleaved(variants: Dict[str, Callable[[], object]], prepare: Callable[[int], None], repeats: int) -> Dict:
    """Return the median CPU milliseconds of each variant.

    Each runs twice in its turn, and the second run counts: it reuses the memory that the first one freed, as the next
    sample of a training does, not the memory of another variant.
    """
    times: Dict[str, List[float]] = {name: [] for name in variants}
    for repeat in range(repeats):
        prepare(repeat)
        for name, run in variants.items():
            run()
            before = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - before))
    return {name: statistics.median(values) for name, values in times.items()}


def worker_loader(dataset: FrameDataset, workers: int) -> DataLoader:
    """Return the training loader over the first sample, repeated."""
    return DataLoader(
        Subset(dataset, [0] * SAMPLES),
        num_workers=workers,
        collate_fn=partial(collate, ignore_label=0),
        persistent_workers=True,
        worker_init_fn=start_worker,
    )


def rates(loaders: Dict[str, DataLoader], repeats: int) -> Dict[str, float]:
    """Return the median samples a second of the interleaved loaders; the first epoch starts the workers, uncounted."""
    found: Dict[str, List[float]] = {name: [] for name in loaders}
    for repeat in range(repeats + 1):
        for name, loader in loaders.items():
            began = time.perf_counter()
            for _ in loader:
                pass
            if repeat:
                found[name].append(SAMPLES / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def measure(cfg: DataConfig, labelled: bool, repeats: int, cache: str) -> Dict:
    """Check that both pipelines agree, then time them. The data set's first sample is read repeatedly."""
    grid = GridConfig()
    dataset = FrameDataset(cfg, grid, "train", seed=0, require_labels=labelled)
    with_cache = FrameDataset(replace(cfg, image_cache=cache), grid, "train", seed=0, require_labels=labelled)
    record = load_infos(cfg.train_infos)[0]
    files = [resolve(path, cfg.root, record.token).read_bytes() for path in record.images]
    frame, epoch = dataset.load_frame(0), 0

    def draws() -> np.random.RandomState:
        return np.random.RandomState([0, epoch, 0])  # the data set's own stream

    def prepare(repeat: int) -> None:
        nonlocal epoch
        epoch = repeat
        dataset.set_epoch(epoch)

    def as_specified() -> np.ndarray:
        index = grid_index(frame.points, grid.shape, grid.pc_range)
        cells, rows = occupied_voxels(index, grid.shape)
        vote(frame.labels, rows, cells, grid.shape, cfg.fill_label)
        return specified.network_images(decode_cv2(files), cfg, draws())

    index, labels = specified.voxel_labels(frame.points, frame.labels, grid.shape, grid.pc_range, cfg.fill_label)
    for repeat in range(CHECKED):
        prepare(repeat)
        batch = collate([dataset[0]], 0)
        if not np.array_equal(network_images(batch, cfg)[0].numpy(), as_specified()):
            sys.exit(f"bench_loader: pixels differ from the specified pipeline's in epoch {repeat}")
        if not (np.array_equal(batch.grid_index[0], index) and np.array_equal(batch.voxel_labels[0], labels)):
            sys.exit("bench_loader: voxels differ from the specified pipeline's")
    variants: Dict[str, Callable[[], object]] = {
        DECODE: lambda: decode(files),
        DECODE_CV2: lambda: decode_cv2(files),
        LOADER: lambda: collate([dataset[0]], 0),
        SHARED: lambda: shared(dataset),
        CACHED: lambda: collate([with_cache[0]], 0),
        CACHED_SHARED: lambda: shared(with_cache),
        SPECIFIED: as_specified,
    }
    milliseconds = interleaved(variants, prepare, repeats)
    loaders = {
        f"{name}, {workers} worker{'s' * (workers > 1)}": worker_loader(data, workers)
        for name, data in (("decoded", dataset), ("from the cache", with_cache))
        for workers in (1, 2)
    }
    return {
        "samples_per_s": {
            "one process, no workers, by its CPU time": round(1e3 / milliseconds[LOADER], 2),
            **{name: round(value, 2) for name, value in rates(loaders, max(3, repeats // 3)).items()},
        },
        "milliseconds": {name: round(value, 2) for name, value in milliseconds.items()},
        "ratio": round(milliseconds[LOADER] / milliseconds[DECODE], 3),
        "images": list(frame.images.shape),
        "jpeg_kb": round(sum(map(len, files)) / 1e3),
        "points": len(frame.points),
        "decoder": "simplejpeg" if images.FAST else "OpenCV",
        "pixels_and_labels": f"bit-equal to the specified pipeline in {CHECKED} epochs",
        "repeats": repeats,
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "opencv": cv2.__version__, "numpy": np.__version__},
    }


def table(result: Dict) -> str:
    base = result["milliseconds"][DECODE]
    rows = [f"{'CPU time of one sample, one thread':<44} {'ms':>8} {'ratio':>7}"]
    rows += [f"{name:<44} {value:>8.1f} {value / base:>7.2f}" for name, value in result["milliseconds"].items()]
    rows += [f"{'samples a second by the clock':<44} {'':>8} {'ratio':>7}"]
    first = next(iter(result["samples_per_s"].values()))
    rows += [f"{name:<44} {value:>8.1f} {value / first:>7.2f}" for name, value in result["samples_per_s"].items()]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--infos", help="info pickle of a data set (default: one sample is written)")
    parser.add_argument("--root", default="data/nuscenes", help="folder of its files (default: %(default)s)")
    parser.add_argument("--version", default=VERSION, help="name of its table folder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.infos:
            cfg = DataConfig(root=args.root, version=args.version, train_infos=args.infos)
        else:
            cfg = replace(write_sample(Path(folder)), photometric=True, grid_mask=True)
        labelled = Path(cfg.root, cfg.version, "lidarseg.json").is_file()
        result = measure(cfg, labelled, args.repeats, str(Path(folder, "cache")))
    text = json.dumps(result)
    print(table(result))
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
