"""Links lead somewhere, and every page can be reached."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT, anchors, links, pages, text_of

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_resolve(page):
    """A file that exists, and in it the heading behind ``#``."""
    broken = []
    for link in links(page):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked():
    """From the index or the README."""
    starts = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in starts for link in links(page)}
    lonely = [page for page in pages() if page.resolve() not in linked and page != ROOT / "README.md"]
    assert [str(page.relative_to(ROOT)) for page in lonely] == []


def test_every_promise_is_tested():
    """P1 to P11 stand in the README with tests that exist, and in the explanation."""
    rows = re.findall(r"^\| (P\d+) \|(.*)\|$", text_of("README.md"), re.M)
    explained = re.findall(r"^## (P\d+):", text_of("docs/explanation/guarantees.md"), re.M)

    assert [name for name, _ in rows] == explained == [f"P{number}" for number in range(1, 12)]
    for name, row in rows:
        tests = re.findall(r"\((tests/[\w/]+\.py)\)", row)
        assert tests or "Not yet" in row, f"{name} names no test"
        assert [path for path in tests if not (ROOT / path).is_file()] == []


def test_the_documentation_is_about_this_project_alone():
    """No path of a machine, nothing about how the work was organised."""
    words = re.compile(r"/work\b|/tmp/|\bstage \d|\bissue #?\d", re.I)
    found = {
        f"{page.name}: {hit}" for page in pages() for hit in words.findall(page.read_text(encoding="utf-8"))
    }
    assert found == set()
