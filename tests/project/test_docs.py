"""The documents are true where that can be computed: links, quoted sentences, counts, shapes, pages;
and each document in two languages says the same in both."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Tuple

import programs
import pytest
import torch
import yaml
from docs_tools import (
    DOCS,
    DOCUMENTS,
    PAGES,
    TRANSLATIONS,
    Parts,
    anchors,
    joined_blocks,
    links,
    name_of,
    parts,
    text_of,
)
from engine_tools import ROOT

from tpvformer.compat import load_config
from tpvformer.model import TPVFormer
from tpvformer.viz.picture import title_of


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_link_is_dead(document: Path) -> None:
    for target in links(document):
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One thing\n[a](nowhere.md) ![b](b.png) [c](https://x.org) `[d](d.md)`\n```\n[e](e.md)\n```\n")
    assert links(page) == ["nowhere.md", "b.png"]
    assert anchors(page) == ["one-thing"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lists_and_tables_stand_apart(page: Path) -> None:
    assert not joined_blocks(page)


def test_a_list_that_does_not_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n| a | b |\n| --- | --- |\n\ntext\n- one\n  more\n- two\n```\n- no\n```\n1. three\n")
    assert joined_blocks(page) == ["- one", "1. three"]


def source() -> str:
    """All string constants of the package as they stand in the source, neighbouring literals joined."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tpvformer").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def quoted_sentences() -> List[str]:
    rows = [line for line in text_of(DOCS / "troubleshooting.md").splitlines() if line.startswith("| ")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[2])]


def test_sentences_quoted_in_troubleshooting_are_printed() -> None:
    text, quoted = source(), quoted_sentences()
    assert len(quoted) > 35
    assert not [sentence for sentence in quoted if sentence not in text]
    assert "a sentence that nothing prints" not in text


def test_the_parameters_are_counted() -> None:
    """docs/configs.md lists every configuration, with the number of its parameters and of those that learn."""
    rows = re.findall(r"^\| `(config/\w+\.py)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", text_of(DOCS / "configs.md"), re.M)
    assert sorted(name for name, _, _ in rows) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "config").glob("*.py")
    )
    for name, everything, learning in rows:
        with torch.device("meta"):  # counts need no memory
            parameters = list(TPVFormer(load_config(str(ROOT / name)).model).parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        assert (f"{sum(p.numel() for p in parameters):,}", f"{trained:,}") == (everything, learning), name


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="before 2.4 kernels know no tensors without memory")
def test_the_shapes_are_drawn_right() -> None:
    """docs/architecture.md's shapes are those of a forward pass at full size, on tensors without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes: List[Tuple[int, ...]] = []

    def remember(module: Any, given: Any, out: Any) -> None:
        shapes.extend(tuple(t.shape) for t in ([out] if torch.is_tensor(out) else out))

    config = load_config(str(ROOT / "config" / "tpv_detection.py")).model
    assert replace(config, detection=None) == load_config(str(ROOT / "config" / "tpv_lidarseg_dim64.py")).model
    with FakeTensorMode(), torch.no_grad():
        model = TPVFormer(config).eval()
        assert model.detection is not None
        head = model.detection
        for module in (model.backbone, model.neck, model.encoder, head.reduce, head.shared, head.groups):
            module.register_forward_hook(remember)
        images, matrices, points = torch.empty(1, 6, 3, 928, 1600), torch.empty(1, 6, 4, 4), torch.empty(1, 100, 3)
        head.reduce.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
        found = model(images, matrices, points)
        logits = found.voxel_logits, found.point_logits, *found.detection
        shapes.extend(tuple(tensor.shape) for tensor in logits)
    drawn = text_of(DOCS / "architecture.md").replace(" ", "")
    levels = shapes[3:7]
    expected = [f"(B*6,{','.join(map(str, shape[1:]))})" for shape in shapes[:3]]
    expected += [f"(B,6,{','.join(map(str, shape[1:]))})" for shape in levels]
    expected += [f"(B,6,{sum(h * w for _, _, h, w in levels)},{config.dim})", "(B,46400,64)", "(B,17,200,200,16)"]
    assert shapes[7] == (1, 46400, 64) and shapes[12:14] == [(1, 17, 200, 200, 16), (1, 17, 100)]
    of_boxes = [f"(B,{','.join(map(str, shape[1:]))})" for shape in (*shapes[8:12], *shapes[14:])]
    assert len(set(of_boxes)) == 5 and of_boxes[-1] == "(B,6,10,200,200)"
    expected += of_boxes
    assert not [shape for shape in expected if shape not in drawn]


def test_the_picture_is_of_the_run_whose_numbers_stand_beside_it() -> None:
    """docs/demo.png carries the line that `tpvformer picture` printed; docs/verification.md quotes it."""
    title = title_of((DOCS / "demo.png").read_bytes())
    assert re.fullmatch(r"demo, validation frame 0: \d+\.\d % of \d+ points right", title)
    assert re.findall(r"^out/demo\.png: (.*)$", text_of(DOCS / "verification.md"), re.M) == [title]


def test_the_demo_s_number_is_one_number() -> None:
    """README, docs/configs.md and the configuration's header say the same of `make demo`."""
    quoted = re.search(r"^Final Train Accuracy : ([\d.]+)$", text_of(DOCS / "verification.md"), re.M)
    assert quoted
    number = f"{float(quoted[1]):.1f}"
    assert f"{number} % point mIoU" in text_of(ROOT / "README.md")
    row = re.search(r"^\| `demo` \| (.*)$", text_of(DOCS / "configs.md"), re.M)
    header = load_header(ROOT / "config" / "demo.py")
    assert row and f"{number} % point mIoU" in row[1] and f"{number} % point mIoU" in header


