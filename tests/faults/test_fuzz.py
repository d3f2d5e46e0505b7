"""Every reader of a stranger's file, given damaged ones: a result, or one sentence of ours, and nothing else.

Hypothesis chooses the damage: bytes changed, inserted, removed, pieces moved or repeated. A few hundred files a reader
here; ``TPVFORMER_FUZZ_MINUTES=5 pytest tests/faults/test_fuzz.py`` goes on for that long with each
(docs/security.md has what that found).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch
from engine_tools import MODEL, tiny_config, tiny_model
from tiny_nuscenes import write_tiny

pytest.importorskip("hypothesis", reason="hypothesis is not installed (pip install tpvformer[dev])")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tpvformer.compat import load_weights  # noqa: E402
from tpvformer.compat.errors import CheckpointError  # noqa: E402
from tpvformer.config import DataConfig, from_dict, override  # noqa: E402
from tpvformer.data.formats import load_infos  # noqa: E402
from tpvformer.data.nuscenes.infos.build import build  # noqa: E402
from tpvformer.data.nuscenes.infos.tensor_file import write_tensors  # noqa: E402
from tpvformer.data.nuscenes.lidarseg import LabelFiles  # noqa: E402
from tpvformer.data.nuscenes.occupancy import OccupancyLabels  # noqa: E402
from tpvformer.data.nuscenes.reader import read_labels  # noqa: E402
from tpvformer.data.scans.read import read_cloud  # noqa: E402
from tpvformer.data.street.write import write_dataset  # noqa: E402
from tpvformer.data.types import DataError  # noqa: E402
from tpvformer.engine.checkpoint import files as store  # noqa: E402
from tpvformer.errors import ConfigError  # noqa: E402
from tpvformer.model import TPVFormer  # noqa: E402

MINUTES = float(os.environ.get("TPVFORMER_FUZZ_MINUTES", "0"))
EXAMPLES = 150
Change = Tuple[str, float, float, bytes]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "remove", "repeat", "move", "flip"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=6,
)
pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.filterwarnings("ignore")]


def changed(data: bytes, changes: List[Change]) -> bytes:
    """Damage at places given as parts of the length."""
    for kind, where, other, content in changes:
        at, to = int(where * len(data)), int(other * len(data))
        piece = data[min(at, to) : min(at, to) + 64]
        if kind == "set":
            data = data[:at] + content + data[at + len(content) :]
        elif kind == "insert":
            data = data[:at] + content + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + 1 + int(other * 64) :]
        elif kind == "repeat":
            data = data[:at] + piece * 2 + data[at:]
        elif kind == "move":
            data = data[:at] + piece + data[at + len(piece) :]
        elif data:
            data = data[:at] + bytes([data[at] ^ (1 << int(other * 8))]) + data[at + 1 :]
    return data


def attempt(read: Callable[[], Any]) -> None:
    """Taken, or refused in one sentence; anything else is raised."""
    try:
        read()
    except (DataError, CheckpointError, ConfigError) as err:
        assert str(err).strip() and "\n" not in str(err) and "Traceback" not in str(err), err


def fuzz(check: Callable[..., None], *arguments: Any) -> None:
    """Run ``check`` on a few hundred draws, and then for MINUTES with other draws."""
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings(max_examples=EXAMPLES, derandomize=True, **quiet)(given(*arguments)(check))()
    end, count = time.monotonic() + 60 * MINUTES, EXAMPLES
    while time.monotonic() < end:
        settings(max_examples=500, **quiet)(given(*arguments)(check))()
        count += 500
    if MINUTES:
        print(f"{count} damaged inputs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Dict[str, bytes]:
    """A file of each kind as its writer makes it."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "street", 3, (64, 36), 5, 1, workers=1)
    infos = build(folder / "street", "v1.0-mini", ["synthetic_train"])["synthetic_train"]
    write_tensors(infos, folder / "infos.safetensors")
    cfg = write_tiny(folder / "tiny", (9, 8))
    weights, npz, npy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(tiny_model().state_dict(), weights)
    classes = np.full((200, 200, 16), 17, np.uint8)
    np.savez_compressed(npz, semantics=classes, mask_lidar=classes > 3, mask_camera=classes > 3)
    np.save(npy, np.array([[3, 4, 5, 2], [199, 199, 15, 16]]))
    config = dataclasses.asdict(tiny_config(DataConfig()))
    store.write(folder, "epoch_1.pth", {"format": store.FORMAT, "config": config, "global_iter": 3, "epoch": 1})
    table = folder / "tiny" / "v1.0-mini"
    return {
        "infos.pkl": Path(cfg.val_infos).read_bytes(),
        "infos.safetensors": (folder / "infos.safetensors").read_bytes(),
        "run.pth": (folder / "epoch_1.pth").read_bytes(),
        "weights.pth": weights.getvalue(),
        "labels.npz": npz.getvalue(),
        "labels.npy": npy.getvalue(),
        "scan.bin": (folder / "tiny" / "samples/LIDAR_TOP/log__LIDAR_TOP__0.pcd.bin").read_bytes(),
        "lidarseg.bin": bytes(range(9)),
        "lidarseg.json": (table / "lidarseg.json").read_bytes(),
        "sample_data.json": (table / "sample_data.json").read_bytes(),
    }


