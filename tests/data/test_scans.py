"""Scans of other layouts and kinds: read by what they declare, recognised, or refused; never read as something else."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
from rig_tools import write_rig
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.config import DataConfig
from tpvformer.data.formats import load_infos
from tpvformer.data.frames import read_frame
from tpvformer.data.rig.from_arrays import checked_points
from tpvformer.data.scans.layout import layout_problem
from tpvformer.data.scans.pcd import read_pcd
from tpvformer.data.scans.read import read_cloud
from tpvformer.errors import DataError


def cloud(points: int = 400, columns: int = 5, ring: bool = True) -> np.ndarray:
    """x, y, z, intensity, ring (or a time), and more of the kind, in no order."""
    rng = np.random.RandomState(3)
    rows = [rng.uniform(-30, 30, points), rng.uniform(-30, 30, points), rng.uniform(-1.8, 2, points)]
    rows += [rng.randint(0, 255, points), rng.randint(0, 32, points) if ring else rng.uniform(0, 0.1, points)]
    rows += [rng.uniform(0, 5, points) + k for k in range(columns - 5)]
    return np.stack(rows[:columns], 1).astype("<f4")


def raw(folder: Path, rows: np.ndarray, name: str = "scan.bin") -> Path:
    rows.tofile(folder / name)
    return folder / name


@pytest.mark.parametrize("columns", [3, 4, 6, 7])
def test_another_width_than_five_is_refused_until_it_is_declared(tmp_path: Path, columns: int) -> None:
    rows = cloud(columns=columns)
    path = raw(tmp_path, rows)
    with pytest.raises(DataError, match=rf"if they had .*{columns}.* numbers each.*lidar_columns"):
        read_cloud(path, "t")
    np.testing.assert_array_equal(read_cloud(path, "t", columns).points, rows[:, :3])


def test_five_columns_are_read_whatever_the_fifth_is(tmp_path: Path) -> None:
    for ring in (True, False):
        rows = cloud(ring=ring)
        np.testing.assert_array_equal(read_cloud(raw(tmp_path, rows), "t").points, rows[:, :3])
    few = cloud(12, ring=False)  # too few to tell, and 60 numbers are also 15 points of 4
    with pytest.raises(DataError, match=r"the fifth is no ring .*; say how many with lidar_columns"):
        read_cloud(raw(tmp_path, few), "t")
    assert len(read_cloud(raw(tmp_path, few), "t", 5).points) == 12
    assert len(read_cloud(raw(tmp_path, cloud(13, ring=False)), "t").points) == 13  # 65 numbers are of 5 alone


def test_a_wrong_declaration_is_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="if they had 5 numbers each, not 4, which is declared"):
        read_cloud(raw(tmp_path, cloud(columns=5)), "t", 4)
    with pytest.raises(DataError, match="if they had 4 numbers each, not 8, which is declared"):
        read_cloud(raw(tmp_path, cloud(columns=4)), "t", 8)
    with pytest.raises(DataError, match="expected a multiple of 20 .*if they had 4 numbers each"):
        read_cloud(raw(tmp_path, cloud(401, columns=4)), "t", 5)
    with pytest.raises(DataError, match="% of its coordinates lie beyond 1e.06 m"):
        read_cloud(raw(tmp_path, np.random.RandomState(0).randint(0, 256, 8000).astype(np.uint8)), "t", 4)
    equal = np.random.RandomState(0).uniform(-9, 9, (400, 6)).astype("<f4")  # nothing speaks against what is declared
    assert layout_problem(equal.ravel(), 6) == ""


@pytest.mark.parametrize("columns", [3, 4, 5, 6, 7, 8])
def test_only_the_right_width_is_taken(columns: int) -> None:
    """Of any size, in the order of a scan or in none; a width of which the true one is a multiple cannot be told."""
    for seed, points in ((0, 120), (1, 840), (2, 42000)):
        rng = np.random.RandomState(seed)
        turn = np.sort(rng.uniform(0, 6.3, points)) if seed else rng.uniform(0, 6.3, points)
        far = rng.uniform(3, 60, points)
        rows = [far * np.cos(turn), far * np.sin(turn), rng.uniform(-2, 3, points), rng.randint(0, 256, points)]
        rows += [rng.uniform(0, 0.1, points), rng.uniform(0, 1.5, points), np.arange(points) * 1e-5, np.zeros(points)]
        numbers = np.stack(rows[:columns], 1).astype("<f4").ravel()
        assert layout_problem(numbers, columns) == ""
        for wrong in {None, 3, 4, 5, 6, 7, 8} - {columns}:
            width = wrong or 5
            if numbers.size % width == 0 and columns % width and width != columns and (wrong or columns != 5):
                assert layout_problem(numbers, wrong), (points, wrong)


@pytest.mark.skipif(not os.environ.get("TPVFORMER_REAL_DATA"), reason="TPVFORMER_REAL_DATA names no nuscenes_real")
def test_a_real_scan() -> None:
    path = next(Path(os.environ["TPVFORMER_REAL_DATA"], "sample").glob("*LIDAR_TOP*"))
    rows = np.fromfile(path, "<f4").reshape(-1, 5)
    assert len(read_cloud(path, "t").points) == len(rows) == len(read_cloud(path, "t", 5).points)
    for columns in (3, 4):  # as tools cut such scans
        numbers = rows[:34680, :columns].ravel()
        assert layout_problem(numbers, columns) == "" and layout_problem(numbers, None) and layout_problem(numbers, 5)


def pcd(rows: np.ndarray, kind: str, header: str = "") -> bytes:
    """A file with intensity between y and z, and two bytes of padding, as PCL writes it."""
    fields = np.dtype([("x", "<f4"), ("y", "<f4"), ("intensity", "<u2"), ("_", "<u1", (2,)), ("z", "<f8")])
    made = np.zeros(len(rows), fields)
    for k, name in enumerate("xyz"):
        made[name] = rows[:, k]
    made["intensity"] = rows[:, 3]
    text = header or (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y intensity _ z\nSIZE 4 4 2 1 8\n"
        f"TYPE F F U U F\nCOUNT 1 1 1 2 1\nWIDTH {len(rows)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\n"
        f"POINTS {len(rows)}\nDATA {kind}\n"
    )
    if kind == "ascii":
        body = "".join(f"{r['x']:.9g} {r['y']:.9g} {r['intensity']} 0 0 {r['z']:.17g}\n" for r in made).encode()
    elif kind == "binary":
        body = made.tobytes()
    else:
        columns = b"".join(np.ascontiguousarray(made[name]).tobytes() for name in fields.names or ())
        packed = lzf(columns)
        body = struct.pack("<II", len(packed), len(columns)) + packed
    return text.encode() + body


def lzf(data: bytes) -> bytes:
    """Packed with copies of every kind: short, long, and such that reach into themselves."""
    out, at, literal = bytearray(), 0, bytearray()

    def flush() -> None:
        for i in range(0, len(literal), 32):
            piece = literal[i : i + 32]
            out.extend([len(piece) - 1, *piece])
        literal.clear()

    while at < len(data):
        start = data.rfind(data[at : at + 3], max(0, at - 8000), at + 2) if at + 3 <= len(data) else -1
        if start < 0 or start >= at:
            literal.append(data[at])
            at += 1
            continue
        length = 3
        while length < 264 and at + length < len(data) and data[start + length] == data[at + length]:
            length += 1
        flush()
        distance = at - start - 1
        if length - 2 < 7:
            out.append(((length - 2) << 5) | (distance >> 8))
        else:
            out.extend([(7 << 5) | (distance >> 8), length - 9])
        out.append(distance & 255)
        at += length
    flush()
    return bytes(out)


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path: Path, kind: str) -> None:
    rows = cloud(columns=4)
    for name in ("scan.pcd", "scan.PCD", "scan.bin"):  # the beginning says what it is
        (tmp_path / name).write_bytes(pcd(rows, kind))
        np.testing.assert_array_equal(read_cloud(tmp_path / name, "t").points, rows[:, :3])
    whole = pcd(rows, kind)
    for length in (10, 200, len(whole) // 2, len(whole) - 3):
        (tmp_path / "scan.pcd").write_bytes(whole[:length])
        if kind == "ascii" and length == len(whole) - 3:
            continue  # three digits less are another number
        with pytest.raises(DataError, match=r"sample t: .*scan.pcd cannot be read as PCD: "):
            read_cloud(tmp_path / "scan.pcd", "t")


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply(tmp_path: Path, kind: str) -> None:
    rows = cloud(columns=4)
    vertex = "element vertex 400\nproperty uchar tag\nproperty double x\nproperty float y\nproperty float32 z\n"
    faces = "element face 0\nproperty list uchar int vertex_indices\n"
    header = f"ply\nformat {kind} 1.0\ncomment made by a test\n{vertex}{faces}end_header\n"
    order = ">" if "big" in kind else "<"
    made = np.zeros(len(rows), [("tag", "u1"), ("x", f"{order}f8"), ("y", f"{order}f4"), ("z", f"{order}f4")])
    for k, name in enumerate("xyz"):
        made[name] = rows[:, k]
    text = "".join(f"0 {x:.17g} {y:.9g} {z:.9g}\n" for x, y, z in rows[:, :3]).encode()
    body = text if kind == "ascii" else made.tobytes()
    (tmp_path / "scan.ply").write_bytes(header.encode() + body)
    np.testing.assert_array_equal(read_cloud(tmp_path / "scan.ply", "t").points, rows[:, :3])
    (tmp_path / "scan.ply").write_bytes(header.encode() + body[:-80])
    with pytest.raises(DataError, match="cannot be read as PLY: holds"):
        read_cloud(tmp_path / "scan.ply", "t")


def test_damaged_headers_are_one_sentence(tmp_path: Path) -> None:
    """Whatever stands in a header: points, or a DataError, and never more memory than the file has bytes for."""
    rng, path = np.random.RandomState(0), tmp_path / "scan.pcd"
    made = [pcd(cloud(40, 4), kind) for kind in ("ascii", "binary", "binary_compressed")]
    for _ in range(600):
        data = bytearray(made[rng.randint(3)])
        for _ in range(rng.randint(1, 4)):
            data[rng.randint(12, len(data))] = rng.randint(256)
        path.write_bytes(data)
        try:
            assert read_cloud(path, "t").points.shape[1] == 3
        except DataError as err:
            assert "\n" not in str(err)
    for old, new in ((b"POINTS 40", b"POINTS 99999999"), (b"FIELDS x", b"FIELDS a"), (b"SIZE 4", b"SIZE 3")):
        with pytest.raises(ValueError, match="header"):
            read_pcd(made[1].replace(old, new))


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("scan.pcd", bytes(8000), "does not begin as a .pcd file does"),
        ("scan.npz", b"PK\x03\x04" + bytes(96), "is a zip archive"),
        ("scan.txt", b"1 2 3\n4 5 6 \n", "is a text file"),
        ("scan.las", b"LASF" + bytes(96), "is a LAS point cloud"),
        ("scan.laz", bytes(100), "is a point cloud"),
        ("scan.dat", bytes(100), "is of another kind"),
        ("scan.bin", b"LASF" + bytes(96), "is a LAS point cloud"),
    ],
)
def test_other_kinds_are_named_whatever_their_size(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{text}.*expected a scan: .bin \(float32\), .npy, .pcd or .ply"):
        read_cloud(tmp_path / name, "t")


def test_clouds_that_lie_on_their_side(tmp_path: Path) -> None:
    rows = cloud(columns=4)
    np.save(tmp_path / "scan.npy", rows.T)
    with pytest.raises(DataError, match=r"has the shape \(4, 400\), but rows are points"):
        read_cloud(tmp_path / "scan.npy", "t")
    with pytest.raises(DataError, match=r"points have the shape \(4, 400\), but rows are points: .* points.T"):
        checked_points(rows.T)
    assert checked_points(rows[:4]).shape == (4, 3)


def no_returns(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[::4, :3], rows[1, 2] = np.nan, np.inf
    return rows


def test_no_returns_are_left_out_with_their_labels_and_counted(tmp_path: Path, capsys: Any) -> None:
    path = write_rig(tmp_path, points=(200,))
    (record,) = load_infos(path)
    rows, labels = no_returns(cloud(200)), (np.arange(200) % 17).astype(np.uint8)
    rows.tofile(record.scan)
    labels.tofile(record.labels)
    frame = read_frame(record, "", record.labels, list(range(32)))
    good = np.isfinite(rows[:, :3]).all(1)
    assert frame.lost_points == 51
    np.testing.assert_array_equal(frame.points, rows[good, :3])
    np.testing.assert_array_equal(frame.labels, labels[good])
    assert main(["check-geometry", "--rig", str(path), "--out", str(tmp_path / "g.png")]) == 0
    assert "149 points" in (said := capsys.readouterr().out) and "51 more points have no finite coordinates" in said
    assert main(["data", "check", "--rig", str(path)]) == 0
    assert "note: sample frame0: 51 of 200 points" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"51 of 200 points have .* leave them out: points\[np.isfinite"):
        checked_points(rows)
    rows[:, 0] = np.nan
    rows.tofile(record.scan)
    with pytest.raises(DataError, match="nothing but coordinates that are not finite"):
        read_frame(record, "", None, [])


def test_data_check_finds_a_scan_of_another_width(tmp_path: Path, capsys: Any) -> None:
    path = write_rig(tmp_path, points=(100,), labelled=False)
    (record,) = load_infos(path)
    raw(tmp_path, cloud(500, columns=4), Path(record.scan).name)
    assert main(["data", "check", "--rig", str(path)]) == 1
    assert "if they had 4 numbers each" in capsys.readouterr().out


def test_data_check_looks_at_infos(tmp_path: Path, capsys: Any) -> None:
    """Their scans by the width that they declare, their calibration, and files that are missing."""
    cfg = write_tiny(tmp_path / "set", (100, 100))
    command = ["data", "check", "--infos", cfg.val_infos, "--root", cfg.root]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "CAM_FRONT          77x45      embedding 0" in said and "note: CAM_FRONT looks 180 degrees away" in said
    assert "2 frames: 12 images, 2 scans and 0 label files looked at\nno faults\n" in said
    scan = next((tmp_path / "set" / "samples" / "LIDAR_TOP").iterdir())
    raw(scan.parent, cloud(500, columns=4), scan.name)
    assert main(command) == 1
    assert "if they had 4 numbers each" in capsys.readouterr().out
    changed_infos(cfg, lambda info: info.update(lidar_points={"num_pts_feats": 4}))
    assert main(command) == 1  # of the two the other one has five
    assert "if they had 4 numbers each" not in capsys.readouterr().out
    scan.unlink()
    next((tmp_path / "set" / "samples" / "CAM_BACK").iterdir()).unlink()
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "11 images" in said and said.count("is missing; looked for") == 2


def changed_infos(cfg: DataConfig, change: Callable[[dict], None]) -> str:
    stored = pickle.loads(Path(cfg.val_infos).read_bytes())  # noqa: S301 - written by the test
    for info in stored["infos"]:
        change(info)
    Path(cfg.val_infos).write_bytes(pickle.dumps(stored, protocol=4))
    return cfg.val_infos


def test_infos_say_how_many_numbers_a_point_has(tmp_path: Path) -> None:
    infos = changed_infos(write_tiny(tmp_path), lambda info: info.update(lidar_points={"num_pts_feats": 4}))
    assert [record.scan_columns for record in load_infos(infos)] == [4, 4, 4]
    infos = changed_infos(write_tiny(tmp_path), lambda info: info.update(lidar_points={"num_pts_feats": 2}))
    with pytest.raises(DataError, match="num_pts_feats is 2; expected 3 to 64"):
        load_infos(infos)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distortion", [-0.3, 0.1, 0, 0, 0]),
        ("distortion_coefficients", np.array([0.1, 0])),
        ("dist_coeffs", {"k1": 0.1}),
        ("cam_distortion", [[0.0], [0.2]]),
        ("D", [0.2]),
        ("k1", 0.2),
    ],
)
def test_distortion_in_infos_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    def add(info: dict, value: Any) -> None:
        info["cams"]["CAM_FRONT"].update({key: value, "distortion_model": "plumb_bob", "undistorted": True})

    infos = changed_infos(write_tiny(tmp_path), lambda info: add(info, value))
    with pytest.raises(DataError, match=rf"CAM_FRONT has the {key} .* undistort the images"):
        load_infos(infos)
    zero: List[Any] = [[0.0, 0, None]]
    assert len(load_infos(changed_infos(write_tiny(tmp_path), lambda info: add(info, zero)))) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows * 1000, "not in metres .millimetres"),
        (lambda rows: rows * 100, "not in metres"),
        (lambda rows: rows + np.float32([412, 1180, 0]), "a map's"),
        (lambda rows: rows / 100, "none of its points is 1.0 m away"),
        (lambda rows: rows * 0, "none of its points is 1.0 m away"),
    ],
)
@pytest.mark.parametrize("kind", [".bin", ".npy"])
def test_coordinates_that_are_no_metres_from_the_lidar(tmp_path: Path, kind: str, change: Callable, text: str) -> None:
    rows = cloud()
    rows[:, :3] = change(rows[:, :3])
    path = tmp_path / f"scan{kind}"
    np.save(path, rows) if kind == ".npy" else rows.tofile(path)
    with pytest.raises(DataError, match=f"sample t: .*{text}.*store metres from the lidar"):
        read_cloud(path, "t")


@pytest.mark.parametrize("columns", [4, 5])
def test_a_raw_array_with_all_x_first(tmp_path: Path, columns: int) -> None:
    rows = cloud(columns=columns)
    path = raw(tmp_path, np.ascontiguousarray(rows.T))
    for declared in (columns, None):
        with pytest.raises(DataError, match="x of all points stood first"):
            read_cloud(path, "t", declared)
