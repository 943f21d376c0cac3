"""The book and each chapter as PDF, printed from the built pages by Chromium.

Every page is printed once, in one browser; pypdf joins them. Pages that hold `<!-- pdf NAME -->`
then get a link to NAME.pdf there, so that a book without PDFs has no link that leads nowhere.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from bookkit.book.contents import pages_in
from bookkit.book.html_policy import pages_of
from replib.errors import UsageError

NAMES = ("chromium", "chromium-browser", "google-chrome")
BOOK = "book"  # the name of the PDF of all pages
FOLDER = "_static/pdf"  # in the built book
PAPER = {"format": "A4", "margin": dict.fromkeys(("top", "right", "bottom", "left"), "14mm")}
_PLACE = re.compile(r"(<!-- pdf ([\w.-]+) -->)(?:<a [^>]*>[^<]*</a>)?")


def place(name: str) -> str:
    """Where a page will link to a PDF once there is one, as HTML."""
    return f'<p class="pdf-link"><!-- pdf {name} --></p>'


def write_all(html: Path, book: Path, out: Path) -> None:
    """The book and each chapter as PDF in `out`, with links to them; a line says so, or that there
    is no Chromium. UsageError when there is no book."""
    if find_chromium() is None:
        print("pdf: left out, there is no Chromium on this machine", file=sys.stderr)
        return
    start = time.monotonic()
    if not (book / "_toc.yml").is_file() or not (html / "index.html").is_file():
        raise UsageError(f"no book in {html} and {book}; make it with: make book")
    files = write(html, pages_in(book / "_toc.yml"), out)
    link_all(html, files)
    print(f"pdf: {len(files)} files in {out}, {time.monotonic() - start:.0f} s")


def write(html: Path, pages: Sequence[str], out: Path) -> list[Path]:
    """Print `pages`, named as in the table of contents, and join them; returns the files."""
    printed = print_pages(html, pages)
    parts = {BOOK: list(pages)}
    for page in pages:
        match = re.match(r"chapters/([^/]+)/", page)
        if match and (html / f"chapters/{match[1]}/index.html").is_file():  # no page of the method
            parts.setdefault(match[1], []).append(page)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    files = {out / f"{name}.pdf": members for name, members in parts.items()}
    for path, members in files.items():
        join(html, {page: printed[page] for page in members}, path)
    return list(files)


def find_chromium() -> str | None:
    """The machine's own Chromium; playwright would download one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A browser of playwright, one process for all that is done with it, that reaches no network.
    UsageError if there is no Chromium on this machine."""
    path = find_chromium()
    if path is None:
        raise UsageError(f"no Chromium on this machine; looked for {', '.join(NAMES)}")
    from playwright.sync_api import sync_playwright

    flags += ("--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if os.name == "posix" and os.geteuid() == 0:
        flags += ("--no-sandbox",)  # Chromium has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(flags))
        try:
            yield browser
        finally:
            browser.close()


def print_pages(html: Path, pages: Sequence[str]) -> dict[str, tuple[str, bytes]]:
    """Page -> its title and its PDF. print.js opens what is folded and chooses the light theme."""
    printed = {}
    with chromium() as browser:
        tab = browser.new_context(color_scheme="light").new_page()
        for page in pages:
            tab.goto((html / f"{page}.html").resolve().as_uri(), wait_until="load")
            tab.evaluate("() => window.MathJax?.startup?.promise")
            title = tab.evaluate("document.querySelector('h1')?.firstChild.textContent")
            printed[page] = title or page, tab.pdf(**PAPER, print_background=True, outline=True)
    return printed


def join(html: Path, printed: dict[str, tuple[str, bytes]], path: Path) -> None:
    """One PDF with a bookmark for each page and its sections. A link to another page of the book
    leads there if it is in this PDF, and is text if it is not."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import ArrayObject, NameObject, NullObject

    writer = PdfWriter()
    first = {}
    for page, (title, pdf) in printed.items():
        reader = PdfReader(BytesIO(pdf))
        places = reader.named_destinations
        for leaf in reader.pages:  # the names of places are those of each page's own
            for link in (link.get_object() for link in leaf.get("/Annots", ())):
                if (found := places.get(str(link.get("/Dest", "")))) is not None:
                    link[NameObject("/Dest")] = found.dest_array
        first[(html / f"{page}.html").resolve().as_uri()] = len(writer.pages)
        writer.append(reader, outline_item=title)
    for leaf in writer.pages:
        kept = ArrayObject()
        for link in leaf.get("/Annots", ()):
            target = link.get_object().get("/A", {}).get("/URI", "")
            address, _ = urldefrag(str(target))
            if address.startswith("file:"):
                if address not in first:
                    continue
                there = writer.pages[first[address]].indirect_reference
                top = [there, NameObject("/XYZ"), NullObject(), NullObject(), NullObject()]
                del link.get_object()["/A"]
                link.get_object()[NameObject("/Dest")] = ArrayObject(top)
            kept.append(link)
        if "/Annots" in leaf:
            leaf[NameObject("/Annots")] = kept
    writer.add_metadata({"/Title": next(iter(printed.values()))[0]})
    writer.compress_identical_objects()
    writer.write(path)


def link_all(html: Path, files: Sequence[Path]) -> None:
    """Copy the PDFs into the built book, and link to each where a page has a place for it."""
    shutil.rmtree(html / FOLDER, ignore_errors=True)
    (html / FOLDER).mkdir(parents=True)
    for file in files:
        shutil.copy(file, html / FOLDER)
    names = {file.stem: file.stat().st_size for file in files}
    for path in pages_of(html):
        up = "../" * (len(path.relative_to(html).parts) - 1)

        def link(match: re.Match[str], up: str = up) -> str:
            if match[2] not in names:
                return match[1]
            what = "This book" if match[2] == BOOK else "This chapter"
            text = f"{what} as PDF ({names[match[2]] / 1e6:.1f} MB)"
            return f'{match[1]}<a href="{up}{FOLDER}/{match[2]}.pdf">{text}</a>'

        text = path.read_text(encoding="utf-8")
        if (new := _PLACE.sub(link, text)) != text:
            path.write_text(new, encoding="utf-8")
