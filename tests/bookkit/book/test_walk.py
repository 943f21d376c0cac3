"""A reader walks through the small book in headless Chromium, over http as on a server: searches
for a head, switches the model, moves a slider, unfolds, prints and goes about by keyboard.

A walk is one function with the reader's page; one browser serves them all.
"""

import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import hostile
import nbformat
import pytest
from pypdf import PdfReader
from small_book import CHROMIUM, EXPECTED, PAPER, ROOT, build

from bookkit.book.pdf import chromium
from bookkit.book.runs import finished
from bookkit.book.stage import stage

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
CHAPTER = f"chapters/{EXPECTED[0]}.html"


@contextmanager
def served(html: Path) -> Iterator[str]:
    """The address of a built book on a server of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, directory=str(html), **options)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def reader(built: Path) -> Iterator[tuple[Any, str]]:
    """A browser's page and the address of the book, which asks nothing of any other host."""
    with served(built / "_build/html") as address, chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(15_000)
        yield page, address


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


# --- the real book: certified records, and one page of the method that is run here ---------------


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, reader: tuple[Any, str]
) -> Iterator[tuple[Any, str]]:
    """The reader's page, and the address of this project's own book."""
    root = tmp_path_factory.mktemp("real")
    # A page made from a record keeps no figure that could be moved.
    words = ["run", "method-nulls", "--model", "smollm2-135m", "--out", str(root / "runs")]
    run = subprocess.run(
        [Path(sys.executable).with_name("replib"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    stage(ROOT, root / "runs", root / "build/book", finished(ROOT / "results"))
    result = build(root)
    assert result.returncode == 0, result.stdout + result.stderr
    page = reader[0].context.browser.new_page()  # the other one has been on paper
    page.set_default_timeout(15_000)
    with served(root / "_build/html") as address:
        yield page, address


def test_a_reader_opens_a_solution_and_takes_the_students_notebook(real: tuple[Any, str]) -> None:
    page, address = real
    page.goto(f"{address}/chapters/ioi-circuit-reuse/index.html")
    page.locator("a[href='exercises.html']").first.click()
    page.wait_for_url("**/exercises.html")
    solution = page.locator(".solution").first
    text = solution.locator("p").last
    assert not text.is_visible()
    solution.locator(".toggle-button, button, summary").first.click()
    text.wait_for(state="visible")
    notebook = nbformat.reads(_download(page, "Student notebook"), 4)
    checks = [c.source for c in notebook.cells if "check" in c.metadata.get("tags", [])]
    assert checks[0].startswith('replib.check("ioi-1"')


def test_a_reader_finds_a_head_and_switches_the_model(real: tuple[Any, str]) -> None:
    page, address = real
    page.goto(f"{address}/search.html?q=L23H3")
    results = page.locator("#search-results li a")
    results.first.wait_for()
    assert any("smollm2-135m" in (link.get_attribute("href") or "") for link in results.all())
    page.goto(f"{address}/chapters/successor-heads/smollm2-135m.html")
    page.locator(".model-switch a", has_text="gemma3-270m").click()
    page.wait_for_url("**/successor-heads/gemma3-270m.html")


def test_a_reader_moves_a_slider_and_the_figure_follows(real: tuple[Any, str]) -> None:
    page, address = real
    page.goto(f"{address}/chapters/method-nulls/smollm2-135m.html")
    knob = page.locator(".knob").first
    knob.locator("input[type=range]").focus()
    seen = []
    for key in ("Home", "End"):
        page.keyboard.press(key)
        bars = knob.locator(".knob-bar").evaluate_all("bars => bars.map(bar => bar.style.width)")
        seen.append((knob.locator("output").inner_text(), bars))
    (first, short), (last, long) = seen
    assert first != last and short != long and len(short) == len(long) > 0


def test_code_that_was_folded_stands_on_paper(real: tuple[Any, str]) -> None:
    page, address = real
    page.goto(f"{address}/chapters/method-nulls/smollm2-135m.html")
    sheets = PdfReader(BytesIO(page.pdf(format="A4"))).pages
    text = unicodedata.normalize("NFKC", "".join(sheet.extract_text() for sheet in sheets))
    text = "".join(text.split())  # without ligatures and spaces
    folded = [
        "".join(unicodedata.normalize("NFKC", cell.source).split())
        for cell in nbformat.read(ROOT / "notebooks" / "method-nulls/method-nulls.ipynb", 4).cells
        if "hide-input" in cell.metadata.get("tags", [])
    ]
    assert folded and [code[:30] for code in folded if code[:30] not in text] == []
    assert "Hidethecode" not in text


def test_a_teacher_goes_from_the_course_to_a_hand_out_and_the_solutions(
    real: tuple[Any, str],
) -> None:
    page, address = real
    page.goto(f"{address}/index.html")
    page.locator("article a", has_text="course").first.click()
    page.wait_for_url("**/course.html*")
    page.locator("article a[href='handouts/session-1.html']").first.click()
    page.wait_for_url("**/session-1.html")  # and until it is loaded
    assert page.locator(".handout").count() == 1
    sheet = page.pdf(format="A4", prefer_css_page_size=True)
    assert len(PdfReader(BytesIO(sheet)).pages) == 1
    page.go_back()
    page.locator("article a[href='methods/exercises.html']").first.click()
    page.wait_for_url("**/exercises.html")
    notebook = nbformat.reads(_download(page, "Instructor notebook"), 4)
    assert any("Common mistakes" in cell.source for cell in notebook.cells)


def _download(page: Any, text: str) -> str:
    with page.expect_download() as found:
        page.locator("a", has_text=text).click()
    return Path(found.value.path()).read_text(encoding="utf-8")
