"""Find the lidar record and the label file of each key frame in nuScenes' tables.

``lidarseg.json`` names a label file for each lidar record, and so does ``panoptic.json``, which is read where the
former is absent. ``sample_data.json`` maps records to samples. In the full set it has 2.6 million records (about 1 GB),
so it is read in pieces, and only the records that are needed are parsed.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, Optional, Union

from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.untrusted.names import has_unseen, is_file_name, short

LABEL_TABLES = ("lidarseg.json", "panoptic.json")
_CHUNK = 16 * 1024 * 1024  # bytes


def label_table(root: Union[str, Path], version: str) -> Optional[Path]:
    """Return the table of point labels of a data set; None if it has none."""
    tables = (to_path(root, version, name) for name in LABEL_TABLES)
    return next((table for table in tables if table.is_file()), None)


class LabelFiles:
    """Find label file names of one data set, relative to its root."""

    def __init__(self, root: Union[str, Path], version: str) -> None:
        """Read the two tables under ``root/version``. Raises DataError where one is missing or damaged."""
        self._folder = to_path(root, version)
        self._table = label_table(root, version) or self._folder / LABEL_TABLES[0]
        tables = [self._table, self._folder / "sample_data.json"]
        for path in tables:
            if not path.is_file():
                raise DataError(
                    f"{path}: no such file, so the point labels cannot be found; unpack the nuScenes metadata and "
                    f"nuScenes-lidarseg into data.root ({root}) and set data.version to the name of the table folder"
                )
        stamps = tuple((str(path), getattr(path.stat(), "st_mtime", 0), path.stat().st_size) for path in tables)
        self._by_sample, self._by_scan = _read(*stamps)

    def find(self, sample_token: str, scan_name: str) -> str:
        """Return the label file of a sample, or of the lidar file with that base name where the token is unknown.

        Raises DataError if neither is in the tables.
        """
        found = self._by_sample.get(sample_token) or self._by_scan.get(scan_name)
        if found is None:
            raise DataError(
                f"sample {sample_token}: {self._table} has no labels for it (lidar file {scan_name}); "
                "expected infos and tables of the same nuScenes version, so set data.version or make the infos again"
            )
        return found


@lru_cache(maxsize=2)  # training and validation sets of one run share their tables
def _read(lidarseg: tuple, sample_data: tuple) -> tuple:
    files = {
        r["sample_data_token"]: r["filename"] for r in _records(lidarseg[0], b"{", "sample_data_token", "filename")
    }
    by_sample: Dict[str, str] = {}
    by_scan: Dict[str, str] = {}
    # The path of a lidar file contains its channel; the other eleven channels have no labels.
    for record in _records(sample_data[0], b"LIDAR_TOP", "token", "sample_token", "is_key_frame", "filename"):
        name = files.get(record["token"])
        if name is not None and record["is_key_frame"]:
            by_sample[record["sample_token"]] = name
            by_scan[record["filename"].rsplit("/", 1)[-1]] = name
    return by_sample, by_scan


def scan_tokens(root: Union[str, Path], version: str) -> Dict[str, str]:
    """Return the token of each key frame's lidar record by sample token. Raises DataError where a table is missing."""
    path = to_path(root, version, "sample_data.json")
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, so the tokens of the lidar scans cannot be found; unpack the nuScenes metadata "
            f"({version}) into data.root ({root})"
        )
    wanted = ("token", "sample_token", "is_key_frame", "filename")
    return {r["sample_token"]: r["token"] for r in _records(str(path), b"LIDAR_TOP", *wanted) if r["is_key_frame"]}


def _records(path: str, containing: bytes, *fields: str) -> Iterator[dict]:
    """Yield the records of a table whose text contains ``containing``; records of these tables are flat."""
    text, chunk = b"", b" "
    with to_path(path).open("rb") as file:
        while chunk:
            chunk = file.read(_CHUNK)
            text += chunk
            at = text.find(containing)
            while at >= 0:
                start, stop = text.rfind(b"{", 0, at + 1), text.find(b"}", at) + 1
                if not stop:
                    break  # the rest of this record comes with the next chunk
                yield _parse(path, text[max(start, 0) : stop], fields)
                at = text.find(containing, stop)
            text = text[text.rfind(b"}") + 1 :]
    if text.strip() != b"]" and text.replace(b" ", b"").strip() != b"[]":
        raise DataError(f"{path}: ends in the middle of a record; download the table again")


def _parse(path: str, text: bytes, fields: tuple) -> dict:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: not JSON at {text[:80]!r} ({err}); download the table again") from err
    missing = [name for name in fields if not isinstance(record, dict) or name not in record]
    if missing:
        raise DataError(f"{path}: a record has no {missing[0]!r} ({text[:80]!r}); expected a table of nuScenes v1.0")
    for name in fields:
        value = record[name]
        if name == "is_key_frame":
            fits = isinstance(value, bool)
        else:
            fits = isinstance(value, str) and len(value) <= 4096 and not has_unseen(value)
            fits = fits and (name == "filename" or not value or is_file_name(value))
        if not fits:
            raise DataError(f"{path}: a record's {name} is {short(value)}; expected a table of nuScenes v1.0")
    return record
