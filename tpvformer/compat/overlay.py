"""Replacing four files of an installed mmcv 1.x and mmdet 2.x by ours and adding one; restoring the original bytes.

Our files are in ``mmcv_need`` and ``mmdet_need``, beside this package in a checkout and in an installation. Beside each
replaced file two files are written: ``<name>.before-tpvformer``, the original bytes, and ``<name>.by-tpvformer``, the
SHA-256 of the file that replaced it. The latter tells an older version of our file from somebody's changes. The added
file, ``_ext.py``, has the second alone; an mmcv with compiled operations does not get it. Nothing of mmcv or mmdet is
imported or executed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from tpvformer.errors import ConfigError

SOURCES = Path(__file__).resolve().parents[2]
VERSIONS = {"mmcv": "1.7.2", "mmdet": "2.28.2"}  # the only ones the files were tried with
STOCK, OURS, OLDER, CHANGED, MISSING = "stock", "ours", "ours of another version", "changed", "missing"


class OverlayError(ConfigError):
    """Files that cannot be replaced; the message names them, what was found and what was expected. Nothing was done."""


class DropIn(NamedTuple):
    """One of our files, the file it replaces, and the SHA-256 of the published file (with Unix line ends)."""

    package: str
    source: str  # under SOURCES
    target: str  # under the package's folder
    published: str  # empty: the package as published has no such file


DROP_INS = (
    DropIn(
        "mmcv",
        "mmcv_need/distributed.py",
        "parallel/distributed.py",
        "abd83b3eb0223a458b8fe4adac4525f491e52c5245c78c19a119bb92e2c37e5b",
    ),
    DropIn(
        "mmcv",
        "mmcv_need/modulated_deform_conv.py",
        "ops/modulated_deform_conv.py",
        "080b61a80878d2fb55c69c0df5967ae53083c15b12a5c12186373c7eb9ae6f7c",
    ),
    DropIn(
        "mmcv",
        "mmcv_need/optimizer.py",
        "runner/hooks/optimizer.py",
        "0ffef1a61a95c0ef34dd3137c5fad94d739d64eecdeb7554e368ca82ceff3f7d",
    ),
    DropIn(
        "mmdet",
        "mmdet_need/resnet.py",
        "models/backbones/resnet.py",
        "dce1c414062e6f1878378aa964cd8893d8c0da92b5390ca87d7a54735e38c34d",
    ),
    DropIn("mmcv", "mmcv_need/_ext.py", "_ext.py", ""),
)


@dataclass
class Place:
    """A drop-in and the file that it replaces in one installation, as they are on the disk now."""

    drop_in: DropIn
    path: Path

    def __post_init__(self) -> None:
        source = SOURCES / self.drop_in.source
        if not source.is_file():
            raise OverlayError(f"{source} is missing from this installation of tpvformer; install it again")
        self.ours = source.read_bytes()
        self.original = _read(self.before)
        self.current = _read(self.path)
        self.state = self._state()

    @property
    def before(self) -> Path:
        """The path of the original bytes."""
        return self.path.with_name(self.path.name + ".before-tpvformer")

    @property
    def record(self) -> Path:
        """The path of the SHA-256 of the file that replaced the original."""
        return self.path.with_name(self.path.name + ".by-tpvformer")

    def _state(self) -> str:
        added = not self.drop_in.published
        if self.current is None:
            return STOCK if added else MISSING
        if self.current == self.ours:
            return OURS
        if self.original is not None and self.current == self.original:
            return STOCK
        if (added or self.original is not None) and (_read(self.record) or b"").decode("ascii", "replace") == _sha(
            self.current
        ):
            return OLDER
        published = _sha(self.current.replace(b"\r\n", b"\n")) == self.drop_in.published
        return STOCK if published else CHANGED


def find(mmcv: Optional[Path], mmdet: Optional[Path]) -> List[Place]:
    """Find the files of the packages at these paths; of the installed packages where both are None.

    A path is the package's folder or one that contains it. Raises OverlayError where it is not that package or has
    another version.
    """
    named: Dict[str, Optional[Path]] = {"mmcv": mmcv, "mmdet": mmdet}
    if mmcv is None and mmdet is None:
        named = {name: _installed(name) for name in named}
        if not any(named.values()):
            raise OverlayError("neither mmcv nor mmdet is installed here; say where they are with --mmcv and --mmdet")
    folders = {name: _package_folder(name, path) for name, path in named.items() if path is not None}
    for name, folder in folders.items():
        found = _version(folder / "version.py")
        if found != VERSIONS[name]:
            raise OverlayError(f"{folder} is {name} {found}; expected {VERSIONS[name]}, the version the files are for")
    found = [Place(item, folders[item.package] / item.target) for item in DROP_INS if item.package in folders]
    return [place for place in found if place.drop_in.published or not _compiled(place.path)]


def _compiled(path: Path) -> bool:
    """Tell whether a module is there in a compiled form, which Python prefers to a file of its name in Python."""
    return any(path.with_suffix(suffix).is_file() for suffix in EXTENSION_SUFFIXES)


def table(places: Iterable[Place]) -> str:
    """Return one line for each file: its state and its path."""
    rows = [(place.drop_in.source, place.state, str(place.path)) for place in places]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{source:<{widths[0]}}  {state:<{widths[1]}}  {path}" for source, state, path in rows)


def apply(places: List[Place]) -> int:
    """Replace the files by ours, all or none, and return how many were written. A second call changes nothing.

    Raises OverlayError where a file is missing, or is neither the published one nor ours.
    """
    for place in places:
        if place.state in (MISSING, CHANGED):
            raise OverlayError(_refusal(place, "nothing was exchanged"))
    changes: List[Tuple[Path, Optional[bytes]]] = []
    for place in places:
        # The original first, the record last: after an interruption at any point, apply and revert still work.
        if place.state == STOCK and place.current is not None:
            changes.append((place.before, place.current))
        changes.append((place.path, place.ours))
        if place.state == STOCK or place.original is not None or not place.drop_in.published:
            changes.append((place.record, _sha(place.ours).encode("ascii")))
    _commit(changes)
    return sum(place.state != OURS for place in places)


def revert(places: List[Place]) -> int:
    """Restore the original bytes, all or none, and return how many files were written.

    Raises OverlayError where a file was changed since, and where our file has no original beside it.
    """
    changes: List[Tuple[Path, Optional[bytes]]] = []
    restored = 0
    for place in places:
        if not place.drop_in.published:
            if place.state != CHANGED:  # then somebody else's
                restored += place.current is not None
                changes += [(place.path, None), (place.record, None)]
            continue
        if place.original is None:
            if place.state == OURS:
                wanted = f"{place.drop_in.package} {VERSIONS[place.drop_in.package]}"
                raise OverlayError(f"{place.path} is ours, without {place.before.name} beside it; reinstall {wanted}")
            continue  # never replaced
        if place.state in (MISSING, CHANGED):
            raise OverlayError(_refusal(place, "nothing was given back"))
        if place.state != STOCK:
            changes.append((place.path, place.original))
            restored += 1
        changes += [(place.before, None), (place.record, None)]
    _commit(changes)
    return restored


def _refusal(place: Place, outcome: str) -> str:
    name = place.drop_in.package
    if not place.drop_in.published:
        return f"{place.path} is not of {name} {VERSIONS[name]}, nor ours; remove it; {outcome}"
    if place.state == MISSING:
        return f"{place.path} is missing; expected {name} {VERSIONS[name]} with all of its files; {outcome}"
    if place.original is not None:
        return f"{place.path} was changed since our file was put there; expected that file or the original; {outcome}"
    return f"{place.path} was changed by somebody; expected the file of {name} {VERSIONS[name]} or ours; {outcome}"


def _installed(name: str) -> Optional[Path]:
    """Return the folder of an installed package without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _package_folder(name: str, path: Path) -> Path:
    for folder in (path / name, path):
        if (folder / "version.py").is_file():
            return folder
    raise OverlayError(
        f"{path} holds no {name}; expected the package's folder, or a checkout with {name}/version.py in it"
    )


