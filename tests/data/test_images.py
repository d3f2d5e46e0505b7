"""Both decoders give the same bytes, and what is no ordinary JPEG is read or refused as ever."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import List

import cv2
import numpy as np
import pytest

from tpvformer.data.frames import read_frame
from tpvformer.data.images import decode as images
from tpvformer.data.images import jpeg_scans
from tpvformer.data.images.decode import read_images
from tpvformer.data.rig.from_arrays import given_record
from tpvformer.errors import DataError

SAMPLING = {
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
}


def natural(height: int, width: int) -> np.ndarray:
    """Soft shapes under fine noise."""
    rng = np.random.RandomState(0)
    coarse = cv2.resize(rng.randint(0, 256, (height // 20, width // 20, 3)).astype(np.uint8), (width, height))
    return cv2.add(coarse, rng.randint(0, 30, coarse.shape).astype(np.uint8))


class Opened:
    """What PIL gives for a file, as far as it is asked."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.mode = array, {2: "L", 3: "RGBA"}[array.ndim]

    def convert(self, mode: str) -> Opened:
        raise AssertionError("it must not be asked for another mode, because that hides alpha")

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self._array


def encoded(image: np.ndarray, *options: int, kind: str = ".jpg") -> bytes:
    return cv2.imencode(kind, image, list(options))[1].tobytes()


def written(folder: Path, *files: bytes) -> List[Path]:
    paths = [folder / f"{i}.jpg" for i in range(len(files))]
    for path, data in zip(paths, files):
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize("sampling", sorted(SAMPLING))
@pytest.mark.parametrize("extra", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_QUALITY, 40)])
@pytest.mark.parametrize("size", [(900, 1600), (45, 77)])
def test_decoders_are_bit_equal(tmp_path, monkeypatch, sampling, extra, size):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed, so OpenCV alone decodes")
    data = encoded(natural(*size), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[sampling], *extra)
    paths = written(tmp_path, data, data)
    monkeypatch.setattr(images, "_opencv", None)  # it must not be asked
    ours = read_images(paths, "t").numpy()
    monkeypatch.undo()
    monkeypatch.setattr(images, "FAST", False)
    theirs = read_images(paths, "t").numpy()
    assert np.array_equal(ours, theirs)
    assert np.array_equal(theirs[1], cv2.imread(str(paths[1])))


def test_other_formats_are_left_to_opencv(tmp_path):
    image = natural(60, 80)
    jpeg = encoded(image)
    out = read_images(written(tmp_path, jpeg, encoded(image, kind=".png")), "t").numpy()
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(out, [decoded, image])


def test_grey_and_an_alpha_that_says_nothing(tmp_path):
    """Grey stands for all three colours, an alpha that is the same everywhere is left out; files and arrays alike."""
    image = natural(60, 80)
    grey = image[..., 0]
    jpeg = cv2.imdecode(np.frombuffer(encoded(grey), np.uint8), cv2.IMREAD_GRAYSCALE)
    for alpha in (255, 0):
        opaque = np.dstack([image, np.full_like(grey, alpha)])
        data = (encoded(opaque, kind=".png"), encoded(grey, kind=".png"), encoded(grey))
        out = read_images(written(tmp_path, *data), "t").numpy()
        assert np.array_equal(out[0], image) and np.array_equal(out[1], np.dstack([grey] * 3))
        assert np.array_equal(out[2], np.dstack([jpeg] * 3))
        rig = {"a": np.diag([50.0, 50, 1, 1]), "b": np.diag([50.0, 50, 1, 1]), "c": np.diag([50.0, 50, 1, 1])}
        colours = np.dstack([image[..., ::-1], np.full_like(grey, alpha)])
        for given in (
            (colours, grey, grey[..., None]),
            (Opened(colours), Opened(grey), Opened(grey)),
        ):
            frame = read_frame(given_record(dict(zip("abc", given)), rig))
            assert np.array_equal(frame.images[0], image) and np.array_equal(
                frame.images[1:], [np.dstack([grey] * 3)] * 2
            )
    with pytest.raises(DataError, match="image a is transparent in places"):
        given_record({"a": np.dstack([image, grey])}, {"a": np.diag([50.0, 50, 1, 1])})


