"""How to cite the book and each paper, as files for reference managers: BibTeX, RIS and CSL JSON.

The book's title and authors stand in CITATION.cff alone, a paper's in references.bib, where it is
found by its arXiv number. The page's prose holds `<!-- citations -->` for the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pybtex.database import BibliographyData, Entry, Person, parse_file
from pybtex.richtext import Text

from bookkit.book.markup import raw_html, scrolling
from replib.claims.measure import Claims
from replib.errors import UsageError
from replib.markup import as_html as _h

PAGE = "cite.md"
FOLDER = "static/citations"  # in the staged book; `_static/citations` in the built one
BOOK = "book"  # the name of its files
FORMATS = {"bib": "BibTeX", "ris": "RIS", "json": "CSL JSON"}
# Kinds of BibTeX in the words of RIS and of CSL
KINDS = {
    "inproceedings": ("CPAPER", "paper-conference"),
    "article": ("JOUR", "article-journal"),
    "misc": ("GEN", "article"),
    "software": ("COMP", "software"),
}


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
        for suffix, text in files(name, entry).items():
            (out / FOLDER / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    if (out / PAGE).is_file():
        text = (out / PAGE).read_text(encoding="utf-8")
        text = text.replace("<!-- citations -->", table(entries))
        (out / PAGE).write_text(text, encoding="utf-8")


def book_entry(about: About, year: str) -> Entry:
    fields = {"title": about.title, "year": year, "version": about.version}
    # In braces: the name of a group is one name, not a first and a last.
    return Entry("software", fields, {"author": [Person(f"{{{name}}}") for name in about.authors]})


def paper_entry(arxiv: str, title: str, known: BibliographyData) -> Entry:
    """The paper's entry in references.bib; without one, what its claims file says."""
    for entry in known.entries.values():
        if arxiv in entry.fields.get("url", ""):
            return entry
    address = f"https://arxiv.org/abs/{arxiv}"
    fields = {"title": title, "note": f"arXiv:{arxiv}", "url": address}
    return Entry("misc", fields=fields)


def files(name: str, entry: Entry) -> dict[str, str]:
    """Suffix -> text, in every format."""
    return {
        "bib": BibliographyData({entry.key or name: entry}).to_string("bibtex"),
        "ris": _ris(entry),
        "json": json.dumps([_csl(name, entry)], indent=1, ensure_ascii=False) + "\n",
    }


def _plain(text: str) -> str:
    """Without the marks of LaTeX, on one line: a line break would start another field of RIS."""
    return " ".join(str(Text.from_latex(text)).split())


def _field(entry: Entry, *names: str) -> str:
    """The first of these fields that the entry has."""
    return next((_plain(entry.fields[name]) for name in names if name in entry.fields), "")


def _names(entry: Entry) -> list[tuple[str, str]]:
    """Last and first names of the authors; a group has no first name."""
    return [
        tuple(_plain(" ".join(parts)) for parts in (last, first))
        for person in entry.persons.get("author", ())
        for last, first in [
            (
                person.prelast_names + person.last_names,
                person.first_names + person.middle_names,
            )
        ]
    ]


def _ris(entry: Entry) -> str:
    fields = [("TY", KINDS.get(entry.type, KINDS["misc"])[0])]
    fields += [("AU", ", ".join(filter(None, name))) for name in _names(entry)]
    fields += [
        ("TI", _field(entry, "title")),
        ("T2", _field(entry, "booktitle", "journal")),
        ("PY", _field(entry, "year")),
        ("ET", _field(entry, "version")),
        ("N1", _field(entry, "note")),
        ("UR", _field(entry, "url")),
    ]
    lines = [f"{tag}  - {text}" for tag, text in fields if text]
    return "\n".join([*lines, "ER  - ", ""])


def _csl(name: str, entry: Entry) -> dict[str, object]:
    authors = [
        {"family": last, "given": first} if first else {"literal": last}
        for last, first in _names(entry)
    ]
    year = _field(entry, "year")
    found = {
        "id": entry.key or name,
        "type": KINDS.get(entry.type, KINDS["misc"])[1],
        "title": _field(entry, "title"),
        "author": authors,
        "issued": {"date-parts": [[int(year)]]} if year.isdigit() else {},
        "container-title": _field(entry, "booktitle", "journal"),
        "version": _field(entry, "version"),
        "note": _field(entry, "note"),
        "URL": _field(entry, "url"),
    }
    return {key: value for key, value in found.items() if value}


def links(name: str, up: str) -> str:
    """The files of one entry, as HTML; `up` leads from the page to the root of the book."""
    of = "the book" if name == BOOK else name
    return ", ".join(
        f'<a href="{up}_{FOLDER}/{_h(name)}.{suffix}" download aria-label="{title} of {_h(of)}">'
        f"{title}</a>"
        for suffix, title in FORMATS.items()
    )


def line(paper: str, up: str) -> str:
    """How to cite a chapter, for its first page."""
    text = f"the paper ({links(paper, up)}) and the book ({links(BOOK, up)})."
    return raw_html(f'<p class="cite"><strong>Cite</strong> {text}</p>')


def table(entries: Mapping[str, Entry]) -> str:
    """A row for the book and for each paper: authors, title, year and files."""
    rows = []
    for name, entry in entries.items():
        authors: Sequence[str] = [
            " ".join(filter(None, (first, last))) for last, first in _names(entry)
        ]
        words = (", ".join(authors), _field(entry, "year"), _field(entry, "booktitle", "journal"))
        cells = "".join(f"<td>{_h(word or '–')}</td>" for word in words)
        title = _field(entry, "title")
        rows.append(f'<tr><th scope="row">{_h(title)}</th>{cells}<td>{links(name, "")}</td></tr>')
    head = ("Title", "Authors", "Year", "Where", "Files")
    titles = "".join(f'<th scope="col">{text}</th>' for text in head)
    body = "\n".join(rows)
    html = f'<table class="cite-table"><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody>'
    return raw_html(scrolling("The book and its papers", f"{html}</table>"))
