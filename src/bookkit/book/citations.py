"""How to cite the book and each paper: a BibTeX file for each, and the table of the page on it.

The book's title and authors stand in CITATION.cff alone, a paper's in references.bib, where it is
found by its arXiv number. The page's prose holds `<!-- citations -->` for the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pybtex.database import BibliographyData, Entry, Person, parse_file
from pybtex.richtext import Text

from bookkit.book.html import macro, raw_html
from replib.claims.measure import Claims
from replib.errors import UsageError

PAGE = "cite.md"
FOLDER = "static/citations"  # in the staged book; `_static/citations` in the built one
BOOK = "book"  # the name of its file


@dataclass(frozen=True)
class About:
    """What CITATION.cff says of the book."""

    title: str
    authors: tuple[str, ...]
    abstract: str
    version: str


def about(root: Path) -> About:
    """UsageError when CITATION.cff is missing or lacks what the book shows of it."""
    path = root / "CITATION.cff"
    try:
        cff = yaml.safe_load(path.read_text(encoding="utf-8"))
        authors = tuple(author["name"] for author in cff["authors"])
        return About(cff["title"], authors, cff["abstract"], str(cff["version"]))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; it names the book and its authors") from None
    except (yaml.YAMLError, KeyError, TypeError):
        raise UsageError(f"{path} must have title, authors with names, abstract, version") from None


def write(root: Path, out: Path, claims: Mapping[str, Claims], year: str) -> None:
    """Put the files into the staged book `out`, and the table into its page if it has one.

    `claims` are those of each paper in the book, by its short name.
    """
    source = root / "book" / "references.bib"
    known = parse_file(str(source)) if source.is_file() else BibliographyData()
    entries = {BOOK: book_entry(about(root), year)}
    entries |= {paper: paper_entry(of.arxiv, of.title, known) for paper, of in claims.items()}
    (out / FOLDER).mkdir(parents=True)
    for name, entry in entries.items():
        text = BibliographyData({entry.key or name: entry}).to_string("bibtex")
        (out / FOLDER / f"{name}.bib").write_text(text, encoding="utf-8")
    if (page := out / PAGE).is_file():
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<!-- citations -->", table(entries)), encoding="utf-8")


def book_entry(about: About, year: str) -> Entry:
    fields = {"title": about.title, "year": year, "version": about.version}
    # In braces: the name of a group is one name, not a first and a last.
    return Entry("software", fields, {"author": [Person(f"{{{name}}}") for name in about.authors]})


def paper_entry(arxiv: str, title: str, known: BibliographyData) -> Entry:
    """The paper's entry in references.bib; without one, what its claims file says."""
    for entry in known.entries.values():
        if arxiv in entry.fields.get("url", ""):
            return entry
    fields = {"title": title, "note": f"arXiv:{arxiv}", "url": f"https://arxiv.org/abs/{arxiv}"}
    return Entry("misc", fields)


def line(paper: str, up: str) -> str:
    """How to cite a chapter, for its first page; `up` leads from there to the root of the book."""
    return raw_html(macro("cite.html", "line", paper, BOOK, FOLDER, up))


def table(entries: Mapping[str, Entry]) -> str:
    """A row for the book and for each paper: title, authors, year, where, file."""
    rows = []
    for name, entry in entries.items():
        fields = {field: _plain(text) for field, text in entry.fields.items()}
        where = fields.get("booktitle") or fields.get("journal")
        rows.append((name, fields["title"], (authors(entry), fields.get("year"), where)))
    return raw_html(macro("cite.html", "table", rows, BOOK, FOLDER))


def authors(entry: Entry) -> str:
    """The authors, as in print; the name of a group is one name."""
    people = entry.persons.get("author", ())
    names = [(p.first_names, p.middle_names, p.prelast_names, p.last_names) for p in people]
    return ", ".join(_plain(" ".join(part for parts in name for part in parts)) for name in names)


def _plain(text: str) -> str:
    """Without the marks of LaTeX."""
    return str(Text.from_latex(text))
