"""Names for parts of the theme's pages that have none, for those who hear a page."""

import re
from pathlib import Path
from typing import Any

from bookkit.book.browser import pages_of

# A link to a page that has pages under it, and the arrow that unfolds them.
_UNFOLD = re.compile(
    r'(<a class="(?:current )?reference internal" href="[^"]*">)([^<]*)'
    r'(</a><details(?: open="open")?><summary)(?: aria-label="[^"]*")?>'
)
# The side bar, with the book's name and the search in it: no landmark in the theme.
_SIDE_BAR = '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar">'
_NAMED_BAR = _SIDE_BAR.replace(">", ' role="region" aria-label="Side bar">')
# docutils' list of citations is none: its items are no children of it but of their own marks.
_LIST = '<div role="list" class="citation-list">'
# A table that a notebook put out; `replib.markup.scrolling` names those of other pages.
_TABLE = re.compile(
    r'<div class="table-scroll" style="[^"]*">(\s*<table class="(claims|verdicts)-)'
)


def _name_table(match: re.Match[str]) -> str:
    label = f'role="region" tabindex="0" aria-label="{match[2].capitalize()}"'
    return f'<div class="table-scroll" {label}>{match[1]}'


def name_parts(page: str) -> str:
    """The page with those names; a page that has them stays as it is."""
    page = page.replace(_LIST, '<div class="citation-list">')
    page = _TABLE.sub(_name_table, page.replace(_SIDE_BAR, _NAMED_BAR))
    return _UNFOLD.sub(r'\1\2\3 aria-label="Pages under \2">', page)


def name_all(app: Any, exception: Exception | None) -> None:
    """Do it for every page of a book that was just built; Sphinx calls this at the end."""
    if exception is not None or app.builder.format != "html":
        return
    for path in pages_of(Path(app.outdir)):
        path.write_text(name_parts(path.read_text(encoding="utf-8")), encoding="utf-8")
