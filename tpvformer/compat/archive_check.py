"""Reading PyTorch archives from their bytes: declared sizes are compared with the file's, and no code of the file runs.

``torch.load`` trusts what an archive declares. It unpacks a megabyte of compressed zeros to gigabytes; where a tensor
reaches beyond its storage, it enlarges the storage with uninitialised memory. With ``weights_only`` it refuses some
options that trainers store beside the weights; which ones depends on its version. Here the archive's pickle is read
with placeholder classes (``inert.py``), and each tensor is built from its storage after a check against its size.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from tpvformer.compat.archive_values import Reader, Refused, Storage, Type, finished
from tpvformer.compat.inert import WouldRun
from tpvformer.compat.mistaken import packed_in
from tpvformer.errors import CheckpointError
from tpvformer.untrusted.pickle_scan import ScanError, scan

LARGEST_PICKLE = 2**27  # bytes; ours take 0.3 MB, and tensors lie outside of it
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before PyTorch 1.6
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    RecursionError, struct.error,
)  # fmt: skip


def read_torch(file: Path) -> Any:
    """Read the content of a PyTorch archive, with tensors on the CPU; objects of classes become ``Inert``.

    Raises CheckpointError where the file is no archive, declares more bytes than it has, nests or repeats itself
    without end, has tensors that are not plain or reach beyond their storages, or would run code if it were unpickled.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
        if start == b"PK\x03\x04":
            return _read_zip(file)
        if start[:1] == b"\x80":
            return _read_legacy(file)
    except CheckpointError:  # a ValueError as well
        raise
    except WouldRun as call:
        raise CheckpointError(
            f"{file}: refused, opening it would run {call}; only tensors and plain values are taken, "
            "save it again as a plain state dict (torch.save of model.state_dict())"
        ) from None
    except Refused as refusal:
        raise CheckpointError(f"{file}: refused, {refusal}; save it again as a plain state dict of tensors") from None
    except ScanError as err:
        raise CheckpointError(
            f"{file}: not a readable PyTorch checkpoint of tensors, {err}; it is damaged, cut short or of another kind"
        ) from err
    except (*_BROKEN, zipfile.BadZipFile, NotImplementedError, OSError) as err:
        raise _unreadable(file) from err
    raise _unreadable(file)


def _unreadable(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: not a readable PyTorch checkpoint of tensors; it is damaged, cut short or of another kind"
    )


def _read_zip(file: Path) -> Any:
    with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        if any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist()):
            raise CheckpointError(f"{file}: a TorchScript archive; expected a state dict of tensors")
        other = packed_in(archive.namelist())
        if other is not None:
            raise CheckpointError(f"{file}: {other}")
        entries = _entries(archive, file)
        name = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if name is None:
            raise _unreadable(file)
        folder = name[: -len("data.pkl")]
        if entries[name].file_size > LARGEST_PICKLE:
            raise Refused(f"its part {name[:80]!r} has {entries[name].file_size} bytes")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("its numbers are big-endian")
        content = archive.read(name)
        read: Dict[str, Tensor] = {}

        def bytes_of(key: str) -> Tensor:
            if key not in read:
                read[key] = _stored(opened, entries[f"{folder}data/{key}"])
            return read[key]

        def storage(pid: Any) -> Storage:
            _, kind, key, _, count = pid if isinstance(pid, tuple) and len(pid) == 5 else (None,) * 5
            entry = entries.get(f"{folder}data/{key}") if isinstance(key, str) else None
            if not isinstance(key, str) or entry is None or not isinstance(kind, Type) or type(count) is not int:
                raise Refused("it names a storage that it does not have")
            if count < 0 or count * kind.size != entry.file_size:
                raise Refused(
                    f"its storage {key[:40]!r} has {entry.file_size} bytes for {count} elements of {kind.size}"
                )
            return Storage(lambda: bytes_of(key), kind, 0, count)

        scan(content, forgets_state=True)
        return finished(Reader(content, storage).load())


