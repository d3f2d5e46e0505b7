"""``tpvformer view``: what ``tpvformer predict`` wrote, as a page, pictures, a video and PLY files. No display is needed."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``view``."""
    parser.description = _VIEW
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="npz files, or folders of them")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page with everything, to be opened in a browser")
    parser.add_argument("--title", default="TPVFormer", help="of the page (default: %(default)s)")
    parser.set_defaults(run=_run)


_VIEW = (
    "RESULTs come from tpvformer predict (with --truth also the labels of the set). The page needs no network and no "
    "other file; its slider goes over all frames given: files in their order, folders by scene and time."
)


def _run(args: argparse.Namespace) -> int:
    from tpvformer.data.infos.files import whole_file
    from tpvformer.view_files import read_results
    from tpvformer.viz.viewer import write_page

    if not args.html:
        raise ConfigError("nothing to write; give --html FILE")
    results = read_results(args.results)
    if args.html:
        with whole_file(args.html) as file:
            write_page(file, results, args.title)
        print(f"{args.html}: {len(results)} frames, {args.html.stat().st_size / 1e6:.1f} MB")
    return 0
