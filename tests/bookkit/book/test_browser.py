"""Built books in headless Chromium, one browser for all: nothing foreign runs or is asked on a page
of hostile records, rows and failed runs; the book's own scripts work."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hostile
import pytest
import torch
from pypdf import PdfReader
from small_book import CHROMIUM, EXPECTED, PAPER, ROOT

from bookkit.book.html_policy import pages_of
from bookkit.book.pdf import chromium
from replib.figures import slider
from replib.markup import visible
from replib.moving import maps

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

OWN = ROOT / "_build/html"
CHAPTER = f"chapters/{EXPECTED[0]}.html"
HOSTILE = f"chapters/{hostile.PAPER}/{hostile.MODEL}.html"
QUERY = "search.html?q=%3Cimg%20src%3Dx%20onerror%3Dtop.document.documentElement.dataset.ran%3D1%3E"
# Without a meta refresh, as no policy keeps a page from sending its reader away, and without what
# would hide the rest.
UNESCAPED = "\n".join(
    text for name, text in hostile.STRINGS.items() if name not in ("refresh", "comment")
)
# What a reader might do to everything on a page: every link that runs, every event with a handler.
TOUCH = """() => {
  for (const link of document.querySelectorAll("a")) {
    if (link.protocol === "javascript:") link.click();
  }
  for (const node of document.querySelectorAll("*")) {
    for (const {name} of [...node.attributes]) {
      if (name.startsWith("on")) node.dispatchEvent(new Event(name.slice(2)));
    }
  }
}"""


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server shows: the small book as it was built (`on`), without its policy (`off`),
    with hostile HTML put into it unescaped (`raw`), and with both faults (`bad`), which shows that
    the test would see a script that runs."""
    site = tmp_path_factory.mktemp("site")
    for how in ("on", "off", "raw", "bad"):
        shutil.copytree(built / "_build/html", site / how)
        for path in pages_of(site / how):
            text = path.read_text()
            if how in ("off", "bad"):
                text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            if how in ("raw", "bad"):
                text = re.sub("<article[^>]*>", lambda match: match[0] + UNESCAPED, text)
            path.write_text(text)
    return site


@pytest.fixture(scope="module")
def reader(site: Path) -> Iterator[Any]:
    """What a browser shows to one reader of a server of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with chromium() as browser:
        reader = browser.new_context(base_url=f"http://127.0.0.1:{server.server_port}/on/")
        reader.set_default_timeout(15_000)
        yield reader
    server.shutdown()


@pytest.fixture(scope="module")
def tab(reader: Any) -> Any:
    return reader.new_page()


# --- nothing foreign ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(reader: Any, site: Path) -> dict[str, Any]:
    """What the browser found: for each page what ran and its text, the console, other hosts."""
    every = [path.relative_to(site).as_posix() for path in pages_of(site / "off")]
    assert len(every) > 10
    some = [*hostile.SEEN, "index.html"]
    paths = [f"{how}/{page}" for how in ("on", "raw") for page in some]
    paths += [*every, f"on/{QUERY}", f"off/{QUERY}", f"bad/{CHAPTER}"]
    pages, console, requests, page = {}, [], [], reader.new_page()
    page.on("console", lambda message: console.append((path, message.text)))
    page.on("request", lambda request: requests.append((path, request)))
    for path in paths:
        page.goto(f"/{path}", wait_until="load")
        page.evaluate(TOUCH)
        page.wait_for_timeout(100)
        ran = page.evaluate("document.documentElement.dataset.ran")
        pages[path] = {"ran": ran, "text": page.evaluate("document.body.textContent")}
    page.close()
    asked = {(path, urlsplit(one.url).hostname) for path, one in requests if one.failure != "csp"}
    return {"pages": pages, "console": console, "asked": asked}


def squeezed(text: str) -> str:
    """Text without white space, control characters (whether or not they are written out) and a
    terminal's colours, which what a cell printed is shown without."""
    text = re.sub(r"\s+|[\x00-\x1f\x7f-\x9f\ufffd]|\\u00[0-9a-f]{2}", "", visible(text))
    return re.sub(r"\[\d+m", "", text)


