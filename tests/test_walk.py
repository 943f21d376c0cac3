"""A reader walks through the small book in headless Chromium, over http as on a server: searches
for a head, switches the model, moves a slider, unfolds, prints and goes about by keyboard.

A walk is one function with the reader's page; one browser serves them all.
"""

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hostile
import pytest
from test_book import CHROMIUM, EXPECTED, PAPER

from replib.browser import chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
CHAPTER = f"chapters/{EXPECTED[0]}.html"


@pytest.fixture(scope="module")
def reader(built: Path) -> Iterator[tuple[Any, str]]:
    """A browser's page and the address of the book, which asks nothing of any other host."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, directory=str(built / "_build/html"), **options)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(15_000)
        yield page, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize("where", ["http", "file"])
def test_a_search_for_a_head_finds_its_pages(
    reader: tuple[Any, str], built: Path, where: str
) -> None:
    page, address = reader
    start = address if where == "http" else (built / "_build/html").as_uri()
    page.goto(f"{start}/search.html?q=L0H1")
    results = page.locator("#search-results li a")
    results.first.wait_for()
    found = [link.get_attribute("href") for link in results.all()]
    assert any(f"atlas/{hostile.MODEL}" in link for link in found)


def test_the_switch_leads_to_the_other_model(reader: tuple[Any, str]) -> None:
    page, address = reader
    page.goto(f"{address}/{CHAPTER}")
    page.locator(".model-switch a", has_text="model-b").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/chapters/{EXPECTED[1]}.html")
    assert page.locator('.model-switch [aria-current="page"]').inner_text() == "model-b"


def test_a_slider_moves_by_keyboard(reader: tuple[Any, str]) -> None:
    page, address = reader
    page.goto(f"{address}/chapters/{hostile.PAPER}/{hostile.MODEL}.html")
    slider = page.locator(".knob input[type=range]").first
    slider.focus()
    before = page.locator(".knob output").first.inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator(".knob output").first.inner_text() != before


def test_the_keyboard_skips_to_the_text_and_unfolds_the_box(reader: tuple[Any, str]) -> None:
    page, address = reader
    page.goto(f"{address}/{CHAPTER}")
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.getAttribute('href')")
    assert first == "#main-content" and page.locator("#main-content").count() == 1
    fold = page.locator(".run-box summary")
    fold.focus()
    page.keyboard.press("Enter")
    assert page.locator(".run-box details").get_attribute("open") is not None
    focus = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focus != "none"


def test_on_paper_all_is_open_and_light(reader: tuple[Any, str]) -> None:
    page, address = reader
    page.goto(f"{address}/{CHAPTER}")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("article details:not([open])").count() == 0
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("article details:not([open])").count() > 0
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_no_page_is_wider_than_paper(reader: tuple[Any, str]) -> None:
    page, address = reader
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 900})  # A4 without its margins, in px
    for name in ("scorecard.html", CHAPTER, f"chapters/{PAPER}/index.html"):
        page.goto(f"{address}/{name}")
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= 688, name
    page.emulate_media(media="screen")


# Exercises: reveal a hint, then the solution. Downloads: a page's notebook.
