"""Images that say to be larger than they are: refused by their header, before memory for them is made."""

from __future__ import annotations

import dataclasses
import resource
import struct
from pathlib import Path
from typing import Dict

import cv2
import numpy as np
import pytest
from engine_tools import POINTS, tiny_config
from tiny_nuscenes import write_tiny

from tpvformer.data.dataset import FrameDataset
from tpvformer.data.images import decode as images
from tpvformer.data.images.header import declared_size, too_large
from tpvformer.data.images.jpeg_scans import too_many_scans
from tpvformer.errors import DataError

PICTURE = np.random.RandomState(0).randint(0, 255, (45, 77, 3), np.uint8)


def encoded(kind: str, picture: np.ndarray = PICTURE, *options: int) -> bytes:
    return cv2.imencode(kind, picture, options)[1].tobytes()


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = next(i for i in range(len(jpeg)) if jpeg[i] == 0xFF and jpeg[i + 1] in (0xC0, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


BASE, PROGRESSIVE = encoded(".jpg"), encoded(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
PNG = encoded(".png")
BOMBS: Dict[str, bytes] = {
    "65000 a side": with_size(BASE, 65000, 65000),
    "30000 a side": with_size(BASE, 30000, 30000),
    "30000 a side, progressive": with_size(PROGRESSIVE, 30000, 30000),
    "7000 a side in few bytes": with_size(BASE, 7000, 7000),
    "PNG of 60000 a side": PNG[:16] + struct.pack(">II", 60000, 60000) + PNG[24:],
    "a second frame": BASE[:2] + b"\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 60000, 60000) + b"\1\1\x11\0" + BASE[2:],
}


def test_png_whose_chunk_ends_behind_the_file(tmp_path: Path) -> None:
    """OpenCV would take the 3.6 GiB that the chunk declares."""
    at = PNG.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(PNG[:at] + struct.pack(">I", 0xE7000000) + PNG[at + 4 :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="a.png is no whole image"):
        images.read_image(tmp_path / "a.png", "t")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("fast", [True, False])
def test_bombs(tmp_path: Path, kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FAST", fast and images.FAST)
    (tmp_path / "a.jpg").write_bytes(BOMBS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="says to have|cannot hold"):
        images.read_images([tmp_path / "a.jpg"] * 6, "t")
    with pytest.raises(DataError, match="says to have|cannot hold"):
        images.read_image(tmp_path / "a.jpg", "t")
    with pytest.raises(DataError, match="its camera is said to have 77x45"):
        images.read_image(tmp_path / "a.jpg", "t", (77, 45))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def scans(count: int, jpeg: bytes = PROGRESSIVE) -> bytes:
    """Its last scan over and over: ten bytes each, and each makes a decoder go over all pixels."""
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * count + jpeg[-2:]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("jpeg", [BASE, PROGRESSIVE])
def test_very_many_scans(tmp_path: Path, jpeg: bytes, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FAST", fast and images.FAST)
    (tmp_path / "a.jpg").write_bytes(scans(101, jpeg))
    for read in (images.read_image, lambda path, token: images.read_images([path] * 6, token)):
        with pytest.raises(
            DataError, match="sample t: .*a.jpg has more than 100 scans of its pixels; expected 1 to 20"
        ):
            read(tmp_path / "a.jpg", "t")


def test_scans_of_real_files() -> None:
    """Those in a comment, in a preview or behind the end are not counted."""
    comment = b"\xff\xfe\x20\x02" + b"\xff\xda\x00\x08" * 2048
    for data in (BASE, PROGRESSIVE, BASE[:2] + comment + BASE[2:], BASE + comment, PNG, BASE[:2], scans(60)):
        assert too_many_scans(data) == ""
    assert too_many_scans(BASE[:2] + comment + scans(101)[2:])


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp"])
def test_sizes_of_real_files(kind: str) -> None:
    for height, width in ((1, 1), (45, 77), (900, 1600)):
        for picture in (np.zeros((height, width, 3), np.uint8), np.full((height, width, 3), 200, np.uint8)):
            data = encoded(kind, picture)
            assert declared_size(data) == (width, height) and not too_large((width, height), len(data))
    for options in (
        (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
        (cv2.IMWRITE_JPEG_QUALITY, 1),
    ):
        flat = encoded(".jpg", np.zeros((2000, 3000, 3), np.uint8), *options)
        assert declared_size(flat) == (3000, 2000) and not too_large((3000, 2000), len(flat)), options


def test_no_bytes_end_the_process(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    for _ in range(300):
        data = bytearray(BASE)
        for _ in range(rng.randint(1, 6)):
            data[rng.randint(2, len(data))] = rng.randint(256)
        size = declared_size(bytes(data[: rng.randint(0, len(data))]))
        assert size is None or all(0 <= side < 2**16 for side in size)
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            images.read_image(tmp_path / "a.jpg", "t")
        except DataError as err:
            assert "\n" not in str(err)


def test_another_sample_stands_in(tmp_path: Path) -> None:
    cfg = write_tiny(tmp_path, POINTS)
    for path in tmp_path.glob("samples/CAM_BACK/*__1.jpg"):
        path.write_bytes(BOMBS["65000 a side"])
    config = tiny_config(cfg)
    data = FrameDataset(cfg, config.model.grid, "train", 0)
    with pytest.raises(DataError, match="65000x65000"):
        data[1]
    skips = FrameDataset(dataclasses.replace(cfg, on_bad_sample="skip"), config.model.grid, "train", 0)
    assert "65000x65000" in skips[1].replaced