def _entries(archive: zipfile.ZipFile, file: Path) -> Dict[str, zipfile.ZipInfo]:
    """Return the parts by name. Raises Refused where one is compressed or repeated, or all are larger than the file."""
    entries: Dict[str, zipfile.ZipInfo] = {}
    total = 0
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"its part {entry.filename[:80]!r} is compressed, which PyTorch never writes")
        if entries.setdefault(entry.filename, entry) is not entry:
            raise Refused(f"it has two parts {entry.filename[:80]!r}")
        total += entry.file_size
    if total > file.stat().st_size:
        raise Refused(f"its parts have {total} bytes together, more than the file")
    return entries


def _stored(opened: io.BufferedReader, entry: zipfile.ZipInfo) -> Tensor:
    """Read the bytes of a part, (n,) uint8. In the file they follow its header, name and extra field."""
    opened.seek(entry.header_offset)
    signature, lengths = struct.unpack("<4s22x4s", opened.read(30))
    if signature != b"PK\x03\x04":
        raise Refused(f"its part {entry.filename[:80]!r} is not where it ought to be")
    opened.seek(sum(struct.unpack("<HH", lengths)), io.SEEK_CUR)
    return _filled(opened, torch.empty(entry.file_size, dtype=torch.uint8))


def _filled(opened: io.BufferedReader, raw: Tensor) -> Tensor:
    """Fill ``raw`` in place with the next bytes of the file and return it."""
    view, at = memoryview(raw.numpy()).cast("B"), 0
    while at < len(view):
        count = opened.readinto(view[at:])
        if not count:
            raise EOFError("cut short")
        at += count
    return raw


def _read_legacy(file: Path) -> Any:
    """Read the format before PyTorch 1.6: three small pickles, the content, the storages' keys, the storages' bytes."""
    size = file.stat().st_size
    declared: Dict[str, Tuple[int, Tensor]] = {}  # elements, bytes
    total = 0

    def storage(pid: Any) -> Any:
        nonlocal total
        pid = tuple(pid) if isinstance(pid, (tuple, list)) else ()
        if len(pid) >= 2 and pid[0] == "module":  # a class, and the text of its source
            return pid[1]
        name, kind, key, _, count, view = pid if len(pid) == 6 else (None,) * 6
        if name != "storage" or not isinstance(kind, Type) or type(count) is not int or count < 0:
            raise Refused("it names a storage of another kind")
        first, length = 0, count
        if view is not None:
            _, first, length = view
        if type(first) is not int or type(length) is not int or first < 0 or length < 0 or first + length > count:
            raise Refused("it has a view outside of its storage")
        if str(key) not in declared:
            total += count * kind.size
            if total > size:
                raise Refused(f"its storages have {total} bytes together, more than the file")
            declared[str(key)] = (count, torch.empty(count * kind.size, dtype=torch.uint8))
        known, raw = declared[str(key)]
        if known != count or raw.numel() != count * kind.size:
            raise Refused("it has a storage of two sizes")
        return Storage(lambda: raw, kind, first, length)

    parts: List[Any] = []
    at = 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(5):
            with memoryview(mapped) as whole, whole[at : at + LARGEST_PICKLE] as rest:
                end = at + scan(rest, compiled=False, forgets_state=True).end
            parts.append(Reader(mapped[at:end], storage).load())
            if parts[0] != _MAGIC:
                raise CheckpointError(
                    f"{file}: a pickle that PyTorch did not write; expected what torch.save writes, or safetensors"
                )
            at = end
        opened.seek(at)
        _fill(opened, declared, parts)
    return finished(parts[3])


def _fill(opened: io.BufferedReader, declared: Dict[str, Tuple[int, Tensor]], parts: List[Any]) -> None:
    """Read the storages, in the order of the keys that the last pickle names."""
    if isinstance(parts[2], dict) and parts[2].get("little_endian") is False:
        raise Refused("its numbers are big-endian")
    keys = parts[4]
    if not isinstance(keys, list) or len(keys) != len(declared) or {str(key) for key in keys} != set(declared):
        raise Refused("it lists other storages than it uses")
    for key in keys:
        count, raw = declared[str(key)]
        (stored,) = struct.unpack("<q", opened.read(8))
        if stored != count:
            raise Refused(f"its storage {str(key)[:40]!r} has {stored} elements where {count} are declared")
        _filled(opened, raw)