def read_dense(kind: str, path: Path) -> None:
    OccupancyLabels(DataConfig(occupancy=kind, occupancy_root=str(path.parent))).read(path, "token")


def read_tables(path: Path, whole: Dict[str, bytes]) -> None:
    folder = path.parent / "v"
    folder.mkdir(exist_ok=True)
    for name in ("lidarseg.json", "sample_data.json"):
        data = path.read_bytes() if name == path.name else whole[name]
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(time.monotonic_ns(), time.monotonic_ns()))  # readers remember unchanged files
    LabelFiles(path.parent, "v").find("sample0", "log__LIDAR_TOP__0.pcd.bin")


READERS: Dict[str, Callable[[Path, Dict[str, bytes]], Any]] = {
    "infos.pkl": lambda path, _: load_infos(path),
    "infos.safetensors": lambda path, _: load_infos(path),
    "run.pth": lambda path, _: store.read(path),
    "weights.pth": lambda path, _: load_weights(TPVFormer(MODEL), path),
    "labels.npz": lambda path, _: read_dense("occ3d", path),
    "labels.npy": lambda path, _: read_dense("surroundocc", path),
    "scan.bin": lambda path, _: read_cloud(path, "token"),
    "lidarseg.bin": lambda path, _: read_labels(path, path, "token", 9, 32),
    "lidarseg.json": read_tables,
    "sample_data.json": read_tables,
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, whole: Dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / name

    def check(changes: List[Change]) -> None:
        path.write_bytes(changed(whole[name], changes))
        attempt(lambda: READERS[name](path, whole))

    fuzz(check, CHANGES)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = {
    name: sorted(value) for name, value in dataclasses.asdict(tiny_config(DataConfig())).items() if name != "name"
}
NAMES = st.sampled_from([f"{section}.{field}" for section, fields in SECTIONS.items() for field in fields])


def test_settings_from_the_command_line() -> None:
    config = tiny_config(DataConfig())
    text = st.text(max_size=30) | st.builds(lambda v: json.dumps(v), VALUES)

    def check(name: str, value: str) -> None:
        attempt(lambda: override(config, [f"{name}={value}"]))

    fuzz(check, NAMES | st.text(max_size=20), text)


def test_configurations_in_checkpoints() -> None:
    whole = dataclasses.asdict(tiny_config(DataConfig()))

    def check(name: str, value: Any, remove: bool) -> None:
        section, _, field = name.partition(".")
        tree = pickle.loads(pickle.dumps(whole))  # noqa: S301  # a copy
        if remove:
            tree[section].pop(field)
        else:
            tree[section][field] = value
        attempt(lambda: from_dict(tree))

    fuzz(check, NAMES, VALUES, st.booleans())
