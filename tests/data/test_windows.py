"""Windows of frames: their order, where they end, and the transforms between their grids."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from info_tools import LAYOUTS, edit, modern, records, store, write_layout, write_set
from rig_tools import camera, changed, save, write_rig

from tpvformer.cli import main
from tpvformer.config import DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.infos.parts import seconds_of
from tpvformer.data.nuscenes.infos.tensor_file import TensorFile
from tpvformer.data.record import Record
from tpvformer.data.samplers import SceneSampler
from tpvformer.data.windows import drives, find_windows, grid2global
from tpvformer.errors import ConfigError, DataError
from tpvformer.geometry import matrices, now_to_past

GRID = GridConfig(w=6, h=5, z=4)
START = 1_532_402_927.647951  # seconds since 1970
REAL = Path(os.environ.get("TPVFORMER_REAL_DATA", ""))


def pose(x: float, yaw: float = 0.0) -> np.ndarray:
    return matrices(np.array([1000.0 + x, -500.0, 0.5, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]))


def frame(token: str, time: Optional[float], x: Optional[float] = 0.0, scene: str = "a") -> Record:
    moved = None if x is None else pose(x)
    return Record(token, "", ("c",), ("c.jpg",), np.eye(4)[None], scene, np.eye(4), moved, timestamp=time)


def row(times: Sequence[Optional[float]], speed: float = 10.0, scene: str = "a") -> List[Record]:
    """Frames of one scene of a vehicle that drives evenly."""
    return [frame(f"{scene}{i}", t, speed * (t or 0.0), scene) for i, t in enumerate(times)]


def windows(found: Sequence[Record], most: int = 3, **more: Any) -> List[Tuple[int, ...]]:
    return find_windows(found, "lidar", most, "set.pkl", **more)


def refused(found: Sequence[Record]) -> str:
    with pytest.raises(DataError) as caught:
        windows(found)
    assert str(caught.value).startswith("set.pkl: ") and "\n" not in str(caught.value)
    return str(caught.value)


# Transforms


def test_now_to_past_is_a_motion() -> None:
    rng = np.random.RandomState(0)
    numbers = rng.normal(size=(3, 7)) * [1000, 1000, 2, 1, 1, 1, 1]
    a, b, c = matrices(numbers)
    np.testing.assert_allclose(now_to_past(a, a), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(now_to_past(a, b) @ now_to_past(b, a), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(now_to_past(b, c) @ now_to_past(a, b), now_to_past(a, c), atol=1e-9)
    np.testing.assert_allclose(now_to_past(a, b), np.linalg.inv(b) @ a, atol=1e-9)
    many = np.stack([a, b])
    np.testing.assert_array_equal(now_to_past(a, many)[1], now_to_past(a, b))


def test_a_vehicle_that_drives_ahead_sees_the_world_come_nearer() -> None:
    ahead = now_to_past(pose(5.0), pose(0.0)) @ [10, 0, 0, 1]  # 10 m ahead of the vehicle now
    np.testing.assert_allclose(ahead, [15, 0, 0, 1], atol=1e-9)
    turned = now_to_past(pose(0.0, np.pi / 2), pose(0.0)) @ [10, 0, 0, 1]  # it has turned left since
    np.testing.assert_allclose(turned, [0, 10, 0, 1], atol=1e-9)


def test_the_grid_s_frame_decides() -> None:
    record = replace(frame("a", 0.0), lidar2ego=pose(0.0, 1.0))
    np.testing.assert_array_equal(grid2global(record, "ego"), record.ego2global)
    np.testing.assert_array_equal(grid2global(record, "lidar"), record.ego2global @ record.lidar2ego)
    assert grid2global(replace(record, lidar2ego=None), "lidar") is None
    assert grid2global(replace(record, ego2global=None), "ego") is None


# Order and borders


def test_windows_are_newest_first_and_stop_at_the_scene() -> None:
    found = row([0.0, 0.5, 1.0, 1.5]) + row([1.2, 1.7], scene="b")
    assert windows(found) == [(), (0,), (1, 0), (2, 1, 0), (), (4,)]
    assert windows(found, 1) == [(), (0,), (1,), (2,), (), (4,)]
    assert windows(found, 2)[3] == (2, 1)


def test_order_of_the_file_does_not_matter() -> None:
    found = row([0.0, 0.5, 1.0]) + row([9.0, 9.5], scene="b")
    order = [3, 2, 4, 0, 1]
    assert [tuple(order[i] for i in w) for w in windows([found[i] for i in order])] == [
        windows(found)[i] for i in order
    ]
    assert drives([found[i] for i in order]) == [[0, 2], [3, 4, 1]]  # scenes as their first records


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0.0, 2.5, 5.0], [(), (0,), (1, 0)]),
        ([0.0, 2.6, 3.0], [(), (), (1,)]),  # a gap
        ([0.0, 0.5, 0.5, 1.0], [(), (0,), (), (2,)]),  # a time that does not increase
        ([0.0, 0.5, None, 1.0, 1.5], [(), (0,), (), (), (3,)]),  # a time that is not known
    ],
)
def test_a_window_ends(times: List[Optional[float]], expected: List[Tuple[int, ...]]) -> None:
    assert windows(row(times)) == expected


def test_a_window_ends_where_the_pose_is_not_known() -> None:
    found = row([0.0, 0.5, 1.0, 1.5])
    found[1] = replace(found[1], ego2global=None)
    assert windows(found) == [(), (), (), (2,)]


def test_the_limit_of_the_gap_can_be_set() -> None:
    assert windows(row([0.0, 0.5, 1.5]), longest_gap=0.5) == [(), (0,), ()]
    assert windows(row([0.0, 5.0]), longest_gap=9.0) == [(), (0,)]


def test_jumps_are_named() -> None:
    found = row([0.0, 0.5, 1.0])
    windows([*found, frame("a3", 1.5, 10.0 + 31.9)])  # 30 m and what a position may be wrong
    said = refused([*found, frame("a3", 1.5, 10.0 + 32.1)])
    assert "frames a2 and a3 of scene a are 32.1 m apart after 0.500 s" in said and "60 m/s" in said
    windows([*found, frame("a3", 9.0, 5000.0)])  # behind a gap nothing is compared
    windows([*found, frame("b0", 1.5, 5000.0, "b")])


@pytest.mark.parametrize("bad", [np.diag([2.0, 2, 2, 1]), np.diag([1.0, -1, 1, 1]), np.full((4, 4), np.nan)])
def test_poses_that_are_none_are_named(bad: np.ndarray) -> None:
    found = row([0.0, 0.5, 1.0])
    found[1] = replace(found[1], ego2global=bad)
    assert "the pose of frame a1 (ego2global) is no rigid motion" in refused(found)


def test_no_past_at_all_is_named() -> None:
    found = [replace(record, ego2global=None) for record in row([0.0, 0.5])]
    assert "none of its 2 frames has a past one" in refused(found) and "2 no pose" in refused(found)
    assert "2 have no timestamp" in refused(row([None, None]))
    assert "0 have no timestamp, 0 no pose" in refused(row([0.0, 3.0]))


times = st.lists(st.one_of(st.none(), st.integers(0, 40)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_what_holds_for_every_window(scenes: List[List[Optional[int]]], most: int, dice: Any) -> None:
    found = [r for s, times in enumerate(scenes) for r in row([t and t / 4 for t in times], scene=f"s{s}")]
    dice.shuffle(found)
    try:
        made = windows(found, most)
    except DataError:
        made = [()] * len(found)
    order = drives(found)
    assert sorted(i for drive in order for i in drive) == list(range(len(found)))
    for drive in order:
        assert len({found[i].scene for i in drive}) == 1
        place = {index: k for k, index in enumerate(drive)}
        for index in drive:
            chain = (index, *made[index])
            assert [place[i] for i in chain] == list(range(place[index], place[index] - len(chain), -1))
            gaps = [found[a].timestamp - found[b].timestamp for a, b in zip(chain, chain[1:])]  # type: ignore[operator]
            assert all(0 < gap <= 2.5 for gap in gaps) and len(chain) <= most + 1
            if made[index]:  # the window of a frame is its predecessor and that one's window
                before = made[index][0]
                assert made[index] == (before, *made[before])[:most]


# Layouts of files


def test_units_of_time() -> None:
    for stamp in (1532402927647951, 1532402927.647951, 1532402927647951000, np.int64(1532402927647951)):
        assert seconds_of(stamp) == pytest.approx(START, abs=1e-6)
    assert seconds_of(1532402927647) == pytest.approx(1532402927.647)
    assert seconds_of(12.5) == 12.5 and seconds_of(0) == 0.0
    for bad in (None, "now", float("nan"), float("inf"), [1.0], True, 10**400, {}):
        assert seconds_of(bad) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_infos_has_the_time(tmp_path: Path, layout: str) -> None:
    cfg = write_set(tmp_path, (9, 9, 9), cameras=("CAM_FRONT",))
    stamps = [1532402927647951 + 500_000 * i for i in range(3)]
    if layout == "safetensors":
        path = write_layout(cfg, layout, tmp_path)
        held = TensorFile(path)
        raw = bytearray(path.read_bytes())
        first, _ = held._header["timestamps"]["data_offsets"]
        raw[held._start + first : held._start + first + 24] = np.array(stamps, "<i8").tobytes()
        path.write_bytes(bytes(raw))
    else:
        path = write_layout(cfg, layout, tmp_path)
        content = pickle.loads(path.read_bytes())  # noqa: S301 - a file that this test has just written
        listed = content if isinstance(content, list) else content.get("data_list", content.get("infos"))
        listed = [r for scene in listed.values() for r in scene] if isinstance(listed, dict) else listed
        for record, stamp in zip(listed, stamps):
            record["timestamp"] = stamp / 1e6 if layout == "data_list" else stamp
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert [r.timestamp for r in load_infos(path)] == pytest.approx([stamp / 1e6 for stamp in stamps], abs=1e-6)


def test_bevdepth_s_time_may_be_that_of_the_lidar(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9,), cameras=("CAM_FRONT",))
    path = write_layout(cfg, "bevdepth", tmp_path)
    content = pickle.loads(path.read_bytes())  # noqa: S301 - a file that this test has just written
    content[0]["lidar_infos"]["LIDAR_TOP"]["timestamp"] = 1532402927647951
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert load_infos(path)[0].timestamp == pytest.approx(START, abs=1e-6)


def test_infos_without_time_are_read_as_before(tmp_path: Path) -> None:
    cfg = write_set(tmp_path, (9, 9), cameras=("CAM_FRONT",))
    assert [record.timestamp for record in load_infos(cfg.val_infos)] == [None, None]
    edit(cfg, lambda infos: infos[0].update(timestamp="noon"))
    assert load_infos(cfg.val_infos)[0].timestamp is None
    assert len(FrameDataset(cfg, GRID, "val", 0)) == 2
    with pytest.raises(
        DataError, match="infos.pkl: none of its 2 frames has a past one.*2 have no timestamp, 2 no pose"
    ):
        FrameDataset(cfg, GRID, "val", 0, past=1)


def test_mmdetection3d_s_scenes_are_logs(tmp_path: Path) -> None:
    """Its infos name no scene: scans of one log are one drive, whose scenes are minutes apart."""
    cfg = write_set(tmp_path, (9, 9, 9, 9), cameras=("CAM_FRONT",))
    infos = [modern(info) for info in records(cfg)]
    for i, info in enumerate(infos):
        info["timestamp"] = START + [0.0, 0.5, 100.0, 100.5][i]
        info["ego2global"], info["lidar_points"]["lidar2ego"] = pose(i).tolist(), np.eye(4).tolist()
    store(cfg, {"metainfo": {}, "data_list": infos})
    data = FrameDataset(cfg, GRID, "val", 0, past=2)
    assert data.windows == [(), (0,), (), (2,)] and data.drives == [[0, 1, 2, 3]]


@pytest.mark.skipif(not (REAL / "infos").is_dir(), reason="TPVFORMER_REAL_DATA does not name the folder nuscenes_real")
def test_a_real_file_of_infos() -> None:
    found = load_infos(REAL / "infos" / "nuscenes_infos_mini_val.pkl")
    made = windows(found)
    assert sorted(map(len, made)) == [0] * 2 + [1] * 2 + [2] * 2 + [3] * 75
    steps = [found[i].timestamp - found[w[0]].timestamp for i, w in enumerate(made) if w]  # type: ignore[operator]
    assert min(steps) > 0.3 and max(steps) < 0.8


# Rig files


def rig(folder: Path, frames: int = 4, **more: Any) -> Path:
    """A drive of one camera that looks ahead, two frames a second, 4 m apart."""
    path = write_rig(folder, (camera("front"),), (0,) * frames, lidar2ego=np.eye(4).tolist(), **more)
    held = json.loads(path.read_text())
    for i, one in enumerate(held["frames"]):
        one.update(scene="drive", timestamp=i / 2, ego2global=pose(4.0 * i).tolist())
    return save(path, held)


def test_a_rig_file_has_windows(tmp_path: Path) -> None:
    path = rig(tmp_path)
    cfg = DataConfig(val_infos=str(path), workers=0)
    for frame_name in ("lidar", "ego"):
        data = FrameDataset(cfg, replace(GRID, frame=frame_name), "val", 0, require_labels=False, past=3)
        assert data.windows == [(), (0,), (1, 0), (2, 1, 0)] and data.timestamps == [0.0, 0.5, 1.0, 1.5]
        read = data.load_frame(3)
        assert (read.scene, read.timestamp) == ("drive", 1.5)
        lidar2global = data.grid2global(3) @ (read.lidar2ego if frame_name == "ego" else np.eye(4))
        np.testing.assert_array_equal(read.lidar2global, lidar2global)
        moved = [past.now2past[:3, 3].tolist() for past in data[3].past]
        assert moved == [[4.0, 0.0, 0.0], [8.0, 0.0, 0.0], [12.0, 0.0, 0.0]]


@pytest.mark.parametrize("value", ["now", None, True, 1.6e12, float("inf"), [1]])
def test_times_of_rigs_are_checked(tmp_path: Path, value: Any) -> None:
    path = rig(tmp_path)
    text = json.dumps(changed(json.loads(path.read_text()), "frames.2.timestamp", value))
    path.write_text(text.replace("Infinity", "1e999"))
    with pytest.raises(DataError, match=r"frames\[2\]: timestamp is .*; expected a finite number of seconds"):
        load_infos(path)


def test_rigs_that_jump_or_stand_alone_are_named(tmp_path: Path) -> None:
    path = rig(tmp_path)
    held = json.loads(path.read_text())
    cfg = DataConfig(val_infos=str(path), workers=0)
    save(path, changed(held, "frames.2.ego2global", pose(400.0).tolist()))
    with pytest.raises(
        DataError, match=r"rig.json: frames frame1 and frame2 of scene drive are 396.0 m apart after 0.5"
    ):
        FrameDataset(cfg, GRID, "val", 0, require_labels=False, past=1)
    FrameDataset(cfg, GRID, "val", 0, require_labels=False)  # nobody asks for the past
    for one in held["frames"]:
        del one["timestamp"]
    save(path, held)
    with pytest.raises(DataError, match=r"rig.json: none of its 4 frames has a past one.*4 have no timestamp"):
        FrameDataset(cfg, GRID, "val", 0, require_labels=False, past=1)


def test_data_check_makes_a_note_of_a_jump(tmp_path: Path, capsys: Any) -> None:
    path = rig(tmp_path)
    assert main(["data", "check", "--rig", str(path)]) == 0
    assert "poses: " not in capsys.readouterr().out
    save(path, changed(json.loads(path.read_text()), "frames.2.ego2global", pose(400.0).tolist()))
    assert main(["data", "check", "--rig", str(path)]) == 0
    assert "note: poses: frames frame1 and frame2 of scene drive are 396.0 m apart" in capsys.readouterr().out


@pytest.mark.parametrize(("past", "drop"), [(4, 0.0), (-1, 0.0), (1, 1.5), (1, -0.1), (1, float("nan"))])
def test_numbers_out_of_range_are_refused(tmp_path: Path, past: int, drop: float) -> None:
    cfg = DataConfig(val_infos=str(rig(tmp_path)), workers=0)
    with pytest.raises(ConfigError, match="expected 1 to 3, and a share from 0 to 1"):
        FrameDataset(cfg, GRID, "val", 0, require_labels=False, past=past, drop_past=drop)


# Evaluation in order


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 20), st.randoms(use_true_random=False))
def test_scenes_are_read_in_order_and_whole(lengths: List[int], world: int, dice: Any) -> None:
    samples = list(range(sum(lengths)))
    dice.shuffle(samples)
    scenes = [[samples.pop() for _ in range(length)] for length in lengths]
    hands = []
    for rank in range(world):
        sampler = SceneSampler(scenes, rank, world)
        hands.append(list(sampler))
        assert len(sampler) == len(hands[-1]) and list(sampler) == hands[-1]
        assert sampler.least == min(len(list(SceneSampler(scenes, other, world))) for other in range(world))
    assert sorted(i for hand in hands for i in hand) == list(range(sum(lengths)))
    whole = {tuple(scene) for scene in scenes}
    for hand in hands:
        left = list(hand)
        while left:
            (scene,) = [scene for scene in whole if scene[0] == left[0]]
            assert tuple(left[: len(scene)]) == scene
            left = left[len(scene) :]
    # no rank has more than another by more than one scene
    assert max(map(len, hands)) - min(map(len, hands)) <= max(lengths)
    if world == 1:
        assert hands[0] == [i for scene in scenes for i in scene]
