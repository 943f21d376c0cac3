"""Parts of pages: what becomes of a text of others and of a value, the policy, names, a slider;
how to cite the book and its papers; links to its PDF."""

import json
from pathlib import Path

import hostile
import pytest
import yaml
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from pybtex.database import parse_string
from pypdf import PdfReader
from small_book import CHROMIUM, EXPECTED, PAPER, stage

from bookkit.book import citations, crate, html_policy, pdf
from bookkit.book.html import as_myst, duration, raw_html, show_value
from replib.errors import UsageError
from replib.figures import slider
from replib.markup import as_html, visible

TEXTS = [*hostile.STRINGS.values(), hostile.ROLES, "(label)=", "# x", "1. x"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_becomes_html_and_myst_that_say_it(text: str) -> None:
    page = BeautifulSoup(f'<p title="{as_html(text)}">x</p>', "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    assert page.p.attrs == {"title": visible(text)}
    page = BeautifulSoup(MarkdownIt().render(f"x {as_myst(text)}"), "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    assert page.get_text().strip() == f"x {' '.join(visible(text).split())}"


def test_unseen_characters_are_written_out() -> None:
    assert visible("a\x1b[0m\u202eb\ud800\n\tc") == "a\\u001b[0m\\u202eb\\ud800\n\tc"
    assert visible("ü – 日本 שלום") == "ü – 日本 שלום"


def test_raw_html_cannot_be_left() -> None:
    assert raw_html("a\n`````\nb").startswith("``````{raw} html\n")
    assert raw_html("a").startswith("```{raw} html\n")


def test_values_and_times_as_pages_show_them() -> None:
    assert show_value(0.1234, ".1%") == "12.3%"
    assert show_value(None, ".2f") == "not measured"
    assert show_value(True, ".2f") == "yes"
    assert show_value("not_testable") == "not testable"
    times = {42.4: "42 s", 75.2: "1 min 15 s", 59.7: "1 min 0 s", 7300.0: "2 h 1 min"}
    assert {seconds: duration(seconds) for seconds in times} == times


PAGE = """<html><head>
    <meta charset="utf-8" />
<script>one</script><script src="a.js"></script>
</head><body><article>TEXT</article></body></html>"""


def test_a_page_is_protected_once_and_allows_only_the_scripts_of_its_head() -> None:
    page = html_policy.protect(PAGE)
    assert html_policy.protect(page) == page
    assert page.index("Content-Security-Policy") < page.index("<script")
    assert html_policy.is_protected(page) and not html_policy.is_protected(PAGE)
    with pytest.raises(ValueError, match="begin"):
        html_policy.protect(PAGE.replace("<head>", "<head><script>0</script>"))
    text = "</head></article></body><head><script>two</script></head>"
    search = PAGE.replace("<article>TEXT</article>", "<script>two</script>")  # nothing of anybody's
    for page, allowed in ((PAGE, 1), (PAGE.replace("TEXT", text), 1), (search, 2)):
        assert html_policy.policy(page).count("sha256-") == allowed


def test_parts_are_named_once() -> None:
    listed = '<div role="list" class="citation-list">'
    link = '<a class="reference internal" href="a.html">A &amp; B</a><details><summary>'
    named = html_policy.name_parts(link + html_policy.SIDE_BAR + listed)
    assert 'aria-label="Pages under A &amp; B"' in named and "Side bar" in named
    assert 'role="list"' not in named  # of things that are no items
    assert html_policy.name_parts(named) == named


def test_without_scripts_the_plain_figure_is_pointed_at() -> None:
    rows = {"</script>?": {"a": [0.0, 0.5, 1.0]}}
    text = slider(rows, ["one", "two", "three"], "Layer", start=0).data
    assert "http" not in text and "src=" not in text
    page = BeautifulSoup(text, "html.parser")
    assert page.select_one(".knob-moving").has_attr("hidden")
    still = page.select_one(".knob-still")
    assert "plain figure above" in still.text and not still.has_attr("hidden")
    given = page.select_one("label input")
    assert (given["aria-label"], given["value"]) == ("Layer", "0")
    assert [script["type"] for script in page.select("script")] == ["application/json"]
    with pytest.raises(ValueError, match="JSON"):
        slider({"Which?": {"a": [float("nan")]}}, ["first"], "Layer")


@pytest.mark.parametrize(("values", "limits"), [([0.2, 0.5], [0, 1]), ([-0.5, 2.5], [-0.5, 2.5])])
def test_a_slider_shows_zero_to_one_or_as_far_as_its_values_go(values, limits) -> None:
    text = slider({"Which?": {"a": values}}, ["first", "second"], "Layer").data
    script = BeautifulSoup(text, "html.parser").select_one("script")
    assert json.loads(script.text)["limits"] == limits


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
    (project / "CITATION.cff").write_text(
        "title: T\nversion: 1\nabstract: About.\nauthors: [{name: A Group}, {name: B}]\n"
    )
    stage(project)
    book = project / "build/book"
    config = yaml.safe_load((book / "_config.yml").read_text())
    assert sorted(path.stem for path in (book / citations.FOLDER).iterdir()) == ["book", PAPER]
    bib = (book / citations.FOLDER / "book.bib").read_text()
    entry = parse_string(bib, "bibtex").entries["book"]
    assert (entry.fields["title"], config["title"], config["author"]) == ("T", "T", "A Group and B")
    assert citations.authors(entry) == "A Group, B"
    assert entry.fields["year"] == "2026"  # of the latest run
    whole = json.loads((book / crate.FILE).read_text())["@graph"][1]
    assert whole["description"] == "About."
    assert [author["@id"] for author in whole["author"]] == ["#author/A%20Group", "#author/B"]


@pytest.mark.parametrize("text", [None, "title: T", "- 1", "title: [", "authors: [x]"])
def test_a_book_without_a_name_is_refused(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "CITATION.cff").write_text(text)
    with pytest.raises(UsageError, match=r"CITATION\.cff"):
        citations.about(tmp_path)


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


def test_without_chromium_a_line_says_so(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(pdf, "find_chromium", lambda: None)
    pdf.write_all(tmp_path, tmp_path, tmp_path)
    assert capsys.readouterr().err == "pdf: left out, there is no Chromium on this machine\n"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_pages_become_one_pdf(built: Path, tmp_path: Path) -> None:
    html, pages = built / "_build/html", [f"chapters/{PAPER}/index", f"chapters/{EXPECTED[0]}"]
    files = pdf.write(html, [*pages, "scorecard"], tmp_path / "pdf")
    assert [file.name for file in files] == ["book.pdf", f"{PAPER}.pdf"]
    chapter = PdfReader(files[1])
    text = "".join(page.extract_text() for page in chapter.pages)
    for folded in ("Peak memory", "ratio: "):
        assert folded in text
    assert "Hide the parameters" not in text
    titles = [part["/Title"] for part in chapter.outline if not isinstance(part, list)]
    assert titles[1].endswith("(model-a)")
    assert b"file:" not in files[0].read_bytes()
    links = [a.get_object() for page in chapter.pages for a in page.get("/Annots", ())]
    first = next(link for link in links if "/Dest" in link)
    assert first["/Dest"][0].get_object()["/Type"] == "/Page"
