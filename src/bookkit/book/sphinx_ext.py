"""The Sphinx extension: the role {record}, the directives {scorecard}, {transfer}, {across}."""

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from markupsafe import Markup
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from bookkit.book import across
from bookkit.book.contents import pages_in
from bookkit.book.html import show_value
from bookkit.book.html_policy import finish_all
from bookkit.book.runs import RECORDS, STALE, Run
from bookkit.book.tables import scorecard, transfer
from bookkit.records import read_record, record_value, record_values
from replib.errors import UsageError

# The gate reads these attributes again from the built page.
_NUMBER = Markup('<span class="record" data-record="{}" data-key="{}" data-format="{}">{}</span>')


def _staged_run(app: Any, pair: str) -> Run:
    """A run from the staged records; the page that asks is built again when the record changes."""
    path = Path(app.srcdir) / RECORDS / f"{pair}.json"
    if not path.is_file():
        raise UsageError(f"no record of {pair} in the book")
    app.env.note_dependency(str(path))
    paper, model = pair.split("/", 1)
    stale = json.loads((Path(app.srcdir) / STALE).read_text())
    return Run(paper, model, read_record(path), "", path.parent, tuple(stale.get(pair, ())))


def text_of_value(run: Run, key: str, spec: str) -> str:
    """A value of a run's record as a page shows it; UsageError or ValueError if there is none."""
    if run.stale and key not in record_values(run.record):
        return show_value(None)  # the text has changed since the record was made
    return show_value(record_value(run.record, key), spec)


def record_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, *unused: Any, **more: Any
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """{record}`KEY:FORMAT` on a chapter's page, {record}`PAPER/MODEL KEY:FORMAT` on any other.

    An unknown key, record or a format that does not fit stops the build.
    """
    app = inliner.document.settings.env.app
    page = app.env.docname
    match = re.fullmatch(r"\s*(?:(\S+/\S+)\s+)?([^\s:]+)(?::(.*))?", text)
    try:
        if match is None:
            raise UsageError("write KEY:FORMAT or PAPER/MODEL KEY:FORMAT")
        pair, key, spec = match[1], match[2], match[3] or ""
        if pair is None:
            if not re.fullmatch(r"chapters/[^/]+/.+", page) or page.endswith("/index"):
                raise UsageError("this page shows no single run; name it: PAPER/MODEL KEY:FORMAT")
            pair = page.removeprefix("chapters/")
        shown = text_of_value(_staged_run(app, pair), key, spec)
    except (UsageError, ValueError) as error:
        raise ExtensionError(f"{page}, line {lineno}: {{record}}`{text}`: {error}") from None
    return [nodes.raw(rawtext, str(_NUMBER.format(pair, key, spec, shown)), format="html")], []


def number_by_page(app: Any, env: Any) -> list[str]:
    """Number figures and equations from 1 on every page, as each model's page stands alone."""
    for page in env.toc_fignumbers.values():
        for kind, numbers in page.items():
            ordered = sorted(numbers, key=numbers.__getitem__)
            page[kind] = {label: (place,) for place, label in enumerate(ordered, 1)}
    return []


class RecordTable(SphinxDirective):
    """{scorecard}, {transfer} and {across}: tables of all records in the book."""

    def run(self) -> list[nodes.Node]:
        source = Path(self.env.srcdir)
        pairs = [page.removeprefix("chapters/") for page in pages_in(source / "_toc.yml")]
        found = [pair for pair in pairs if (source / RECORDS / f"{pair}.json").is_file()]
        runs = [_staged_run(self.env.app, pair) for pair in found]
        make = {"scorecard": scorecard, "transfer": transfer, "across": across.page}[self.name]
        try:
            return [nodes.raw("", make(runs), format="html")]
        except UsageError as error:  # a rule that uses what no record has
            raise ExtensionError(f"{self.env.docname}: {error}") from None


def setup(app: Any) -> dict[str, Any]:
    """Register {record}, {scorecard}, {transfer} and {across} with Sphinx."""
    app.add_directive("scorecard", RecordTable)
    app.add_directive("transfer", RecordTable)
    app.add_directive("across", RecordTable)
    app.add_role("record", record_role)
    app.connect("env-get-updated", number_by_page, priority=900)  # after Sphinx numbered them
    app.connect("build-finished", finish_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
