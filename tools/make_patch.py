#!/usr/bin/env python3
"""Write TPVFormer.patch, which makes the commands of a checkout of the reference run on this package.

    python tools/make_patch.py            write it, from test/, requirements.txt and tools/patch_notice.md
    python tools/make_patch.py --check    exit status 1 if the file is not up to date

The patch contains no line of the reference. It inserts lines above the first line of a script, which is blank there: a
hunk with only that line as context applies whatever follows, and is refused a second time. requirements.txt is renamed
without showing its content; the rename must come before the new file of the old name, or ``git apply -R`` fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]
PATCH = ROOT / "TPVFormer.patch"
SCRIPTS = ("train.py", "eval.py", "visualization/vis_frame.py", "visualization/vis_scene.py")
LAUNCHERS = ("common.sh", "env_npu.sh", "train_1p.sh", "train_8p.sh", "train_multi_node.sh")
NOTICE = "NOTICE.tpvformer.md"

HEADER = f"""\
Makes the commands of a checkout of wzzheng/TPVFormer (459bc060901c9c4920f802252f04b290a449e4a1) run on the package
tpvformer. Apply it in the checkout's root: git apply TPVFormer.patch; undo it there: git apply -R TPVFormer.patch.
{NOTICE} says what it does. Written by tools/make_patch.py; change its sources, not this file.

"""

HOOK = f"""\
# Put here by TPVFormer.patch: run as a script, this file hands over to the package tpvformer ({NOTICE}).
if __name__ == "__main__":
    import sys

    try:
        from tpvformer.upstream import main
    except ModuleNotFoundError as err:
        if err.name not in ("tpvformer", "tpvformer.upstream"):
            raise
        say = "{{}}: {{}} has no tpvformer, or an old one; pip install PATH, the repository of TPVFormer.patch"
        print(say.format(sys.argv[0], sys.executable), file=sys.stderr)
        sys.exit(2)
    if not getattr(sys.modules.get("tpvformer.engine.foreign.script"), "RUNNING", None):  # else: tpvformer run
        sys.exit(main(__file__))
"""

REQUIREMENTS_HEAD = """\
# The package tpvformer itself comes with pip install PATH, where PATH is the repository of TPVFormer.patch; that brings
# the list below with it. What the reference needs is in requirements.reference.txt.
#
"""


def make_patch() -> str:
    """Return the whole patch."""
    parts = [HEADER, *(_inserted(script, HOOK) for script in SCRIPTS)]
    parts.append(_renamed("requirements.txt", "requirements.reference.txt"))
    parts.append(_added("requirements.txt", REQUIREMENTS_HEAD + _read("requirements.txt")))
    parts.append(_added(NOTICE, _read("tools/patch_notice.md")))
    parts.extend(_added(f"test/{name}", _read(f"test/{name}")) for name in LAUNCHERS)
    return "".join(parts)


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _inserted(path: str, text: str) -> str:
    """Return the hunk that inserts ``text`` above the blank first line of a file."""
    lines = text.splitlines()
    body = "".join(f"+{line}\n" for line in lines)
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1,1 +1,{len(lines) + 1} @@\n{body} \n"


def _renamed(old: str, new: str) -> str:
    return f"diff --git a/{old} b/{new}\nsimilarity index 100%\nrename from {old}\nrename to {new}\n"


def _added(path: str, text: str) -> str:
    """Return the hunk of a new file; one that starts with ``#!`` is executable, whatever its mode in this checkout."""
    lines = text.splitlines()
    mode = "100755" if text.startswith("#!") else "100644"
    body = "".join(f"+{line}\n" for line in lines)
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1,{len(lines)} @@\n{body}"
    )


def main(argv: Optional[List[str]] = None) -> int:
    """Write the patch, or compare it, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write TPVFormer.patch.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the file is stale")
    args = parser.parse_args(argv)
    wanted = make_patch().encode("utf-8")
    if not args.check:
        PATCH.write_bytes(wanted)
        return 0
    if PATCH.is_file() and PATCH.read_bytes() == wanted:
        return 0
    print(f"{PATCH.name} is not what its sources say; run python tools/make_patch.py and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