def _version(file: Path) -> str:
    """Return the value of ``__version__`` in a Python file, without running it."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8"), str(file)).body
    except (SyntaxError, UnicodeDecodeError) as err:
        raise OverlayError(f"{file} is no Python file that can be read: {err}") from err
    for node in body:
        named = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        if "__version__" in named and isinstance(value, ast.Constant):
            return str(value.value)
    return "of an unknown version"


def _read(path: Path) -> Optional[bytes]:
    return path.read_bytes() if path.is_file() else None


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _commit(changes: List[Tuple[Path, Optional[bytes]]]) -> None:
    """Write files in this order (None removes one). After a failure all of them have their previous content."""
    done: List[Tuple[Path, Optional[bytes]]] = []
    try:
        for path, content in changes:
            done.append((path, _read(path)))
            _put(path, content)
    except BaseException as err:  # an interrupt, too, must not leave half of the files replaced
        for path, old in reversed(done):
            _put(path, old)
        if isinstance(err, OSError):
            raise OverlayError(f"{path} cannot be written ({err.strerror}); nothing was done") from err
        raise


def _put(path: Path, content: Optional[bytes]) -> None:
    """Write one file atomically, with the permissions of the file that it replaces."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    if content == _read(path):
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, path.stat().st_mode & 0o7777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
