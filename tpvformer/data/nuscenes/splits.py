"""List the scenes of each split.

The official lists follow no rule, so they are stored here: scene numbers of the five nuScenes splits, as
nuscenes-devkit 1.2.0 returns them from create_splits_scenes(). A data set may define its own splits in
<version>/splits.json, {split: [scene names]}; those take precedence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

from tpvformer.errors import DataError
from tpvformer.untrusted.names import short
from tpvformer.untrusted.text import parse_json

OFFICIAL = {
    "train": (
        "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 206-214 "
        "218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 471-472 "
        "474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 "
        "700-701 703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 "
        "815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 "
        "994-1025 1044-1058 1074-1102 1104-1110"
    ),
    "val": (
        "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
        "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
    ),
    "test": (
        "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 833-842 "
        "844-846 932-933 935-943 1026-1043"
    ),
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}
VERSIONS = {"train": "trainval", "val": "trainval", "test": "test", "mini_train": "mini", "mini_val": "mini"}


def official(split: str) -> List[str]:
    """Return the scene names of an official split, in ascending order."""
    names: List[str] = []
    for part in OFFICIAL[split].split():
        first, _, last = part.partition("-")
        names += [f"scene-{number:04d}" for number in range(int(first), int(last or first) + 1)]
    return names


def own_splits(folder: Path) -> Dict[str, List[str]]:
    """Read the splits in splits.json of a table folder; empty if there is no such file. Raises DataError for another
    layout."""
    path = folder / "splits.json"
    if not path.is_file():
        return {}
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: not readable as JSON ({err}); expected {{split: [scene names]}}") from err
    if not isinstance(found, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()
    ):
        raise DataError(f"{path}: expected {{split: [scene names]}}, as nuscenes-devkit 1.2 reads it")
    for split in found:  # the name becomes part of file names
        if not split.replace("_", "").replace("-", "").replace(".", "").isalnum() or ".." in split:
            raise DataError(f"{path}: the split's name {short(split)} is not made of letters, digits, '_', '-' and '.'")
    return found


def further(folder: Path) -> str:
    """Return the end of a message: how to define further splits."""
    return f'{folder}/splits.json may list others: {{"val": [names of scenes]}}'


def default_splits(folder: Path) -> List[str]:
    """Return the default splits of a version: those of its splits.json, else the official ones of its name."""
    return list(own_splits(folder)) or [split for split, end in VERSIONS.items() if folder.name.endswith(end)]


def scenes_of(folder: Path, split: str) -> List[str]:
    """Return scene names of a split of the tables in ``folder``; raises DataError where that version has no such
    split."""
    own = own_splits(folder)
    if split in own:
        return own[split]
    if split not in OFFICIAL:
        known = ", ".join([*own, *OFFICIAL])
        raise DataError(f"split {split!r} is none of {known}; {further(folder)}")
    if not folder.name.endswith(VERSIONS[split]):
        raise DataError(
            f"split {split} belongs to the version v1.0-{VERSIONS[split]}, but the tables are those of {folder.name}; "
            f"ask for another --version or other --splits; {further(folder)}"
        )
    return official(split)
