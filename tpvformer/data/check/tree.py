"""Compare the folders of a download with its tables; name the archive that is most likely missing.

The tables name every file, but not the archive that brought it: nuScenes does not publish
which of the ten v1.0-trainvalNN_blobs holds a scene. So files are counted by folder and by scene, and the kind of the
missing archive is named.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List, Set

from tpvformer.data.check.report import Folder, Report
from tpvformer.data.nuscenes.annotations import BOX_TABLES

NEEDED = ("scene", "sample", "sensor", "calibrated_sensor", "sample_data", "ego_pose")
TABLES = (
    *NEEDED, "category", "attribute", "visibility", "instance", "log", "sample_annotation", "map",
)  # fmt: skip


def names_in(folder: Path) -> Set[str]:
    """Return the files of a folder; empty if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError:
        return set()


def folders_in(folder: Path) -> List[str]:
    """Return the folders in a folder, in order; empty if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def check_tables(report: Report, folder: Path) -> bool:
    """Counts the table files; True where all that this package reads are there."""
    there = names_in(folder)
    missing = [name for name in TABLES if f"{name}.json" not in there]
    report.folders.append(Folder(f"{folder.name}/*.json", len(TABLES), len(TABLES) - len(missing)))
    for name in missing:
        if name in NEEDED:
            archive = "v1.0-mini" if folder.name.endswith("mini") else f"{folder.name}_meta"
            report.fault("tables", f"{folder / name}.json is missing; it is part of the archive {archive}")
    extra = [name for name in missing if name not in (*NEEDED, *BOX_TABLES)]
    if extra:
        report.notes.append(f"{', '.join(extra)} missing among the tables: only nuscenes-devkit needs them")
    return not any(name in NEEDED for name in missing)


class Tree:
    """Counts the files that sample_data names, folder by folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._there: Dict[str, Set[str]] = {}
        self._folders: Dict[str, Folder] = {}
        self._needed: Set[str] = set()
        for top in ("samples", "sweeps"):
            for channel in folders_in(root / top):
                self._there[f"{top}/{channel}"] = names_in(root / top / channel)

    def add(self, filename: str) -> bool:
        """One file of the tables; True where it is there."""
        name, _, file = filename.rpartition("/")
        folder = self._folders.get(name)
        if folder is None:
            folder = self._folders[name] = Folder(f"{name}/")
            if name not in self._there:  # other sets, such as Lyft's, have other folders than samples/ and sweeps/
                self._there[name] = names_in(self._root / name)
        folder.expected += 1
        there = file in self._there[name]
        folder.found += there
        return there

    def need(self, filename: str) -> None:
        """Says of a file that this package reads it."""
        self._needed.add(filename.rpartition("/")[0])

    def finish(self, report: Report, channels: Set[str]) -> None:
        """Adds the folders to the report; ``channels`` are those whose key frames this package reads."""
        for name in sorted(self._there):
            folder = self._folders.get(name, Folder(f"{name}/"))
            folder.others = max(0, len(self._there[name]) - folder.found)
            folder.needed = name in self._needed or (name.startswith("samples/") and name.split("/")[-1] in channels)
            if folder.needed or folder.expected or folder.others:
                report.folders.append(folder)


def check_folder(report: Report, root: Path, name: str, expected: List[str], needed: bool) -> None:
    """Counts the files of a flat folder below the root."""
    there = names_in(root / name)
    found = len(there.intersection(expected))
    report.folders.append(Folder(f"{name}/", len(expected), found, len(there) - found, needed))


def name_archive(report: Report, version: str, lost: Dict[str, int], whole: Dict[str, int], channels: Set[str]) -> None:
    """Says which kind of archive is most likely missing.

    ``lost`` and ``whole`` count the needed key-frame files of each scene, missing and expected; ``channels`` are those
    with a missing file.
    """
    gone = [scene for scene in lost if lost[scene] == whole[scene]]
    partly = [scene for scene in lost if 0 < lost[scene] < whole[scene]]
    blobs = {"mini": "v1.0-mini", "test": "v1.0-test_blobs"}.get(version.split("-")[-1], "v1.0-trainvalNN_blobs")
    if gone:
        which = "; the tables do not say which of the ten holds which scene" if "NN" in blobs else ""
        report.notes.append(
            f"no key-frame file of {len(gone)} whole scenes is there ({', '.join(gone[:3])}{', ...' * (len(gone) > 3)})"
            f": most likely an archive {blobs} was not unpacked{which}"
        )
    if partly:
        report.notes.append(
            f"{len(partly)} scenes are there in part ({', '.join(partly[:3])}{', ...' * (len(partly) > 3)}; missing in "
            f"{', '.join(sorted(channels))}): an archive {blobs} unpacked in part, or only its camera or lidar part"
        )
