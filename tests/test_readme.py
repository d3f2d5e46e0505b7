"""The two READMEs say the same: commands, numbers, names and links of one are those of the other."""

from __future__ import annotations

import re
from collections import Counter
from typing import List, NamedTuple

from engine_tools import ROOT

NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


class Parts(NamedTuple):
    """What a translation must not change."""

    commands: List[str]  # lines of code blocks without their comments
    numbers: Counter  # outside code blocks
    code: Counter  # inline
    links: List[str]
    headings: List[int]  # their levels
    columns: List[int]  # of each table row


def parts(name: str, other: str) -> Parts:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    commands = [line.split("#")[0].rstrip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    spans = Counter(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return Parts(
        [line for line in commands if line],
        Counter(NUMBER.findall(prose)),
        spans,
        [link for link in re.findall(r"\]\(([^)]+)\)", prose) if link != other],
        [len(level) for level in re.findall(r"^(#+) ", prose, re.M)],
        [len(re.split(r"(?<!\\)\|", line)) for line in prose.splitlines() if line.startswith("|")],
    )


def test_the_chinese_readme_is_equal() -> None:
    english, chinese = parts("README.md", "README.zh-CN.md"), parts("README.zh-CN.md", "README.md")
    for field in Parts._fields:
        ours, theirs = getattr(english, field), getattr(chinese, field)
        if isinstance(ours, Counter):
            assert not ours - theirs and not theirs - ours, (field, ours - theirs, theirs - ours)
        else:
            assert ours == theirs, field
    assert english.commands and sum(english.numbers.values()) > 100


def test_the_file_map_is_true() -> None:
    """Whatever the file map names is there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text[text.index("## File map") :].splitlines() if line.startswith("| `")]
    for row in rows:
        names = re.findall(r"`([^`]+)`", row.split("|")[1])
        assert all((ROOT / name).exists() or (ROOT / "tpvformer" / name).exists() for name in names), row
