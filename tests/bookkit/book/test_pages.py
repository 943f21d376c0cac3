"""The pages for everybody: accessibility in Chromium, names of parts, statistics."""

from dataclasses import replace
from pathlib import Path

import accessibility
import pytest
from small_book import CHROMIUM, EXPECTED, PAPER

from bookkit.book import html_policy, run_statistics
from bookkit.book.runs import Run
from bookkit.book.tables import duration, tally

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


# --- statistics -----------------------------------------------------------------------------------


def run(**record: object) -> Run:
    given = {"profile": "laptop", "wall_time_s": 75.2, "peak_memory_mb": 900.4, "device": "cpu"}
    given |= {"threads": 2, "started": "2026-01-02T03:04:05Z", "claims": [{"outcome": "holds"}]}
    return Run("p", "m", given | record, "", Path())


def test_the_statistics_are_those_of_the_records() -> None:
    table = run_statistics.table([run()], tally, duration)
    for shown in ("1 min 15 s", "900 MB", "cpu, threads: 2", "2026-01-02 03:04:05 UTC", "1 holds"):
        assert f"<td>{shown}</td>" in table
    old = replace(run(wall_time_s=10.0), stale=("the library", "the notebook"))
    line = run_statistics.totals([run(), old], duration)
    assert "2 runs decide 2 claims in 1 min 25 s" in line and "1 of the 2" in line
    assert run_statistics.last_verified(run()) == "2026-01-02"
    assert run_statistics.last_verified(old) == "not since the library and the notebook changed"


def test_a_page_says_when_it_was_verified(built: Path) -> None:
    assert "last verified: 2026-01-02" in (built / "_build/html" / CHAPTER).read_text()
