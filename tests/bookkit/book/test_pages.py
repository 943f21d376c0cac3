"""The pages for everybody: accessibility in Chromium, names of parts, statistics."""

from pathlib import Path

import accessibility
import pytest
from small_book import CHROMIUM, EXPECTED, PAPER

from bookkit.book import html_policy

CHAPTER = f"chapters/{EXPECTED[0]}.html"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.slow
def test_every_page_of_the_small_book_is_accessible(built: Path) -> None:
    html = built / "_build/html"
    pages = [html / name for name in (CHAPTER, f"chapters/{PAPER}/index.html", "scorecard.html")]
    assert list(accessibility.faults(html, [*pages, html / "search.html"])) == []


def test_parts_are_named_once() -> None:
    listed = '<div role="list" class="citation-list">'
    link = '<a class="reference internal" href="a.html">A &amp; B</a><details><summary>'
    named = html_policy.name_parts(link + html_policy.SIDE_BAR + listed)
    assert 'aria-label="Pages under A &amp; B"' in named and "Side bar" in named
    assert 'role="list"' not in named  # of things that are no items
    assert html_policy.name_parts(named) == named


def test_a_page_says_when_it_was_verified(built: Path) -> None:
    assert "last verified: 2026-01-02" in (built / "_build/html" / CHAPTER).read_text()
