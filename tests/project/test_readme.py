"""Each document in two languages says the same: commands, numbers, names and links of one are those of the other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from docs_tools import DOCS, TRANSLATIONS, Parts, links, name_of, parts
from engine_tools import ROOT


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
