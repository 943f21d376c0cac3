"""How to cite the book and its papers."""

import json
from pathlib import Path

import pytest
import yaml
from pybtex.database import parse_string
from small_book import PAPER, stage

from bookkit.book import citations, crate
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
