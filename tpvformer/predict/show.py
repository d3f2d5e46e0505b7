"""Show results: the viewer's page in a browser or a notebook, and pictures as arrays and files."""

from __future__ import annotations

import base64
import html
import io
import os
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import numpy as np

from tpvformer.errors import ConfigError, DataError
from tpvformer.files import atomic_file
from tpvformer.viz.frame_prediction import FramePrediction

PathLike = Union[str, "os.PathLike[str]"]
_INLINE = 1200  # pixels; width of a picture in a notebook
_HEIGHT = 760  # pixels; height of the page in a notebook


def page(results: Sequence[FramePrediction], path: Optional[PathLike], title: str) -> Union[Path, str]:
    """Write the viewer's page of these frames to ``path`` and return it; return the page as text without ``path``."""
    from tpvformer.viz.viewer import write_page

    if not results:
        raise DataError("there are no frames to show; expected one at least")
    if path is None:
        buffer = io.BytesIO()
        write_page(buffer, results, title)
        return buffer.getvalue().decode()
    target = Path(path)
    with atomic_file(target) as file:
        write_page(file, results, title)
    return target


def picture(result: FramePrediction, path: Optional[PathLike]) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 RGB; also write it to ``path``, a .png, if given. Raises ConfigError."""
    from tpvformer.viz.picture import write_png
    from tpvformer.viz.video import video_frame

    if path is not None and Path(path).suffix != ".png":
        raise ConfigError(f"path is {path}; expected a name that ends in .png")
    drawn = video_frame(result)
    if path is not None:
        try:
            write_png(Path(path), drawn)
        except OSError as err:
            raise ConfigError(f"path is {path}, which cannot be written ({err.strerror}); name another file") from err
    return np.ascontiguousarray(drawn[..., ::-1])


def show(results: Sequence[FramePrediction], title: str) -> Path:
    """Write the page to a temporary folder and open it, in a notebook below the cell or in a browser; return the file.

    If neither is available, a line on stdout names the file.
    """
    file = Path(tempfile.mkdtemp(prefix="tpvformer-")) / "page.html"
    page(results, file, title)
    if not _in_notebook(file) and not (_has_screen() and webbrowser.open(file.as_uri())):
        print(f"{file}: open it in any browser; none could be opened from here")
    return file


def inline(results: Sequence[FramePrediction], words: str) -> str:
    """Return HTML for a notebook: a picture of the first frame, and ``words`` below it."""
    import cv2

    drawn = picture(results[0], None)
    size = (_INLINE, round(drawn.shape[0] * _INLINE / drawn.shape[1]))
    small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)[..., ::-1]
    data = base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()).decode()
    text = html.escape(words)
    return f'<img alt="{text}" src="data:image/jpeg;base64,{data}" style="max-width:100%"><br><code>{text}</code>'


def _in_notebook(file: Path) -> bool:
    """Show the page below the cell of a notebook; return False outside a notebook."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return False
    from IPython.display import HTML, display  # ty: ignore[import-not-found]  # provided by the notebook

    source = html.escape(file.read_text(encoding="utf-8"), quote=True)
    frame = f'<iframe srcdoc="{source}" style="width:100%;height:{_HEIGHT}px;border:0"></iframe>'
    display(HTML(frame))
    return True


def _has_screen() -> bool:
    """Return whether a graphical browser can open; a text browser cannot show the page."""
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
