"""Which frames belong to which scene, from nuScenes' own tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tpvformer.data.types import DataError


def frames_by_scene(root: str, version: str, tokens: Sequence[str]) -> Dict[str, List[int]]:
    """Positions in ``tokens`` (sample tokens) by name of their scene; scenes in the order of their first frame.

    Raises DataError where a table is missing or damaged, or does not know a sample.
    """
    folder = Path(root, version)
    scene_of = _column(folder / "sample.json", "scene_token")
    name_of = _column(folder / "scene.json", "name")
    scenes: Dict[str, List[int]] = {}
    for position, token in enumerate(tokens):
        name = name_of.get(scene_of.get(token, ""))
        if name is None:
            raise DataError(
                f"sample {token}: {folder} has no scene for it; expected infos and tables of the same nuScenes version"
            )
        scenes.setdefault(name, []).append(position)
    return scenes


def _column(path: Path, name: str) -> Dict[str, str]:
    """One column of a table by token."""
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        return {row["token"]: row[name] for row in rows}
    except OSError as err:
        raise DataError(
            f"{path}: {err.strerror}, so the scenes cannot be found; unpack the nuScenes metadata there"
        ) from err
    except (ValueError, KeyError, TypeError) as err:
        raise DataError(
            f"{path}: not a table whose rows have 'token' and '{name}' ({err}); download the table again"
        ) from err
