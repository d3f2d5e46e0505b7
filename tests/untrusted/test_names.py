"""Names in files: refused where they enter if they lead elsewhere or hold what a terminal obeys."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from submission_tools import write_set
from tiny_nuscenes import VERSION, write_tiny

from tpvformer.cli import in_one_line
from tpvformer.config import Config
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.lidarseg import LabelFiles, scan_tokens
from tpvformer.data.nuscenes.reader import resolve
from tpvformer.data.nuscenes.scenes import frames_by_scene
from tpvformer.data.nuscenes.tables import read_table
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError, DataError
from tpvformer.untrusted.names import is_file_name, shown, shown_lines

ESCAPE = "a\x1b[2Jb"
UNSEEN = [ESCAPE, "a\nb", "a\rb", "a\x07", "a\u202eb", "a\u2028b", "\x9b31m"]
ELSEWHERE = ["../../x", "/etc/x", "a/b", "a\\b", "..", ".x", "", "x" * 300, "c:x"]


@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_terminal_obeys(name: str) -> None:
    assert shown(name).isprintable() and shown(name) != name and not is_file_name(name)


def test_what_people_call_things() -> None:
    for name in (
        "e93e98b63d3b40209056d129dc53ceee",
        "scene-0103",
        "CAM_FRONT",
        "été 1",
        "前",
        "n015-2018-07-24-11-22-45+0800",
    ):
        assert shown(name) == name and is_file_name(name)
    assert shown_lines("a\tb\nc\x1b") == "a\tb\nc\\x1b"
    assert not any(map(is_file_name, ELSEWHERE))


def infos(folder: Path, **changes: Any) -> Path:
    path = Path(write_tiny(folder, (9, 8)).val_infos)
    stored = pickle.loads(path.read_bytes())  # noqa: S301  # written by this test
    stored["infos"][1].update(changes)
    path.write_bytes(pickle.dumps(stored))
    return path


@pytest.mark.parametrize("token", [*UNSEEN, *ELSEWHERE])
def test_tokens_in_infos(tmp_path: Path, token: str) -> None:
    with pytest.raises(DataError, match="record 1 has the token") as caught:
        load_infos(infos(tmp_path, token=token))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["scene_token", "lidar_path"])
def test_other_names_in_infos(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="record 1 has the (scene|file)") as caught:
        load_infos(infos(tmp_path, **{key: ESCAPE}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("table", "field"), [("sample_data", "token"), ("lidarseg", "filename"), ("scene", "name")])
@pytest.mark.parametrize("value", [ESCAPE, "a\nb", 3, None, ["x"], {"a": 1}, True])
def test_names_in_tables(tmp_path: Path, table: str, field: str, value: Any) -> None:
    write_set(tmp_path, (9, 8))
    path = tmp_path / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row[field] = value
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError) as caught:
        if table == "scene":
            frames_by_scene(str(tmp_path), VERSION, ["sample0"])
        else:
            LabelFiles(tmp_path, VERSION)
    assert str(caught.value).isprintable()
    if table == "scene":
        with pytest.raises(DataError):
            read_table(tmp_path / VERSION, "scene", "name")


def test_a_submission_stays_in_its_folder(tmp_path: Path) -> None:
    """The token of a lidar record becomes the name of a part of the zip; before, it could lead out of the folder."""
    write_set(tmp_path, (9, 8))
    path = tmp_path / VERSION / "sample_data.json"
    rows = json.loads(path.read_text())
    rows[0]["token"] = "../../../../home/x"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="a record's token is '../../../../home/x'"):
        scan_tokens(tmp_path, VERSION)


@pytest.mark.parametrize("root", ["/sets/a", "s3://bucket/set", "ftp://example.org/x"])
def test_records_open_no_connection(root: str) -> None:
    for stored in ("ftp://example.invalid/x.jpg", "s3://bucket2/x.jpg", "http://s3://bucket/x"):
        with pytest.raises(DataError, match="another storage than data.root"):
            resolve(stored, root, "t")


def test_a_configuration_s_name(tmp_path: Path) -> None:
    """It is a part of the name of <CaseName>.log."""
    for name in (ESCAPE, "../../x", "", "a/b"):
        with pytest.raises(ConfigError, match="name is "):
            Config(name)


def test_logs_and_last_sentences(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = RunLog(tmp_path, True)
    log.warn(f"sample {ESCAPE} 100%s")
    log.close()

    def fails() -> int:
        raise ConfigError(f"sample {ESCAPE}")

    assert in_one_line("tpvformer x", fails) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err + "".join(f.read_text() for f in tmp_path.glob("*.log"))
    assert "a\\x1b[2Jb 100%s" in said.out and "a\\x1b[2Jb" in said.err