@pytest.mark.skipif(not images.FAST, reason="OpenCV hides what libjpeg warns of")
@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_what_the_decoder_warns_of_is_a_fault(tmp_path, place):
    """A piece that is gone: begin and end are there, the pixels are not."""
    jpeg = encoded(natural(300, 400))
    start = int(place * len(jpeg)) - 1000
    (path,) = written(tmp_path, jpeg[:start] + jpeg[start + 1000 :])
    for read in (lambda: read_images([path], "t"), lambda: images.read_image(path, "t")):
        with pytest.raises(DataError, match=r"sample t: .* is damaged \(Corrupt JPEG data: .*; copy the file again"):
            read()


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    "extra",
    [
        (cv2.IMWRITE_JPEG_QUALITY, 90),
        (cv2.IMWRITE_JPEG_QUALITY, 30),
        (cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
)
def test_small_holes_that_decoders_pass_over(tmp_path, monkeypatch, extra, installed):
    """64 zero bytes wherever pixels are coded. Of such files libjpeg lets up to four in five pass without a word."""
    monkeypatch.setattr(images, "FAST", installed and images.FAST)
    jpeg = encoded(natural(300, 400), *extra)
    first = jpeg.index(b"\xff\xda") + 14
    for place in np.linspace(first, len(jpeg) - 2 - 64, 60).astype(int):
        paths = written(tmp_path, jpeg[:place] + bytes(64) + jpeg[place + 64 :])
        with pytest.raises(DataError, match=r"sample t: .* is damaged \(zeros from byte \d+ on, where its pixels"):
            read_images(paths, "t")


def test_zeros_that_belong_there(tmp_path):
    """In a comment, a table, behind the end, and as flat pixels in files whose codes allow that."""
    flat, soft = np.full((200, 300, 3), 255, np.uint8), natural(300, 400)
    comment = b"\xff\xfe\x04\x02" + bytes(1024)
    for data in (
        encoded(soft)[:2] + comment + encoded(soft)[2:],
        encoded(soft)[:2] + b"\xff\xdb\x00\x43\x03" + bytes(64) + encoded(soft)[2:],
        encoded(soft) + bytes(1000),
        encoded(flat, cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        encoded(flat, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(soft, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(soft, cv2.IMWRITE_JPEG_QUALITY, 100),
    ):
        assert jpeg_scans.hole(data) < 0
        read_images(written(tmp_path, data), "t")
    assert bytes(jpeg_scans.HOLE) in encoded(flat, cv2.IMWRITE_JPEG_OPTIMIZE, 1)


@pytest.mark.parametrize("installed", [True, False])
def test_refused(tmp_path, monkeypatch, installed):
    if not installed:
        monkeypatch.setattr(images, "FAST", False)
    image = natural(60, 80)
    jpeg = encoded(image)
    for data, message in (
        (jpeg[:-200], "no whole image"),
        (jpeg[:300] + jpeg[-2:], "no whole image"),
        (b"\xff\xd8 nothing \xff\xd9", "no whole image"),
        (b"", "no whole image"),
        (encoded(np.dstack([image, image[..., 0]]), kind=".png"), r"is transparent in places \(alpha 9 to 240\)"),
        (encoded(image[..., 0].astype(np.uint16), kind=".png"), r"uint16 \(60, 80\); expected an 8-bit"),
        (b"\0\0\0\x20ftypisom" + bytes(99), "no whole image, but an MP4 or QuickTime video; .* write its frames"),
        (b"\x1aE\xdf\xa3" + bytes(99), "but a Matroska or WebM video"),
        (b"RIFF" + bytes(4) + b"AVI LIST", "but an AVI video"),
        (b"#ROSBAG V2.0\n" + bytes(99), "but a ROS bag; .* name the camera's image"),
        (encoded(image.astype(np.uint16), kind=".png"), r"uint16 \(60, 80, 3\); expected an 8-bit"),
    ):
        with pytest.raises(DataError, match=message):
            read_images(written(tmp_path, jpeg, data), "t")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.webp", "is a WebP image; expected a JPEG, PNG or BMP"), ("a.tiff", "is a TIFF image; expected a JPEG, PNG")],
)
def test_whole_images_of_other_kinds_are_not_called_damaged(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(cv2.imencode(path.suffix, natural(40, 60))[1].tobytes())
    with pytest.raises(DataError, match=text) as caught:
        read_images([path], "t")
    assert "copy the file" not in str(caught.value)


def test_a_file_that_git_lfs_did_not_fetch(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match="a pointer of Git LFS, whose file was not fetched"):
        read_images([tmp_path / "a.jpg"], "t")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpeg_that_viewers_turn_is_refused(tmp_path: Path, order: str) -> None:
    plain = cv2.imencode(".jpg", natural(40, 60))[1].tobytes()
    path = tmp_path / "a.jpg"
    for turn in (0, 1, 3, 6, 9):
        entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, turn, 0)
        tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 1) + entry + bytes(4)
        exif = b"Exif\0\0" + tiff
        path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
        if turn in (3, 6):
            with pytest.raises(DataError, match=rf"EXIF orientation {turn}.*write it upright"):
                read_images([path], "t")
        else:
            assert read_images([path], "t").shape == (1, 40, 60, 3)
