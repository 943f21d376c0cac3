"""What a browser may load and run on the book's pages: one strict policy, in each of them.

A page's own scripts stand in its head, where Sphinx and the theme put them. The policy names those
by hash, and the book's own files; a script that somebody gets into the text of a page is neither,
so it does not run, and neither does an event handler or a `javascript:` link. No other host is
named.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from bookkit.book.browser import pages_of

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


def own_scripts(page: str) -> list[str]:
    """The inline scripts in a page's head; in the whole page if it has no article, as the search's,
    where no text of a chapter or a record stands.

    The head ends before any such text begins, so nothing in the text can pass for one of these,
    however broken it is.
    """
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


def protect_all(app: Any, exception: Exception | None) -> None:
    """Give every page of a book that was just built its policy; Sphinx calls this at the end."""
    from sphinx.errors import ExtensionError

    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for path in pages_of(out):
        try:
            path.write_text(protect(path.read_text(encoding="utf-8")), encoding="utf-8")
        except ValueError as error:
            raise ExtensionError(f"{path.relative_to(out)}: {error}") from None
