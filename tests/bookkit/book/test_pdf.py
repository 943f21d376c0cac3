"""The book and its chapters as PDF, and the links to them."""

from pathlib import Path

import pytest
from pypdf import PdfReader
from small_book import CHROMIUM, EXPECTED, PAPER

from bookkit.book import pdf


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.slow
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
