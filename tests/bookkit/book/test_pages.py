"""The pages for everybody: accessibility in Chromium, statistics, citations, PDFs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import accessibility
import pytest
import yaml
from pybtex.database import parse_string
from pypdf import PdfReader
from small_book import CHROMIUM, EXPECTED, PAPER, ROOT, gate, stage

from bookkit.book import citations, html_policy, pdf, run_statistics
from bookkit.book.runs import Run
from bookkit.book.tables import duration, tally
from bookkit.cli import main
from replib.errors import UsageError

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
CHAPTER = f"chapters/{EXPECTED[0]}.html"

# --- accessibility --------------------------------------------------------------------------------


@needs_chromium
def test_every_page_of_the_small_book_is_accessible(built: Path) -> None:
    html = built / "_build/html"
    pages = [html / name for name in (CHAPTER, f"chapters/{PAPER}/index.html", "scorecard.html")]
    assert list(accessibility.faults(html, [*pages, html / "search.html"])) == []


TEXT = "<p>The gain was"
BROKEN = {
    "contrast": (TEXT, f'<p style="color: #999; background: #fff">grey</p>{TEXT}', "contrast"),
    "contrast in dark": (
        TEXT,
        f'<p style="color: #333; background: var(--pst-color-background)">dark</p>{TEXT}',
        "dark, 390 px: serious, color-contrast",
    ),
    "a picture without words": (TEXT, f'<img src="_images/x.png">{TEXT}', "image-alt"),
    "a picture without a card": (
        TEXT,
        f'<img alt="x" src="x.png" style="background-color: transparent !important">{TEXT}',
        "light card",
    ),
    "a wide page": (TEXT, f'<p style="width: 600px">wide</p>{TEXT}', "px wide on a screen of 390"),
    "a landmark": (html_policy.NAMED_BAR, html_policy.SIDE_BAR, "region"),
    "a summary without a name": (TEXT, f"<details><summary></summary>x</details>{TEXT}", "name"),
}


@needs_chromium
def test_each_fault_is_seen(built: Path, tmp_path: Path) -> None:
    """Each in a copy of one page; in one browser, as its start is most of the time."""
    html = built / "_build/html"
    text = (html / "index.html").read_text()
    copies = {}
    try:
        for number, (name, (old, new, _)) in enumerate(BROKEN.items()):
            assert old in text, name
            copies[name] = html / f"broken-{number}.html"
            copies[name].write_text(text.replace(old, new, 1))
        found = list(accessibility.faults(html, list(copies.values())))
    finally:
        for path in copies.values():
            path.unlink()
    for name, (_, _, message) in BROKEN.items():
        page = copies[name].name
        assert any(f.startswith(page) and message in f for f in found), (name, found)


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


# --- citations ------------------------------------------------------------------------------------

BIB = """@inproceedings{x2020, author={Ada van der Lovelace and M{\\"u}ller, J.},
title={A {GPT} \\& more}, booktitle={Proc}, year={2020}, url={https://arxiv.org/abs/2001.00001}}"""


def test_a_paper_is_cited_from_the_bibliography() -> None:
    known = parse_string(BIB, "bibtex")
    entry = citations.paper_entry("2001.00001", "Other words", known)
    assert entry is known.entries["x2020"]
    for shown in ("A GPT &amp; more", "Ada van der Lovelace, J. Müller", "2020", "Proc"):
        assert f">{shown}</t" in citations.table({"x": entry})
    other = citations.paper_entry("2001.00002", "Other words", known)
    assert ">Other words</th><td>–</td><td>–</td>" in citations.table({"y": other})


def test_the_book_is_cited_from_one_file(project: Path) -> None:
    stage(project)
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    config = yaml.safe_load((project / "build/book/_config.yml").read_text())
    folder = project / "build/book" / citations.FOLDER
    assert sorted(path.name for path in folder.iterdir()) == ["book.bib", f"{PAPER}.bib"]
    entry = parse_string((folder / "book.bib").read_text(), "bibtex").entries["book"]
    assert entry.fields["title"] == config["title"] == cff["title"]
    assert citations.authors(entry) == config["author"] == cff["authors"][0]["name"]
    assert entry.fields["year"] == "2026"  # of the latest run


@pytest.mark.parametrize("text", [None, "title: T", "- 1", "title: [", "authors: [x]"])
def test_a_book_without_a_name_is_refused(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "CITATION.cff").write_text(text)
    with pytest.raises(UsageError, match=r"CITATION\.cff"):
        citations.about(tmp_path)


def test_a_chapter_links_to_its_citations(built: Path, broken: Callable) -> None:
    assert gate(built) == []
    broken(f"_build/html/_static/citations/{PAPER}.bib", None)
    assert any(f"{PAPER}.bib, which is not in the book" in fault for fault in gate(built))


# --- PDFs -----------------------------------------------------------------------------------------


@needs_chromium
def test_pages_become_one_pdf(built: Path, tmp_path: Path) -> None:
    html, pages = built / "_build/html", [f"chapters/{PAPER}/index", f"chapters/{EXPECTED[0]}"]
    files = pdf.write(html, [*pages, "scorecard"], tmp_path / "pdf")
    assert [file.name for file in files] == ["book.pdf", f"{PAPER}.pdf"]
    chapter = PdfReader(files[1])
    text = "".join(page.extract_text() for page in chapter.pages)
    assert "Peak memory" in text  # was folded
    assert [part["/Title"] for part in chapter.outline if not isinstance(part, list)][1].endswith(
        "(model-a)"
    )
    assert b"file:" not in files[0].read_bytes()
    links = [a.get_object() for page in chapter.pages for a in page.get("/Annots", ())]
    first = next(link for link in links if "/Dest" in link)
    assert first["/Dest"][0].get_object()["/Type"] == "/Page"


def test_a_page_links_to_a_pdf_once_there_is_one(tmp_path: Path) -> None:
    page = tmp_path / "html/chapters/p/index.html"
    page.parent.mkdir(parents=True)
    page.write_text(pdf.place("p"))
    (tmp_path / "p.pdf").write_bytes(b"0" * 1_200_000)
    for files, links in (([], 0), ([tmp_path / "p.pdf"], 1), ([tmp_path / "p.pdf"], 1), ([], 0)):
        pdf.link_all(tmp_path / "html", files)
        assert page.read_text().count("<a ") == links
    pdf.link_all(tmp_path / "html", [tmp_path / "p.pdf"])
    assert '<a href="../../_static/pdf/p.pdf">This chapter as PDF (1.2 MB)</a>' in page.read_text()


def test_without_chromium_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pdf, "find_chromium", lambda: None)
    assert main(["book", "pdf"]) == 0
    assert capsys.readouterr().err == "pdf: left out, there is no Chromium on this machine\n"