def test_nothing_foreign_runs_and_nobody_else_is_asked(seen: dict[str, Any]) -> None:
    ran = {path for path, page in seen["pages"].items() if page["ran"]}
    assert ran == {f"bad/{CHAPTER}"}  # there it does, so the test would see it
    foreign = {(path, host) for path, host in seen["asked"] if host not in ("127.0.0.1", None)}
    assert foreign == {(f"bad/{CHAPTER}", hostile.HOST)}
    refused = {path for path, text in seen["console"] if "Content Security Policy" in text}
    assert {path.partition("/")[0] for path in refused} == {"raw"}


@pytest.mark.parametrize("page", hostile.SEEN)
def test_hostile_texts_are_shown_as_they_are(seen: dict[str, Any], page: str) -> None:
    for how in ("on", "off"):
        shown = squeezed(seen["pages"][f"{how}/{page}"]["text"])
        for field in hostile.SEEN[page]:
            text = hostile.text(field)
            if field in ("parameters notes", "list"):  # shown as they would be typed
                text = json.dumps(text)
            assert squeezed(text) in shown, field


# --- the book's own scripts, under its policy -----------------------------------------------------


def test_a_chapter_is_read_and_its_slider_moved_by_keyboard(tab: Any) -> None:
    tab.goto(CHAPTER)
    tab.keyboard.press("Tab")
    first = tab.evaluate("document.activeElement.getAttribute('href')")
    assert first == "#main-content" and tab.locator("#main-content").count() == 1
    tab.locator(".run-box summary").focus()
    tab.keyboard.press("Enter")
    assert tab.locator(".run-box details").get_attribute("open") is not None
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    tab.locator(".model-switch a", has_text="model-b").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"**/on/chapters/{EXPECTED[1]}.html")
    assert tab.locator('.model-switch [aria-current="page"]').inner_text() == "model-b"
    tab.goto(HOSTILE)
    assert tab.locator(".knob .knob-still").first.is_hidden()
    tab.locator(".knob input[type=range]").first.focus()
    for key, at in (("ArrowRight", "c = 1"), ("Home", "c = -1")):
        tab.keyboard.press(key)
        assert tab.locator(".knob output").first.inner_text() == at


def test_on_paper_all_is_open_and_light_and_no_page_too_wide(reader: Any) -> None:
    tab = reader.new_page()
    tab.goto(CHAPTER)
    tab.evaluate("window.print = () => { window.printed = true; }")
    tab.evaluate("document.querySelector('[data-print]').click()")
    assert tab.evaluate("window.printed")
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("article details:not([open])").count() == 0
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert tab.locator("article details:not([open])").count() > 0
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 688, "height": 900})  # A4 without its margins, in px
    for name in ("scorecard.html", CHAPTER, f"chapters/{PAPER}/index.html"):
        tab.goto(name)
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= 688, name


def test_the_filter_hides_claims_and_shows_numbers(tab: Any) -> None:
    tab.goto("scorecard.html")
    rows = tab.locator(".transfer-table tbody tr:not([hidden]) th")
    number = tab.locator(".transfer-table .number").first
    assert tab.locator(".transfer-filter").is_visible() and not number.is_visible()
    assert rows.all_inner_texts() == ["1.1", "1.2", "1.10", "1.11"] * 2  # of two papers
    tab.select_option("[name=outcome]", "holds")
    assert rows.all_inner_texts() == ["1.1", "1.1"]
    tab.select_option("[name=outcome]", "")
    tab.check("[name=differ]")
    assert rows.all_inner_texts() == ["1.1"]
    assert tab.locator(".transfer-count").inner_text() == "1 of 8 claims"
    tab.uncheck("[name=differ]")
    tab.select_option("[name=paper]", PAPER)
    assert rows.all_inner_texts() == ["1.1", "1.2", "1.10", "1.11"]
    tab.check("[name=numbers]")
    assert number.is_visible()


@pytest.mark.parametrize("where", ["http", "file"])
def test_the_book_works_from_a_server_and_from_a_file(reader: Any, built: Path, where: str) -> None:
    start = "" if where == "http" else f"{(built / '_build/html').as_uri()}/"
    page, said = reader.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"{start}{CHAPTER}")
    for shown in ("mjx-container svg", "button.copybtn", ".theme-switch-button svg"):
        page.wait_for_selector(shown, state="attached")
    before = page.evaluate("document.documentElement.dataset.mode")
    page.evaluate("document.querySelector('.theme-switch-button').click()")
    assert page.evaluate("document.documentElement.dataset.mode") != before
    page.goto(f"{start}search.html?q=L0H1")
    results = page.locator("#search-results li a")
    results.first.wait_for()
    assert any(f"atlas/{hostile.MODEL}" in link.get_attribute("href") for link in results.all())
    if where == "http":
        page.wait_for_selector("#search-results p.context")
    assert not [text for text in said if "Content Security Policy" in text]


