"""What the documents hold: links, headings, commands; and which command is run by which test."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Iterator, List, NamedTuple, Tuple

from engine_tools import ROOT

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md")
DOCS = ROOT / "docs"
PAGES = tuple(sorted(DOCS.rglob("*.md")))
DOCUMENTS = (*READMES, *PAGES)
# Chinese document: the English one that it translates
TRANSLATIONS = {ROOT / "README.zh-CN.md": ROOT / "README.md"}
TRANSLATIONS.update({page: DOCS / page.name for page in sorted((DOCS / "zh").glob("*.md"))})

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# a program of ours, or one that runs something of ours
SCRIPTS = ("tools/torch21_env.sh", "tools/openmmlab_env.sh")
OURS = ("tpvformer", "make", "python", "python3", "pytest", "bash", "torchrun", *SCRIPTS)
# lines of command blocks that run nothing of ours
OTHERS = (
    "tensorboard",
    "cd",
    "export",
    "git",
    "mkdir",
    "pip",
    "source",
    "srun",
    "set",
    "[",
    ".",
    ".venv-torch21/bin/python",
)
PLACEHOLDERS = {"N": "1", "S": "1", "R": "1", "WxH": "32x32"}  # others are texts, which any text can stand for


class Command(NamedTuple):
    """One command of a document; ``words`` without the settings of environment variables before it."""

    document: str
    words: Tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"

    @property
    def program(self) -> str:
        """What is run: "tpvformer data infos", "benchmarks/bench_ops.py", "test/train_1p.sh", "make demo", ..."""
        first, rest = self.words[0], self.words[1:]
        if first in ("python", "python3", "bash"):
            return rest[1] if rest[0] == "-m" else rest[0]
        if first == "tpvformer":
            return " ".join(self.words[: 3 if rest[:1] in (("data",), ("overlay",)) else 2])
        return f"make {rest[0]}" if first == "make" else first

    @property
    def flags(self) -> List[str]:
        return [word.partition("=")[0] for word in self.words if word.startswith("--")]


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def prose(document: Path) -> str:
    """The text without its code blocks."""
    return FENCE.sub("", text_of(document))


def links(document: Path) -> List[str]:
    """The targets of all links and pictures that stay in the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(document)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(document: Path) -> List[str]:
    """Names of the headings as mkdocs (and GitHub, for such headings) makes them, in their order."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return [re.sub(r"[\s-]+", "-", heading) for heading in plain]


class Parts(NamedTuple):
    """What a translation must not change."""

    commands: List[str]  # lines of code blocks without their comments
    numbers: Counter  # outside code blocks and links
    code: Counter  # inline
    links: List[Tuple[Path, int]]  # file in the repository, English where there are two; which of its headings, or -1
    elsewhere: List[str]  # links out of the repository
    headings: List[int]  # their levels
    columns: List[int]  # of each table row


def parts(document: Path, other: Path) -> Parts:
    """Of ``document``; its link to ``other``, the same text in the other language, does not count."""
    lines = [line.split("#")[0].rstrip() for _, body in FENCE.findall(text_of(document)) for line in body.splitlines()]
    text = prose(document)
    targets = [_target(document, link) for link in links(document)]
    return Parts(
        [line for line in lines if line],
        Counter(re.findall(r"\d+(?:[.,:]\d+)*", re.sub(r"\]\([^)\s]+\)", "]", text))),
        Counter(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)),
        [(TRANSLATIONS.get(file, file), heading) for file, heading in targets if file != other],
        re.findall(r"\]\(([a-z]+:[^)\s]+)\)", text),
        [len(level) for level in re.findall(r"^(#+) ", text, re.M)],
        [len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")],
    )


def _target(document: Path, link: str) -> Tuple[Path, int]:
    name, _, anchor = link.partition("#")
    file = (document.parent / name).resolve() if name else document
    return file, anchors(file).index(anchor) if anchor else -1


def blocks(document: Path) -> Iterator[str]:
    """Code blocks that hold commands: those of a shell, and those without a language of which a line is one of ours."""
    for language, body in FENCE.findall(text_of(document)):
        body = body.replace("\\\n", " ")
        if language in ("bash", "sh") or (not language and any(_parts(line) for line in body.splitlines())):
            yield body


def commands(document: Path) -> List[Command]:
    """All commands of a document's code blocks that run something of ours."""
    lines = [line for block in blocks(document) for line in block.splitlines()]
    return [Command(name_of(document), words) for line in lines for words in _parts(line)]


def foreign_lines(document: Path) -> List[str]:
    """Lines of command blocks that are neither of ours nor plainly something else."""
    lines = [line for block in blocks(document) for line in block.splitlines()]
    settled = re.compile(r"^(#.*|\s*|\w+ ?=.*|\s*calib\.txt .*|data/\S+ .*)$")
    return [line for line in lines if not _parts(line) and line.split()[:1] and not _known(line, settled)]


def _known(line: str, settled: re.Pattern) -> bool:
    return bool(settled.match(line)) or line.split()[0] in OTHERS


def spans(document: Path) -> List[Tuple[str, ...]]:
    """Commands of ours quoted within the text, as words; they need not be whole."""
    quoted = re.findall(r"`([^`]+)`", prose(document))
    return [words for text in quoted for words in _parts(text.replace("\\|", "|"))]


def _parts(line: str) -> List[Tuple[str, ...]]:
    """The commands of ours in one line; optional parts are taken as given, of alternatives each one."""
    line = re.sub(r"\[(--[^\]]*)\]", r"\1", line)
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
    except ValueError:  # a text with an apostrophe
        return []
    found: List[Tuple[str, ...]] = []
    for part in _split(words):
        while part and (re.match(r"\w+=", part[0]) or part[0] in ("srun", "if")):
            part = part[1:]
        if len(part) > 1 and part[0] in OURS:
            found.extend(_alternatives(part[: part.index(">")] if ">" in part else part))
    return found


def _split(words: List[str]) -> Iterator[List[str]]:
    part: List[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&"):
            yield part
            part = []
        else:
            part.append(word)


def _alternatives(words: List[str]) -> List[Tuple[str, ...]]:
    several = [i for i, word in enumerate(words) if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word)]
    if not several:
        return [tuple(words)]
    i = several[0]
    return [each for word in words[i].split("|") for each in _alternatives([*words[:i], word, *words[i + 1 :]])]


def joined_blocks(document: Path) -> List[str]:
    """Lists and tables without an empty line before them: GitHub sees them, mkdocs takes them for text."""
    found, before = [], ""
    for line in FENCE.sub("```", text_of(document)).splitlines():
        starts = re.match(r"([*-] |\d+\. )|\|", line)
        goes_on = not before.strip() or re.match(r"#|\|" if line.startswith("|") else r"#|[*-] |\d+\. | ", before)
        if starts and not goes_on:
            found.append(line)
        before = line
    return found
