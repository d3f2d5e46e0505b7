"""Read nuScenes' tables: small ones at once, the two large ones a few thousand rows at a time.

sample_data.json and ego_pose.json have 2.6 million rows each in the full set; as Python objects they would take several
GiB. Their rows contain no nested objects and their strings no braces, so the text can be cut after any closing brace.
"""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from tpvformer.errors import ConfigError, DataError
from tpvformer.untrusted.names import has_unseen, is_file_name, short

CHUNK = 8 * 1024 * 1024  # bytes read at a time; as Python objects their rows take about ten times as much
LARGEST = 1e12  # metres: a larger coordinate is an error; a comparison with NaN is false as well
Row = Dict[str, Any]
Progress = Callable[[str, int, int], None]  # (table, bytes done, bytes in all)


def version_below(root: Path, otherwise: str = "") -> str:
    """Return the name of the only table folder below ``root``. Raises ConfigError, with ``otherwise`` at its end."""
    versions = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
    if len(versions) == 1:
        return versions[0]
    if versions:
        found = f"holds the table folders {', '.join(versions)}; choose one with --version"
    elif not root.is_dir():
        found = "is no folder; name the one that holds samples/ and a table folder such as v1.0-mini with --root"
    else:
        found = "holds no table folder such as v1.0-mini with sample_data.json in it; unpack nuScenes' metadata there"
    raise ConfigError(f"--root {root} {found}{otherwise}")


def table_path(folder: Path, name: str) -> Path:
    """Return the file of a table. Raises DataError if it is missing."""
    path = folder / f"{name}.json"
    if path.is_file():
        return path
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder of nuScenes tables; --root names the folder that holds it (with samples/ beside "
            "it) and --version its name, such as v1.0-mini or v1.0-trainval"
        )
    raise DataError(f"{path}: no such table; unpack the nuScenes metadata archive ({folder.name}) again")


def read_table(folder: Path, name: str, *fields: str) -> List[Row]:
    """Read all rows of a small table. Raises DataError where a row lacks one of the fields or shares its token."""
    path = table_path(folder, name)
    try:
        rows = _loads(path.read_bytes())
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); expected a table of nuScenes v1.0") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: not JSON ({err}); unpack the nuScenes metadata archive again") from err
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}; expected a list of rows, as in nuScenes v1.0")
    _check(path, rows, ("token", *fields))
    by_token(path, rows)
    return rows


def by_token(path: Path, rows: List[Row]) -> Dict[str, Row]:
    """Index rows by their token; raises DataError where two share one."""
    found: Dict[str, Row] = {}
    for row in rows:
        if found.setdefault(row["token"], row) is not row:
            raise DataError(f"{path}: two rows have the token {row['token']}; unpack the metadata archive again")
    return found


def stream_table(folder: Path, name: str, *fields: str, progress: Optional[Progress] = None) -> Iterator[List[Row]]:
    """Yield the rows of a large table in order, some at a time; memory stays bounded whatever the table's size.

    Raises DataError where the text is no list of flat rows, ends early, or a row lacks one of ``fields``.
    """
    path = table_path(folder, name)
    done, rest, first = 0, b"", True
    for chunk, total in _chunks(path):
        done += len(chunk)
        text, rest = _whole_rows(rest + chunk)
        if text:
            rows = _parse(path, text, first)
            _check(path, rows, fields)
            first = False
            yield rows
        if progress is not None:
            progress(name, done, total)
    if b"".join(rest.split()) != (b"[]" if first else b"]"):
        raise DataError(f"{path}: ends in the middle of a row; unpack the nuScenes metadata archive again")


def _chunks(path: Path) -> Iterator[Tuple[bytes, int]]:
    """Yield pieces of a file, each with the file's size."""
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while True:
                chunk = file.read(CHUNK)
                if not chunk:
                    return
                yield chunk, total
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); expected a table of nuScenes v1.0") from err


def _whole_rows(text: bytes) -> Tuple[bytes, bytes]:
    """Split a text after its last closing brace."""
    stop = text.rfind(b"}") + 1
    return text[:stop], text[stop:]


def _loads(text: bytes) -> Any:
    """Parse JSON. Raises ValueError also for lone surrogates, which JSON can escape but UTF-8 cannot encode."""
    value = json.loads(text)
    if b"\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _parse(path: Path, text: bytes, first: bool) -> List[Row]:
    opening = b"[" if first else b","
    body = text.lstrip()
    try:
        if not body.startswith(opening):
            raise ValueError(f"expected {opening.decode()!r} before a row")
        return _loads(b"[" + body[1:] + b"]")
    except (ValueError, RecursionError) as err:
        raise DataError(
            f"{path}: not a JSON list of rows ({str(err)[:120]}); unpack the nuScenes metadata archive again"
        ) from err


def _check_names(path: Path, name: str, rows: List[Row]) -> None:
    """Raise DataError for tokens, channels and file names that cannot be printed or used in file names."""
    for text in map(itemgetter(name), rows):
        if len(text) > 4096 or has_unseen(text):
            raise DataError(f"{path}: a row's {name} is {short(text)}; expected a name that can be printed")
        if name == "token" and text and not is_file_name(text):
            raise DataError(f"{path}: a row's token is {short(text)}; expected letters and digits")


_TYPES: Dict[str, Tuple[type, ...]] = {
    "timestamp": (int, float), "is_key_frame": (bool,), "translation": (list,), "rotation": (list,),
    "camera_intrinsic": (list,), "size": (list,), "attribute_tokens": (list,), "num_lidar_pts": (int,),
    "num_radar_pts": (int,),
}  # fmt: skip


def _shown(value: Any, most: int) -> str:
    """Format a value as JSON, shortened."""
    try:
        return json.dumps(value)[:most]
    except RecursionError:
        return "nested too deeply"


def _check(path: Path, rows: List[Any], fields: Tuple[str, ...]) -> None:
    """Raise DataError for the first row that lacks a field or has a value of another type than in the schema."""
    for name in fields:
        expected = _TYPES.get(name, (str,))
        try:
            good = set(map(type, map(itemgetter(name), rows))) <= set(expected)
        except (KeyError, TypeError, IndexError):
            good = False
        if good:
            if str in expected:
                _check_names(path, name, rows)
            continue
        for row in rows:
            text = _shown(row, 80)
            if not isinstance(row, dict) or name not in row:
                raise DataError(f"{path}: a row has no {name!r} ({text}); expected a table of nuScenes v1.0")
            if type(row[name]) not in expected:
                raise DataError(
                    f"{path}: a row's {name} is {_shown(row[name], 40)}, not {expected[0].__name__} ({text}); "
                    "unpack the nuScenes metadata archive again"
                )


def pose_numbers(row: Row, path: Path) -> Tuple[float, ...]:
    """Return translation and quaternion of a row as seven numbers. Raises DataError where they are not usable."""
    numbers = (*row["translation"], *row["rotation"])
    numeric = len(row["translation"]) == 3 and len(numbers) == 7 and all(type(n) in (int, float) for n in numbers)
    if numeric and all(abs(n) < LARGEST for n in numbers) and abs(sum(n * n for n in numbers[3:]) - 1) < 0.02:
        return numbers
    raise DataError(
        f"{path}: row {row['token']} has no usable pose (translation {short(row['translation'])}, rotation "
        f"{short(row['rotation'])}); expected 3 finite metres and a unit quaternion of 4"
    )
