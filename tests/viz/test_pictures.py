"""Pictures: points land where they project, voxels lie as seen from above, and the command answers mistakes."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import pytest
from tiny_nuscenes import CAMERAS, write_tiny

from tpvformer.commands import check_geometry
from tpvformer.errors import ConfigError
from tpvformer.geometry import inside, project
from tpvformer.labels import COLORS
from tpvformer.viz.paint import GAP, TILE_WIDTH, paint_points
from tpvformer.viz.picture import frame_picture, title_of, write_png
from tpvformer.viz.top_view import voxel_top_view

CAMERA = np.array([[100.0, 320, 0, 0], [0, 180, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # looks along y from the origin


def bgr(label: int) -> list:
    return list(COLORS[label][::-1])


def test_project_and_inside():
    points = np.array([[0, 10, 0], [0, 0.9, 0], [0, -10, 0], [-32, 10, 0], [32, 10, 0], [0, 0, 5]])
    pixels, depth = project(points, CAMERA)
    assert pixels[0].tolist() == [320, 180]
    assert depth.tolist() == [10, 0.9, -10, 10, 10, 0]
    assert inside(pixels, depth, 360, 640).tolist() == [True, False, False, True, False, False]


def test_a_point_is_painted_in_its_class_colour_where_it_projects():
    images = [np.zeros((360, 640, 3), np.uint8)] * 6
    points = np.array([[1.0, 10.0, 0.5]])  # u = 330, v = 175
    picture = paint_points(images, points, np.array([4]), np.stack([CAMERA] * 6), CAMERAS)
    assert picture.shape == (2 * 360 + GAP, 3 * TILE_WIDTH + 2 * GAP, 3)
    for top in (0, 360 + GAP):
        for column in range(3):
            assert picture[top + 175, column * (TILE_WIDTH + GAP) + 330].tolist() == bgr(4)


def test_cameras_are_placed_as_one_looks_around():
    images = [np.full((360, 640, 3), 10 * i, np.uint8) for i in range(6)]
    picture = paint_points(images, np.zeros((0, 3)), None, np.stack([CAMERA] * 6), CAMERAS)
    middle = picture[180 :: 360 + GAP, 320 :: TILE_WIDTH + GAP, 0]
    assert middle.tolist() == [[20, 0, 10], [40, 30, 50]]


@pytest.mark.parametrize(("count", "shape"), [(1, (1080, 1920)), (2, (540, 1924)), (4, (724, 1928)), (8, (1088, 1928))])
def test_other_rigs(count, shape):
    images = [np.zeros((45, 80, 3), np.uint8)] * count
    assert paint_points(images, np.zeros((0, 3)), None, np.stack([CAMERA] * count)).shape[:2] == shape


def test_top_view_lies_forward_up_and_right_right():
    voxels = np.zeros((4, 4, 3), np.uint8)
    voxels[3, 3, 2] = 7  # right, ahead, top: full brightness
    voxels[0, 3, 0] = 11  # left, ahead, on the ground and hidden below a car
    voxels[0, 3, 2] = 4
    voxels[:, 0, 1] = 17  # empty space behind
    view = voxel_top_view(voxels, 400)
    assert view.shape == (400, 400, 3)
    assert view[50, 350].tolist() == bgr(7)
    assert view[50, 50].tolist() == bgr(4)
    assert view[350, 350].tolist() == view[150, 50].tolist()  # empty is drawn as nothing


def test_frame_picture_has_all_parts():
    images = [np.zeros((90, 160, 3), np.uint8)] * 6
    voxels = np.zeros((18, 14, 5), np.uint8)
    points, labels = np.array([[0.0, 10, 0]]), np.array([4])
    picture = frame_picture(images, CAMERAS, np.stack([CAMERA] * 6), points, labels, voxels, voxels, "a title")
    assert picture.shape == (1582, 1928, 3)
    assert picture.dtype == np.uint8


def test_a_picture_keeps_its_title_beside_its_pixels(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for title in ("", "demo: 89.5 % right"):
        write_png(tmp_path / "x.png", image, title)
        assert (cv2.imread(str(tmp_path / "x.png")) == image).all()
        assert title_of((tmp_path / "x.png").read_bytes()) == title


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    check_geometry.add_arguments(parser)
    args = parser.parse_args(words)
    return args.run(args)


@pytest.mark.parametrize("augment", [[], ["--augment"]])
def test_command_on_a_labelled_set(tmp_path, capsys, augment):
    cfg = write_tiny(tmp_path)
    out = tmp_path / "x.png"
    words = ["--infos", cfg.val_infos, "--root", cfg.root, "--version", cfg.version, "--out", str(out), "--index", "1"]
    assert run(*words, *augment) == 0
    assert "sample sample1: 70 points, 6 cameras" in capsys.readouterr().out
    assert cv2.imread(str(out)) is not None


def test_command_mistakes(tmp_path):
    cfg = write_tiny(tmp_path)
    words = ["--infos", cfg.val_infos, "--root", cfg.root]
    with pytest.raises(ConfigError, match="index is 3; the infos hold 3 samples, so expected 0 to 2"):
        run(*words, "--index", "3")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        run(*words, "--out", str(tmp_path / "file" / "x.png"))
