"""Can everybody read the built book? axe-core and a few looks of our own, on every page.

    python tests/long/accessibility.py _build/html    # one line for each fault; exit code 1 if any

Each page is looked at in light on a desktop's width, and in dark on a phone's.
Contrast is nearly all of the cost, so it is looked at in one of the elements that look alike (same
tags, classes and colours up to the page's body). A request to another host is a fault too: the book
is to work without a network.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python

from bookkit.book.html_policy import pages_of
from bookkit.book.pdf import chromium
from replib.errors import UsageError

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
# What a width changes (menus, scrolling) is no matter of colour, so each theme has one width.
LOOKS = ((1280, "light"), (390, "dark"))
SETTLE = 300  # ms; scripts follow a change of the width
IMPACTS = ("moderate", "serious", "critical")  # minor ones are advice

SHOW = """(theme) => {
  const still = new CSSStyleSheet();  // what unfolds would fade in, from no contrast at all
  still.replaceSync("* { animation: none !important; transition: none !important }");
  document.adoptedStyleSheets = [still];
  document.documentElement.dataset.mode = theme;
  document.documentElement.dataset.theme = theme;
  for (const fold of document.querySelectorAll("details")) fold.open = true;
}"""
STRUCTURE = """axe.run(document, {
  resultTypes: ["violations"],
  rules: {"color-contrast": {enabled: false}},
}).then(({violations}) => violations)"""
CONTRAST = """() => {
  const look = (node) => node === document.documentElement ? "" : look(node.parentElement)
    + `>${node.tagName}.${node.className}${getComputedStyle(node).backgroundColor}`;
  const different = new Map();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
    const {color, fontSize, fontWeight} = getComputedStyle(node);
    different.set(`${look(node)} ${color} ${fontSize} ${fontWeight}`, node);
  }
  return axe.run({include: [...different.values()]}, {runOnly: ["color-contrast"]})
    .then(({violations}) => violations);
}"""
# Pictures of figures are drawn in black: they need a light card in both themes.
FIGURES = """() => [...document.querySelectorAll("article img")].filter((image) => {
  const {backgroundColor, filter} = getComputedStyle(image);
  return backgroundColor !== "rgb(255, 255, 255)" || filter !== "none";
}).map((image) => image.outerHTML.slice(0, 120))"""
WIDTH = "[document.scrollingElement.scrollWidth, innerWidth]"


def faults_of(page: Any, address: str) -> Iterator[str]:
    """What is wrong with one page, in either look."""
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    page.goto(address, wait_until="load")
    page.evaluate(f"{AXE};0")
    for width, theme in LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(SHOW, theme)
        page.wait_for_timeout(SETTLE)
        where = f"{theme}, {width} px"
        wide, there = page.evaluate(WIDTH)
        if wide > there:
            yield f"is {wide} px wide on a screen of {there} px"
        for rule in page.evaluate(CONTRAST) + page.evaluate(STRUCTURE):
            if rule["impact"] in IMPACTS:
                for node in rule["nodes"]:
                    place = " ".join(map(str, node["target"]))
                    said = (node["any"] or node["all"] or node["none"])[0]["message"]
                    yield f"{where}: {rule['impact']}, {rule['id']}: {place}: {said}"
        for image in page.evaluate(FIGURES):
            yield f"{where}: a figure without its light card: {image}"
    for host in sorted(asked - {""}):
        yield f"asks another host, {host}"


def faults(html: Path, paths: Sequence[Path]) -> list[str]:
    """Of these pages of a built book, one line each."""
    found = []
    with chromium() as browser:
        context = browser.new_context(reduced_motion="reduce")
        for path in paths:
            page = context.new_page()
            name = path.relative_to(html).as_posix()
            found += [f"{name}: {fault}" for fault in faults_of(page, path.resolve().as_uri())]
            page.close()
    return found


def main() -> int:
    html = Path(sys.argv[1] if sys.argv[1:] else "_build/html")
    if not (html / "index.html").is_file():
        sys.exit(f"accessibility: no book in {html}; make one with: make book")
    start, found = time.monotonic(), 0
    paths = pages_of(html)
    n = min(len(paths), os.cpu_count() or 1)  # a browser for each core
    try:
        with ProcessPoolExecutor(n) as pool:
            for some in pool.map(faults, [html] * n, [paths[i::n] for i in range(n)]):
                for fault in some:
                    print(f"accessibility: {fault}", file=sys.stderr, flush=True)
                    found += 1
    except UsageError as error:
        sys.exit(f"accessibility: {error}")
    print(f"accessibility: {len(paths)} pages, {found} faults, {time.monotonic() - start:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
