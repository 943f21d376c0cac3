"""How to cite the book and its papers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pybtex.database import parse_string
from small_book import PAPER, ROOT, gate, stage

from bookkit.book import citations
from replib.errors import UsageError

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
