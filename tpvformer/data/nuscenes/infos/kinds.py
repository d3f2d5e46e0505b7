"""Recognise files that are neither infos nor a rig: a video, a recording, the intrinsics of one camera, text."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Union

from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.untrusted.kinds import HEAD, kind_of

_INFOS = (".pkl", ".pickle")


def refuse_other_kinds(path: Union[str, Path]) -> None:
    """Raise DataError for a file that, by its beginning or suffix, is neither infos nor a rig."""
    head, file = b"", to_path(path)
    if file.suffix.lower() in _INFOS or file.name.lower().endswith(tuple(f"{suffix}.gz" for suffix in _INFOS)):
        return  # load_pickle reports its problems
    with contextlib.suppress(OSError), file.open("rb") as opened:  # the next reader reports a missing file
        head = opened.read(HEAD)
    kind = kind_of(file, head)
    if kind:
        frames = "; frames of a video are written as images first (ffmpeg, cv2.VideoCapture)" if "video" in kind else ""
        raise DataError(
            f"{path}: is {kind}; expected infos (.pkl, .safetensors), or a rig file, a .json that describes all "
            f"cameras as docs/rig.md shows{frames}"
        )
