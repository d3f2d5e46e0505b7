"""Group frames by scene with nuScenes' tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence

from tpvformer.errors import DataError
from tpvformer.untrusted.names import has_unseen
from tpvformer.untrusted.text import parse_json


def frames_by_scene(root: str, version: str, tokens: Sequence[str]) -> Dict[str, List[int]]:
    """Return positions in ``tokens`` (sample tokens) by name of their scene; scenes in the order of their first frame.

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
    """Return one column of a table by token."""
    try:
        rows: Any = parse_json(path.read_bytes())
        found = {row["token"]: row[name] for row in rows}
        if not all(isinstance(text, str) and not has_unseen(text) for pair in found.items() for text in pair):
            raise ValueError("one of them is no name that can be printed")
        return found
    except OSError as err:
        raise DataError(
            f"{path}: {err.strerror}, so the scenes cannot be found; unpack the nuScenes metadata there"
        ) from err
    except (ValueError, KeyError, TypeError) as err:
        raise DataError(
            f"{path}: not a table whose rows have 'token' and '{name}' ({err}); download the table again"
        ) from err
