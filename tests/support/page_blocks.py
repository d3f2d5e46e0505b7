"""Run the Python blocks of a page up to a heading, as a reader does who follows it."""

from __future__ import annotations

from typing import Any, Dict, List

from docs_tools import DOCS, FENCE, text_of

FINETUNE = DOCS / "finetune.md"


def blocks(section: str, language: str = "python") -> List[str]:
    """Return the blocks of docs/finetune.md under a heading of level 2."""
    text = text_of(FINETUNE).split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [body for kind, body in FENCE.findall(text) if kind == language]


def run(bodies: List[str], names: Dict[str, Any]) -> None:
    """Execute blocks one after the other in ``names``."""
    for number, body in enumerate(bodies, start=1):
        exec(compile(body, f"docs/finetune.md, block {number}", "exec"), names)