def load_header(config: Path) -> str:
    return " ".join(config.read_text(encoding="utf-8").split('"""')[1].split())


def pages_of(nav: Any) -> List[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


def test_every_page_can_be_reached() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = pages_of(yaml.safe_load(text[text.index("\nnav:") :])["nav"])  # what is before names a Python function
    moved = re.findall(r"^not_in_nav: (\S+)", text, re.M)
    assert moved == ["api.md"] and links(DOCS / "api.md") == ["python.md"], "an earlier address leads to the page"
    assert sorted([*listed, *moved]) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """And fetch nothing: no script, style, font or picture of a page comes from elsewhere."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason='pip install ".[docs]" brings what builds the pages')
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path),
    ]  # --quiet hides warnings from --strict
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = programs.run(command, cwd=ROOT, env=environment)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    built = {page.relative_to(tmp_path).with_suffix("") for page in pages}
    assert built >= {page.relative_to(DOCS).with_suffix("") for page in PAGES}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(?:https?:)?//[^"]*"', html)


def test_the_page_of_commands_is_the_command_line_s() -> None:
    done = programs.run([sys.executable, "tools/commands_page.py"], cwd=ROOT, check=True)
    assert done.stdout == text_of(DOCS / "commands.md"), "python tools/commands_page.py > docs/commands.md"


# ---- two languages


@pytest.mark.parametrize("translated", TRANSLATIONS, ids=name_of)
def test_the_chinese_document_is_equal(translated: Path) -> None:
    original = TRANSLATIONS[translated]
    english, chinese = parts(original, translated), parts(translated, original)
    for field in Parts._fields:
        ours, theirs = getattr(english, field), getattr(chinese, field)
        if isinstance(ours, Counter):
            assert not ours - theirs and not theirs - ours, (field, ours - theirs, theirs - ours)
        else:
            assert ours == theirs, field
    assert english.commands and sum(english.numbers.values()) > 20


@pytest.mark.parametrize("page", [page for page in TRANSLATIONS if page.parent != ROOT], ids=name_of)
def test_a_chinese_page_leads_to_chinese_pages(page: Path) -> None:
    """And the two versions of a page to each other, at their beginning."""
    english = TRANSLATIONS[page]
    assert links(page)[0] == f"../{page.name}" and links(english)[0] == f"zh/{page.name}"
    targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)[1:]]
    assert not [name_of(target) for target in targets if target in TRANSLATIONS.values() and target.parent == DOCS]


def test_a_changed_translation_is_seen(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("# A\n`x` of 28,130 [a](#b)\n```\nmake # it\n```\n## B\n| c | d |\n")
    found = parts(page, other)
    assert found.commands == ["make"] and found.numbers == {"28,130": 1} and found.code == {"x": 1}
    assert [heading for _, heading in found.links] == [1] and found.headings == [1, 2] and found.columns == [4]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_it_is_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 120
