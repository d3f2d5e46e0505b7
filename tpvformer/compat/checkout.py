"""Warnings about a checkout of the reference in which the model code was changed.

A run started in such a checkout uses this package's model, so such changes have no effect, unless --own-model asks for
the checkout's. Nothing is asked at a prompt: launchers and schedulers have nobody who answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple

COMMIT = "459bc060901c9c4920f802252f04b290a449e4a1"  # of wzzheng/TPVFormer: the code whose model this package has
SAME_CODE = ("4c607ce84d3fa64",)  # public commits with the same code, which a clone has that does not reach back to it
PUBLIC = "wzzheng/tpvformer"  # in the address of a remote
FOLDERS = ("tpvformer04", "tpvformer10")
_WHERE = ", ".join(f"{name}/" for name in FOLDERS)
_WHICH = (
    "train.py and eval.py take --own-model for the checkout's own model, and --no-own-model, which ends this remark "
    "(also TPVFORMER_OWN_MODEL=1 or 0; docs/fork.md)"
)
_SECONDS = 20.0
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")  # set where git started this process, in a hook


class _CannotTell(Exception):
    """Git gave no answer; the message is the reason."""


def remarks(folder: Path, commit: Optional[str] = None) -> List[str]:
    """Return at most one line for the log: model code in ``folder`` differs from ``commit``, or this cannot be told.

    The files' content is compared with that of a commit in the clone: ``commit``, another commit with the same code, or
    the public branch that was cloned. No history is needed. Empty for a folder that is no checkout of the reference,
    and for one whose model code is as published.
    """
    asked = COMMIT if commit is None else commit
    if not any((folder / name).is_dir() for name in FOLDERS):
        return []
    commit = asked
    try:
        commit = _base(folder, asked)
        changed = _changed(folder, commit)
    except _CannotTell as err:
        return [
            f"whether {_WHERE} were changed since {asked[:7]} cannot be told ({err}); the model that runs is this "
            f"package's own, and changes there have no effect; {_WHICH}"
        ]
    if not changed:
        return []
    names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
    base = commit if "/" in commit else commit[:7]
    verb = "file differs" if len(changed) == 1 else "files differ"
    return [
        f"{len(changed)} {verb} from {base} under {_WHERE} ({names}); the model that runs is this package's own, "
        f"and these changes have no effect; {_WHICH}"
    ]


def _base(folder: Path, commit: str) -> str:
    """Return a commit that this clone has: ``commit``, else one with the same code, else the public branch.

    Where it has none of them, ``commit`` is returned; git then reports that it is missing.
    """
    for name in (commit, *SAME_CODE):
        if _holds(folder, name):
            return name
    for line in _ask(folder, "config", "--get-regexp", r"^remote\..*\.url$", ok=(0, 1)):
        key, _, address = line.partition(" ")
        remote = key[len("remote.") : -len(".url")]
        if address.lower().rstrip("/").endswith((PUBLIC, f"{PUBLIC}.git")):
            for branch in ("HEAD", "main", "master"):
                if _holds(folder, f"refs/remotes/{remote}/{branch}"):
                    return f"{remote}/{branch}"
    return commit


def _holds(folder: Path, name: str) -> bool:
    return _run(folder, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}").returncode == 0


def _changed(folder: Path, commit: str) -> List[str]:
    """Files changed, added or removed since the commit, untracked ones too, relative to ``folder``, sorted."""
    # in this order, because outside a repository git diff compares folders instead of failing
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "-z")
    diff = ("diff", "--no-ext-diff", "--no-renames", "--name-only", "--relative", "-z", commit)
    with tempfile.TemporaryDirectory() as temporary:
        # git diff writes the index where a file's time has changed: here to a copy, which keeps the index's own time,
        # by which git knows files that may have changed since without another size or second
        index = folder / _run(folder, "rev-parse", "--git-path", "index").stdout.decode(errors="replace").strip()
        copied = {"GIT_INDEX_FILE": shutil.copy2(index, temporary + "/index")} if index.is_file() else {}
        tracked = _git(folder, *diff, more=copied)
    return sorted({name for name in tracked + untracked if "__pycache__/" not in name})


def _git(folder: Path, *command: str, more: Optional[Dict[str, str]] = None) -> List[str]:
    """Return the names that a git command lists for FOLDERS. Git writes nothing, not even its index."""
    done = _run(folder, *command, "--", *FOLDERS, more=more)
    _check(done, (0,))
    return [name.decode("utf-8", "replace") for name in done.stdout.split(b"\0") if name]


def _ask(folder: Path, *command: str, ok: Tuple[int, ...]) -> List[str]:
    """Return the lines that a git command prints. Raises _CannotTell for an exit code that is not in ``ok``."""
    done = _run(folder, *command)
    _check(done, ok)
    return done.stdout.decode("utf-8", "replace").splitlines()


def _check(done: "subprocess.CompletedProcess[bytes]", ok: Tuple[int, ...]) -> None:
    if done.returncode not in ok:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise _CannotTell(f"git says: {said[0]}")


def _run(folder: Path, *command: str, more: Optional[Dict[str, str]] = None) -> "subprocess.CompletedProcess[bytes]":
    env = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *command],
            env=dict(env, GIT_OPTIONAL_LOCKS="0", GIT_NO_LAZY_FETCH="1", LC_ALL="C", **(more or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
        )
    except FileNotFoundError as err:
        raise _CannotTell("there is no git") from err
    except OSError as err:
        raise _CannotTell(f"git does not start: {err.strerror}") from err
    except subprocess.TimeoutExpired as err:
        raise _CannotTell(f"git took more than {_SECONDS:.0f} s") from err