# --- figures that a reader moves ------------------------------------------------------------------


BARS = """() => [...document.querySelectorAll(".knob-row")].map((row) => {
  const part = (what) => row.querySelector(".knob-" + what);
  const [left, width] = ["left", "width"].map((to) => parseFloat(part("bar").style[to]));
  return [part("name").textContent, Math.round(left), Math.round(width), part("value").textContent];
})"""


def test_a_slider_shows_its_middle_first_and_moves_its_bars(tab: Any) -> None:
    question = 'What is </script> "2 & 2"?'
    lima = {"Lima": [0.0, 0.25, 1.0]}
    rows = {("a", "b", "<b>"): [2.0, 0.5, -0.25], "same": [0.0, 2.0, 0.0]}
    script = f"<script>{(ROOT / 'book/_static/knob.js').read_text()}</script>"
    steps = ["c = -1", "c = 0", "c = 1"]
    plain = slider({question: lima}, steps, "The coordinate").data
    signed = slider({"Which?": rows}, steps, "Layer", limits=(-0.5, 1.0), percent=False, mark=0.25)
    tab.goto("about:blank")
    tab.set_content(f"<!doctype html>{script}<body>{plain}{signed.data}</body>")
    assert tab.locator(".knob-question").first.inner_text() == question
    assert tab.locator("output").first.inner_text() == "c = 0"
    # A bar is cut at the limit, but not its number.
    bars = [["Lima", 0, 25, "25%"], ["b", 33, 33, "0.50"], ["same", 33, 67, "2.00"]]
    assert tab.evaluate(BARS) == bars
    for slide in tab.locator("input").all():
        slide.fill("2")
        assert slide.get_attribute("aria-valuetext") == "c = 1"
    bars = [["Lima", 0, 100, "100%"], ["<b>", 17, 17, "-0.25"], ["same", 33, 0, "0.00"]]
    assert tab.evaluate(BARS) == bars
    left = "lines => lines.map(line => Math.round(parseFloat(line.style.left)))"
    assert tab.locator(".knob-mark").evaluate_all(left) == [50, 50]  # none in the first
    assert tab.locator(".knob-zero").evaluate_all(left) == [33, 33]


def test_maps_colour_their_cells_by_the_step(tab: Any) -> None:
    script = f"<script>{(ROOT / 'book/_static/maps.js').read_text()}</script>"
    learnt = torch.tensor([[[0.0, 2.0]], [[-1.0, 0.0]]])
    figure = maps({"learnt": learnt, "set": torch.ones(1, 1, 2)}, ["0", "9"], "Step", ["a", "b"])
    tab.goto("about:blank")
    tab.set_content(f"<!doctype html>{script}<body>{figure.data}</body>")
    colours = "cells => cells.map(cell => cell.style.backgroundColor)"
    shown = tab.locator(".maps-cell").evaluate_all(colours)
    assert shown[0].startswith("rgba(0, 114, 178, 0.5") and shown[2] == shown[3]
    tab.locator("input").fill("0")
    assert tab.locator(".maps-row").get_attribute("aria-label") == "a"
    assert tab.locator("output").inner_text() == "0"
    moved = tab.locator(".maps-cell").evaluate_all(colours)
    assert moved[0] == "rgba(230, 159, 0, 0)" and moved[1] == "rgb(230, 159, 0)"
    assert moved[2:] == shown[2:]


@pytest.mark.slow
@pytest.mark.skipif(not OWN.is_dir(), reason="make book comes first")
def test_the_own_book_hides_solutions_and_prints_a_hand_out_on_one_sheet(reader: Any) -> None:
    page = reader.new_page()
    page.goto((OWN / "chapters/ioi-circuit-reuse/exercises.html").as_uri())
    solution = page.locator(".solution").first
    text = solution.locator("p").last
    assert not text.is_visible()
    solution.locator(".toggle-button, button, summary").first.click()
    text.wait_for(state="visible")
    page.goto((OWN / "handouts/session-1.html").as_uri())
    assert page.locator(".handout").count() == 1
    sheet = page.pdf(format="A4", prefer_css_page_size=True)
    assert len(PdfReader(BytesIO(sheet)).pages) == 1
