"""Downloads from and uploads to Hugging Face's hub. They need ``huggingface_hub``; local paths do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Optional, Sequence

from tpvformer.errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".json", ".py")


def is_hub_id(text: str) -> bool:
    """Tell whether a text that names no file may be ``owner/name`` of a repository on the hub."""
    return _ID.fullmatch(text) is not None and not text.endswith(_FILES)


def download(hub_id: str, revision: Optional[str], names: Sequence[str]) -> Path:
    """Download a repository's files of these names and return their folder. Raises CheckpointError."""
    hub = _library(f"{hub_id}: is no path here; as a hub's repository it")
    try:
        return Path(hub.snapshot_download(repo_id=hub_id, revision=revision, allow_patterns=list(names)))
    except Exception as err:  # the library raises many types of error: no such repository, no such file, no network
        raise CheckpointError(f"{hub_id}: is no path here, and the hub did not give it ({_line(err)})") from err


def upload(folder: Path, hub_id: str, private: bool) -> str:
    """Create the repository if it does not exist, upload a folder's files, and return its address.

    Raises CheckpointError.
    """
    hub = _library(f"{hub_id}: uploading")
    try:
        hub.create_repo(repo_id=hub_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=hub_id, folder_path=str(folder), commit_message="TPVFormer weights"))
    except Exception as err:  # as above
        raise CheckpointError(f"{hub_id}: the hub did not take it ({_line(err)})") from err


def _library(what: str) -> Any:
    try:
        import huggingface_hub  # ty: ignore[import-not-found]
    except ImportError as err:
        raise CheckpointError(f"{what} needs huggingface_hub; pip install huggingface_hub, or name a folder") from err
    return huggingface_hub


def _line(err: Exception) -> str:
    return (str(err) or type(err).__name__).splitlines()[0]
