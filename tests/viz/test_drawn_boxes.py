"""Boxes as lines: corners and edges, projections cut at the picture's borders, and the files that hold them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

import numpy as np
import pytest
from shown_boxes import CAR, boxed, some_boxes
from tiny_nuscenes import CAMERAS
from view_tools import archive, read_ply, save

from tpvformer.cli import main
from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.data.detection.corners import EDGES, LID, corners, headings
from tpvformer.geometry import inside, project, segments_in_image
from tpvformer.labels import CLASS_NAMES, COLORS
from tpvformer.predict.draw import above_view, vehicle_place
from tpvformer.predict.read_results import read_result
from tpvformer.viz.boxes import box_colors, lines_of, picture_boxes, predicted_lines
from tpvformer.viz.picture import frame_picture
from tpvformer.viz.ply import BAR
from tpvformer.viz.rerun_file import write_rerun
from tpvformer.viz.video import video_frame

CAMERA = np.array([[100.0, 320, 0, 0], [0, 180, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # looks along y from the origin
BLUE = COLORS[CLASS_NAMES.index("car")]


def one_box(yaw: float = 0.0, size: Any = (4, 2, 1), centre: Any = (10, 20, 1), velocity: Any = (0, 0)) -> Boxes:
    rows = (np.array([value], np.float32) for value in (centre, size, yaw, velocity))
    return Boxes(*rows, labels=np.array([CAR]), scores=np.ones(1, np.float32))


def test_corners_of_a_box_that_looks_along_x() -> None:
    rear_right, front_right, rear_left, front_left = (8, 19), (12, 19), (8, 21), (12, 21)
    expected = [(*place, z) for z in (0.5, 1.5) for place in (rear_right, front_right, rear_left, front_left)]
    assert corners(one_box())[0].tolist() == [list(corner) for corner in expected]
    assert headings(one_box())[0].tolist() == [[10, 20, 1.5], [12, 20, 1.5]]


def test_corners_turn_counter_clockwise_and_move_with_the_frame() -> None:
    quarter = corners(one_box(np.pi / 2))[0]
    assert quarter[1] == pytest.approx([11, 22, 0.5], abs=1e-5)  # looks along y: front, right
    boxes, turn = some_boxes(), np.eye(4)
    turn[:2, :2] = [[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]]
    turn[:3, 3] = 5, -3, 2
    expected = corners(boxes) @ turn[:3, :3].T + turn[:3, 3]
    assert corners(boxes.transformed(turn)) == pytest.approx(expected, abs=1e-4)


def test_edges_join_corners_along_the_axes_of_the_box() -> None:
    assert len({tuple(edge) for edge in EDGES.tolist()}) == 12
    lengths = np.linalg.norm(np.diff(corners(one_box(0.4))[0][EDGES], axis=1)[:, 0], axis=1)
    assert lengths == pytest.approx([4] * 4 + [2] * 4 + [1] * 4, abs=1e-5)
    assert set(LID.ravel().tolist()) == {4, 5, 6, 7} and all(edge in EDGES.tolist() for edge in LID.tolist())
    assert corners(Boxes.none()).shape == (0, 8, 3) and len(lines_of(Boxes.none(), np.empty((0, 3))).segments) == 0


def test_a_projected_edge_lies_where_its_points_project() -> None:
    """Dense points of each edge: those that are seen lie on the cut line, from its first to its last."""
    rng = np.random.RandomState(0)
    segments = rng.uniform(-12, 12, (300, 2, 3))
    size = (640, 360)
    ends, rows = segments_in_image(segments, CAMERA, size, 0.1)
    assert 30 < len(rows) < 300
    found = dict(zip(rows.tolist(), ends))
    parts = np.linspace(0, 1, 4001)[:, None]
    for i, (start, end) in enumerate(segments):
        pixels, depth = project(start + parts * (end - start), CAMERA)
        seen = inside(pixels, depth, size[1], size[0], 0.1)
        if seen.sum() > 1:
            first, last = pixels[seen][[0, -1]]
            step = np.abs(np.diff(pixels[seen], axis=0)).max() + 0.5
            assert np.abs(found[i][0] - first).max() <= 2 * step and np.abs(found[i][1] - last).max() <= 2 * step
        elif i in found:
            assert np.linalg.norm(found[i][1] - found[i][0]) < 5  # between two of the points


def test_lines_end_at_the_near_plane_and_at_the_border() -> None:
    through = np.array([[[0.0, -5, 1], [0, 10, 1]], [[0, -1, 0], [0, -2, 0]], [[-100, 10, 0], [100, 10, 0]]])
    ends, rows = segments_in_image(through, CAMERA, (640, 360))
    assert rows.tolist() == [0, 2]
    assert ends[0] == pytest.approx(
        np.array([[320, 0], [320, 170]])
    )  # z = 1 m is above the picture until y = 100 / 180 m
    assert ends[1] == pytest.approx(np.array([[0, 180], [640, 180]]))


def test_arrows_of_what_moves() -> None:
    assert len(lines_of(one_box(), np.zeros((1, 3))).segments) == 13
    for still in ((np.nan, np.nan), (0.1, 0.2)):
        assert len(lines_of(one_box(velocity=still), np.zeros((1, 3))).segments) == 13
    arrow = lines_of(one_box(velocity=(0, -4)), np.zeros((1, 3))).segments[13:]
    assert arrow[0].tolist() == [[10, 20, 1], [10, 16, 1]]
    assert (arrow[1:, 0] == [10, 16, 1]).all() and (arrow[1:, 1, 1] > 16.5).all()  # the point is at the far end


def test_classes_have_the_colours_of_voxels_of_their_name() -> None:
    colors = box_colors(DETECTION_CLASSES)
    assert [tuple(color) for color in colors.tolist()] == [COLORS[CLASS_NAMES.index(n)] for n in DETECTION_CLASSES]
    assert len(set(map(tuple, box_colors(("a", "b", "c")).tolist()))) == 3


def test_boxes_with_a_low_score_are_not_drawn() -> None:
    assert set(predicted_lines(some_boxes(), DETECTION_CLASSES).labels.tolist()) == {0, 8}  # the cone has 0.1
    assert len(predicted_lines(None, DETECTION_CLASSES).segments) == 0


@pytest.mark.parametrize("frame", ["lidar", "ego"])
def test_from_above_the_grids_corners_are_those_of_the_view(frame: str) -> None:
    grid = (-10.0, -20, -3, 30, 40, 1)
    (origin, ahead, left), depth = project(np.eye(3)[[2, 0, 1]] * [[0], [1], [1]], above_view(grid, frame))
    assert origin == pytest.approx(vehicle_place(grid, frame)) and depth.tolist() == [1, 1, 1]
    if frame == "lidar":  # x right, y up
        assert ahead[0] > origin[0] and left[1] < origin[1]
    else:  # x up, y to the left
        assert ahead[1] < origin[1] and left[0] < origin[0]
    corner = np.array([[-10.0, -20, 0], [30, 40, 0]])
    assert np.sort(project(corner, above_view(grid, frame))[0], axis=0) == pytest.approx(np.array([[0, 0], [1, 1]]))


def test_the_picture_of_one_frame_differs_where_the_boxes_are() -> None:
    images = [np.zeros((360, 640, 3), np.uint8)] * 6
    voxels = np.zeros((18, 14, 5), np.uint8)
    no_points = np.zeros((0, 3)), np.zeros(0, np.int64)
    rest = (images, CAMERAS, np.stack([CAMERA] * 6), *no_points, voxels, voxels, "a title")
    plain = frame_picture(*rest)
    box = one_box(size=(2, 2, 2), centre=(0, 10, 0))
    grid = (-20.0, -20, -2, 20, 20, 2)
    drawn = picture_boxes(box, box, DETECTION_CLASSES, np.eye(4), above_view(grid, "lidar"))
    picture = frame_picture(*rest, boxes=drawn)
    assert picture.shape == plain.shape
    front = slice(44, 44 + 360), slice(644, 644 + 640)  # the second tile: CAM_FRONT
    changed = np.argwhere((picture != plain).any(2)[front])
    near = 100 / 9  # the front face is 9 m away and 2 m wide
    assert np.abs(changed.min(0) - [180 - near, 320 - near]).max() < 4
    assert np.abs(changed.max(0) - [180 + near, 320 + near]).max() < 4
    below = (picture != plain).any(2)[44 + 724 + 4 :]
    size = (1928 - 300 - 8) // 2
    for left, color in ((0, BLUE[::-1]), (size + 4, (255, 255, 255))):
        changed = np.argwhere(below[40:size, left : left + size]) + [40, 0]  # without the caption
        assert np.abs(changed.mean(0) / size - [0.25, 0.5]).max() < 0.02, "10 m ahead in 40 m"
        view = picture[44 + 724 + 4 :][:size, left : left + size]
        assert (view == color).all(2).sum() > 50


def test_videos_have_boxes_on_cameras_and_on_both_views(tmp_path: Path) -> None:
    plain, more = archive(), boxed(archive())
    first, second = (read_result(save(tmp_path / "a.npz", arrays)) for arrays in (plain, more))
    before, after = video_frame(first), video_frame(second)
    assert before.shape == after.shape
    changed = (before != after).any(2)
    front, below = changed[30:270, :480], changed[280 + 60 : 280 + 1080]
    assert front.any() and below[:, :1920].any() and below[:, 1930:].any()
    assert not changed[30:270, 3 * 490 :].any(), "the views of voxels stay"
    lines = second.box_lines(False)
    pixels, depth = project(lines.segments.reshape(-1, 3), second.cameras[0].lidar2img)
    seen = inside(pixels, depth, 36, 64, 0.1)
    rows, columns = np.rint((pixels[seen] * 7.5)).astype(int).T[::-1]
    assert changed[:270, :480][np.clip(rows, 0, 269), np.clip(columns, 0, 479)][rows > 30].mean() > 0.95


def test_ply_files_of_boxes_are_bars_along_the_lines(tmp_path: Path, capsys) -> None:
    save(tmp_path / "a.npz", boxed(archive()))
    assert main(["view", str(tmp_path / "a.npz"), "--ply", str(tmp_path / "ply")]) == 0
    assert "400 points, 2 boxes" in capsys.readouterr().out
    found, names = read_result(tmp_path / "a.npz"), {path.name for path in (tmp_path / "ply").iterdir()}
    assert names == {f"frame.{kind}.ply" for kind in ("points", "voxels", "boxes", "true_boxes")}
    vertices, faces = read_ply(tmp_path / "ply" / "frame.boxes.ply")
    lines = predicted_lines(found.boxes, found.box_names)
    assert len(vertices) == 8 * len(lines.segments) and len(faces) == 6 * len(lines.segments)
    middles = vertices["place"].reshape(-1, 8, 3).mean(1)
    assert middles == pytest.approx(lines.segments.mean(1), abs=1e-4)
    # each vertex is as far from its line as the corner of a square is from its middle
    start, end = (lines.segments[:, k].repeat(8, axis=0) for k in (0, 1))
    along = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
    away = np.cross(vertices["place"] - start, along)
    assert np.linalg.norm(away, axis=1) == pytest.approx(np.full(len(away), BAR / 2**0.5), abs=1e-4)
    quads = vertices["place"][faces["corner"]].astype(float)
    normals = np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])
    assert ((quads.mean(1) - middles.repeat(6, axis=0)) * normals).sum(1).min() > 0, "faces look outwards"
    assert (vertices["color"] == box_colors(DETECTION_CLASSES)[vertices["label"]]).all()
    white, _ = read_ply(tmp_path / "ply" / "frame.true_boxes.ply")
    assert (white["color"] == 255).all() and (white["label"] == CAR).all()


def test_a_rerun_file_has_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged, by a stand-in for the package."""
    logged: Dict[str, Any] = {}

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def save(self, path: str) -> None:
            Path(path).touch()

        def log(self, name: str, value: Any, static: bool = False) -> None:
            logged[name] = value

        def set_time(self, name: str, sequence: int) -> None: ...

        def flush(self) -> None: ...

        def disconnect(self) -> None: ...

    kinds = ("AnnotationContext", "Boxes3D", "Points3D", "EncodedImage", "Points2D", "Arrows3D", "LineStrips2D")
    made = {kind: (lambda *values, _kind=kind, **named: (_kind, values, named)) for kind in kinds}
    monkeypatch.setitem(sys.modules, "rerun", SimpleNamespace(RecordingStream=Stream, **made))
    write_rerun(tmp_path / "a.rrd", [read_result(save(tmp_path / "a.npz", boxed(archive())))])
    kind, _, boxes = logged["world/boxes"]
    assert kind == "Boxes3D" and boxes["labels"] == ["car 0.90", "pedestrian 0.50"]
    assert boxes["half_sizes"][0].tolist() == [2, 1, 0.75] and boxes["quaternions"][0].tolist() == [0, 0, 0, 1]
    assert boxes["quaternions"][1] == pytest.approx([0, 0, np.sin(0.5), np.cos(0.5)])
    assert len(logged["world/true_boxes"][2]["centers"]) == 1
    assert logged["world/boxes/velocities"][2]["vectors"].tolist() == [[3, 0, 0]]
    assert len(logged["cameras/CAM_FRONT/boxes"][1][0]) > 12
    logged.clear()
    write_rerun(tmp_path / "b.rrd", [read_result(save(tmp_path / "b.npz", archive()))])
    assert not [name for name in logged if "boxes" in name]
