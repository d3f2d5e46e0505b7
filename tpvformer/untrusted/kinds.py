"""Identify the kind of a file by its first bytes, else by its suffix, for messages about wrong files."""

from __future__ import annotations

from pathlib import PurePath

HEAD = 1024  # bytes that are enough to tell
_BEGINNINGS = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89MCAP0\r\n", "an MCAP recording"),
    (b"#ROSBAG V", "a ROS bag"),
    (b"SQLite format 3\0", "an SQLite database, as ROS 2 records bags"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"LASF", "a LAS point cloud"),
    (b"# .PCD", "a PCD point cloud"),
    (b"ply\n", "a PLY point cloud"),
    (b"ply\r\n", "a PLY point cloud"),
    (b"PK\x03\x04", "a zip archive (.npz, .zip)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"%YAML", "a YAML file"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML file"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"GIF8", "a GIF image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"version https://git-lfs", "a pointer of Git LFS, whose file was not fetched (git lfs pull)"),
)
_SUFFIXES = {
    "a YAML file": ".yaml .yml",
    "a text file": ".txt .md .log .ini .cfg .toml .csv .tsv .rst",
    "an XML file": ".xml .urdf .launch .xacro",
    "a video": ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .wmv .flv .h264 .h265 .264 .265 .hevc .mjpeg .mjpg",
    "a recording": ".bag .db3 .mcap .rosbag .pcap",
    "an image": ".jpg .jpeg .png .bmp .webp .tif .tiff .gif .heic .pgm .ppm",
    "an array file": ".npy .npz .mat .h5 .hdf5",
    "a point cloud": ".bin .pcd .ply .las .laz .xyz .pts .e57",
    "an archive": ".zip .tar .tgz .gz .bz2 .xz .7z .rar",
    "a Python program": ".py .ipynb",
    "a web page": ".html .htm",
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}


def kind_by_head(head: bytes) -> str:
    """Return the kind of a file with these first bytes, such as "an MP4 video"; empty if unknown."""
    if head[4:8] == b"ftyp":
        return "a HEIF image" if head[8:12] in (b"heic", b"heix", b"mif1", b"avif") else "an MP4 or QuickTime video"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "an AVI video"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), "")


def kind_of(path: PurePath, head: bytes) -> str:
    """Return the kind by first bytes, else by suffix. A YAML file that holds a camera's calibration is called so."""
    kind = kind_by_head(head) or kind_by_suffix(path.name)
    if kind == "a YAML file" and any(key in head for key in (b"distortion_model", b"camera_matrix", b"image_width")):
        return "a YAML file of one camera's intrinsics, as ROS' calibrator writes"
    return kind


def kind_by_suffix(name: str) -> str:
    """Return the kind of a file by its suffix."""
    return _BY_SUFFIX.get(PurePath(name).suffix.lower(), "")
