"""The last step on every built page: names for those who hear it, and a content security policy.

The policy allows the book's own files, and by hash the scripts that Sphinx and the theme put into
a page's head. A script that somebody gets into the text of a page is neither, so it does not run,
and neither does an event handler or a `javascript:` link. No other host may be asked for anything.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

RULES = {
    "default-src": "'none'",
    "script-src": "'self'",
    # MathJax, the theme's icons and pandas' tables bring style elements and attributes of their
    # own, written while the page is shown. A style cannot run anything, and loads nothing foreign.
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",  # data: small pictures in the theme's style sheets
    "font-src": "'self'",
    "connect-src": "'self'",  # the search reads the pages that it found
    "form-action": "'self'",  # the search
    "base-uri": "'none'",
    "object-src": "'none'",
}
DATA_TYPES = ("application/json", "application/ld+json")  # of script elements that run nothing
_META = re.compile(r'<meta http-equiv="Content-Security-Policy" content="[^"]*">\n?')
_SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script\s*>", re.DOTALL | re.IGNORECASE)
_PRINT = '<button onclick="window.print()"'  # the theme's; print.js looks for its replacement
_START = re.compile(r'<head>\s*<meta charset="utf-8" />\n')

# A link to a page that has pages under it, and the arrow that unfolds them.
_UNFOLD = re.compile(
    r'(<a class="(?:current )?reference internal" href="[^"]*">)([^<]*)'
    r'(</a><details(?: open="open")?><summary)(?: aria-label="[^"]*")?>'
)
# The side bar, with the book's name and the search in it: no landmark in the theme.
SIDE_BAR = '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar">'
NAMED_BAR = SIDE_BAR.replace(">", ' role="region" aria-label="Side bar">')
# docutils says that its citations are a list, but wraps them in marks that are no list items.
_LIST = '<div role="list" class="citation-list">'
# A table that a notebook put out; `table` in macros.html names those of other pages.
_TABLE = re.compile(
    r'<div class="table-scroll" style="[^"]*">(\s*<table class="(claims|verdicts)-)'
)


def pages_of(html: Path) -> list[Path]:
    """Every page of a built book; what stands in `_static` are templates and files."""
    found = sorted(html.rglob("*.html"))
    return [path for path in found if "_static" not in path.relative_to(html).parts]


def finish_all(app: Any, exception: Exception | None) -> None:
    """Finish every page of a book that was just built; Sphinx calls this at the end."""
    if exception is not None or app.builder.format != "html":
        return
    for path in pages_of(Path(app.outdir)):
        try:
            page = protect(name_parts(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ExtensionError(f"{path.relative_to(app.outdir)}: {error}") from None
        path.write_text(page, encoding="utf-8")


def name_parts(page: str) -> str:
    """The page with names for parts that the theme leaves without; done twice, it is as once."""
    page = page.replace(_LIST, '<div class="citation-list">').replace(SIDE_BAR, NAMED_BAR)
    return _UNFOLD.sub(r'\1\2\3 aria-label="Pages under \2">', _TABLE.sub(_name_table, page))


def _name_table(match: re.Match[str]) -> str:
    label = f'role="region" tabindex="0" aria-label="{match[2].capitalize()}"'
    return f'<div class="table-scroll" {label}>{match[1]}'


def own_scripts(page: str) -> list[str]:
    """The inline scripts in a page's head, which ends before any text of a chapter or a record
    begins, so nothing there can pass for one of these, however broken it is. If the page has no
    article, as the search's, and so no such text, those in the whole page."""
    head, _, rest = page.partition("</head>")
    part = head if "<article" in rest else page
    return [body for attributes, body in _SCRIPT.findall(part) if " src=" not in attributes]


def policy(page: str) -> str:
    """The policy that a page must carry."""
    digests = {hashlib.sha256(script.encode()).digest() for script in own_scripts(page)}
    hashes = sorted(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    rules = RULES | {"script-src": " ".join([RULES["script-src"], *hashes])}
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def protect(page: str) -> str:
    """The page with its policy as the first thing after its encoding, and without the theme's one
    event handler. ValueError for a page that does not begin as those of the theme."""
    page = _META.sub("", page.replace(_PRINT, '<button type="button" data-print'))
    if not (start := _START.search(page.partition("</head>")[0])):
        raise ValueError("the page does not begin as the theme's pages do")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(page)}">\n'
    return page[: start.end()] + meta + page[start.end() :]


def is_protected(page: str) -> bool:
    """Is the page as `protect` leaves it?"""
    try:
        return protect(page) == page
    except ValueError:
        return False
