"""The book's page on trust, made from what the long forms of the tests wrote (results/trust).

The page's prose holds `<!-- trust NAME -->` for the table of results/trust/NAME.json. Nothing in a
table is typed.
"""

import json
import re
from pathlib import Path
from typing import Any

import nbformat

from bookkit.book.markup import raw_html, scrolling
from bookkit.records import FOLDER
from replib.errors import UsageError
from replib.files import sha256_text
from replib.hashes import library_hash, notebook_hash
from replib.markup import as_html

PAGE = "trust.md"


def write(root: Path, out: Path) -> None:
    """Fill in the page in `out`; UsageError if a table that it names is missing or no such."""
    path = out / PAGE
    text = path.read_text(encoding="utf-8")
    path.write_text(
        re.sub(r"<!-- trust (\w+) -->", lambda match: table(root, match[1]), text), encoding="utf-8"
    )


def table(root: Path, name: str) -> str:
    """One report as a table of HTML in MyST, with its date, its time and how to make it again."""
    path = root / FOLDER / "trust" / f"{name}.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        head = "".join(f'<th scope="col">{as_html(title)}</th>' for title in report["columns"])
        rows = "\n".join(_row(row) for row in report["rows"])
        minutes = report["seconds"] / 60
        line = f"{as_html(report['what'])} Made on {report['date']} by <code>make {name}</code>, "
        line += f"in {minutes:.0f} minutes." if minutes >= 1.5 else f"in {report['seconds']:.0f} s."
        if report["code"] != code_hash(root, name):
            line += " The library or the script has changed since."
        line += "".join(f" Left out: {as_html(text)}." for text in report.get("not_injected", ()))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; make it with: make {name}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is not the report of make {name}; make it again") from None
    rows = f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>"
    rows = f'<table class="trust-table">{rows}</table>'
    return raw_html(f"<p>{line}</p>\n" + scrolling(f"make {name}", rows))


def code_hash(root: Path, name: str) -> str:
    """sha256 of what a table depends on: the script tests/NAME.py, and what of the library it or a
    notebook reaches."""
    script = (root / "tests/long" / f"{name}.py").read_text(encoding="utf-8")
    cells = [nbformat.v4.new_code_cell(script)]  # what it reaches is found as for a notebook
    for path in sorted(root.glob("notebooks/*/*.ipynb")):
        cells += nbformat.read(path, 4).cells
    every = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    alone = nbformat.writes(nbformat.v4.new_notebook(cells=cells[:1]))
    return sha256_text(notebook_hash(alone) + library_hash(every))


def _row(row: list[Any]) -> str:
    first, *rest = row
    cells = "".join(f"<td>{as_html(_show(value))}</td>" for value in rest)
    return f'<tr><th scope="row">{as_html(first)}</th>{cells}</tr>'


def _show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
