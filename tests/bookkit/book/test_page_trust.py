"""Nothing foreign runs on a page: hostile records, rows and failed runs in headless Chromium.

One browser loads the small book's pages as they were built (`on`), without their policy (`off`),
with hostile HTML put into them unescaped (`raw`), and with both faults (`bad`), which shows that
the test would see a script that runs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hostile
import pytest
from bs4 import BeautifulSoup
from small_book import CHROMIUM, EXPECTED

from bookkit.book import html_policy
from bookkit.book.html_policy import pages_of
from bookkit.book.markup import as_myst, raw_html
from bookkit.book.pdf import chromium
from replib.markup import as_html, visible

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

BOOK = "book.example"  # the host of the pages
PAGES = [*hostile.SEEN, "index.html"]
CHAPTER = f"chapters/{EXPECTED[0]}.html"
HOSTILE = f"chapters/{hostile.PAPER}/{hostile.MODEL}.html"
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


class Server:
    """The book's pages to a browser, in four ways; what asks another host is counted, not sent."""

    def __init__(self, html: Path) -> None:
        self.html = html
        self.foreign: set[tuple[str, str]] = set()  # (page, host)

    def answer(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.netloc != BOOK:
            self.foreign.add((urlsplit(route.request.frame.url).path, address.netloc))
            return route.abort()
        how, _, name = address.path.strip("/").partition("/")
        path = self.html / name
        if not path.is_file():
            return route.fulfill(status=404)
        if path.suffix != ".html":
            return route.fulfill(path=path)
        text = path.read_text()
        if how in ("off", "bad"):
            text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        if how in ("raw", "bad"):
            text = re.sub("<article[^>]*>", lambda match: match[0] + UNESCAPED, text)
        return route.fulfill(body=text, content_type="text/html; charset=utf-8")


@pytest.fixture(scope="module")
def seen(built: Path) -> Iterator[dict[str, Any]]:
    """What the browser found: for each page what ran and its text, the console, other hosts."""
    paths = [f"/{how}/{page}" for how in ("on", "off", "raw") for page in PAGES]
    query = "?q=%3Cimg%20src%3Dx%20onerror%3Dtop.document.documentElement.dataset.ran%3D1%3E"
    paths += [f"/on/search.html{query}", f"/off/search.html{query}", f"/bad/{CHAPTER}"]
    server, pages, console = Server(built / "_build/html"), {}, []
    with chromium() as browser:
        context = browser.new_context()
        context.route("**/*", server.answer)
        for path in paths:
            tab = context.new_page()
            tab.on("console", lambda message, path=path: console.append((path, message.text)))
            tab.goto(f"http://{BOOK}{path}", wait_until="load")
            tab.evaluate(TOUCH)
            tab.wait_for_timeout(100)
            ran = tab.evaluate("document.documentElement.dataset.ran")
            pages[path] = {"ran": ran, "text": tab.evaluate("document.body.textContent")}
            tab.close()
        features = {name: feature(context.new_page()) for name, feature in FEATURES.items()}
    yield {"pages": pages, "features": features, "console": console, "foreign": server.foreign}


# --- the book's own scripts -----------------------------------------------------------------------


def maths(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/{CHAPTER}")
    return bool(tab.wait_for_selector("mjx-container svg"))


def copy_button(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/{CHAPTER}")
    return bool(tab.wait_for_selector("button.copybtn", state="attached"))


def folded(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/{CHAPTER}")
    tab.click(".cell details summary")
    return bool(tab.wait_for_selector(".cell details[open]"))


def theme(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/{CHAPTER}")
    before = tab.evaluate("document.documentElement.dataset.mode")
    tab.wait_for_selector(".theme-switch-button svg", state="attached")
    tab.evaluate("document.querySelector('.theme-switch-button').click()")
    return tab.evaluate("document.documentElement.dataset.mode") != before


def print_button(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/{CHAPTER}")
    tab.evaluate("window.print = () => { window.printed = true; }")
    tab.evaluate("document.querySelector('[data-print]').click()")
    return tab.evaluate("window.printed")


def transfer_filter(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/scorecard.html")
    rows = tab.locator(".transfer-table tbody tr:not([hidden])")
    every = rows.count()
    tab.select_option(".transfer-filter [name=paper]", "fake-paper")
    return (every, rows.count()) == (5, 3)


def slider(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/{HOSTILE}")
    tab.locator(".knob input").first.fill("2")
    still = tab.locator(".knob .knob-still").first.is_hidden()
    return still and tab.locator(".knob output").first.text_content() == "c = 1"


def search(tab: Any) -> bool:
    tab.goto(f"http://{BOOK}/on/search.html?q=hostile")
    found = tab.wait_for_selector("#search-results li a")
    return bool(found and tab.wait_for_selector("#search-results p.context"))


FEATURES = {
    one.__name__: one
    for one in (maths, copy_button, folded, theme, print_button, transfer_filter, slider, search)
}


def squeezed(text: str) -> str:
    """Text without white space, control characters (whether or not they are written out) and a
    terminal's colours, which what a cell printed is shown without."""
    text = re.sub(r"\s+|[\x00-\x1f\x7f-\x9f\ufffd]|\\u00[0-9a-f]{2}", "", visible(text))
    return re.sub(r"\[\d+m", "", text)


@needs_chromium
def test_nothing_foreign_runs(seen: dict[str, Any]) -> None:
    ran = {path for path, page in seen["pages"].items() if page.get("ran")}
    assert ran == {f"/bad/{CHAPTER}"}  # there it does, so the test would see it


@needs_chromium
@pytest.mark.parametrize("page", hostile.SEEN)
def test_hostile_texts_are_shown_as_they_are(seen: dict[str, Any], page: str) -> None:
    for how in ("on", "off"):
        shown = squeezed(seen["pages"][f"/{how}/{page}"]["text"])
        for field in hostile.SEEN[page]:
            text = hostile.text(field)
            if field in ("parameter", "list"):  # shown as they would be typed
                text = json.dumps(text)
            assert squeezed(text) in shown, field


@needs_chromium
@pytest.mark.parametrize("name", FEATURES)
def test_under_the_policy_the_book_works(seen: dict[str, Any], name: str) -> None:
    assert seen["features"][name] is True


@needs_chromium
def test_no_page_breaks_its_own_policy(seen: dict[str, Any]) -> None:
    refused = {path for path, text in seen["console"] if "Content Security Policy" in text}
    assert not [path for path in refused if path.startswith("/on/")]
    assert [path for path in refused if path.startswith("/raw/")]


@needs_chromium
def test_a_page_of_others_cannot_ask_its_host(seen: dict[str, Any]) -> None:
    assert seen["foreign"] == {(f"/bad/{CHAPTER}", hostile.HOST)}


def requested_hosts(pages: list[Path]) -> set[str]:
    """The hosts that pages ask for something, whether or not their policy and the network let them;
    what opens a connection alone (`preconnect`) is for the gate to find."""
    asked: set[str] = set()
    with chromium() as browser:
        tab = browser.new_page()
        tab.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
        for page in pages:
            tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_timeout(300)
    return asked - {""}


@needs_chromium
@pytest.mark.slow
def test_no_page_of_the_book_asks_another_host(built: Path, tmp_path: Path) -> None:
    pages = pages_of(built / "_build/html")
    assert len(pages) > 10
    assert requested_hosts(pages) == set()
    (tmp_path / "a.html").write_text(
        "<script>new Image().src = 'http:/' + '/cdn.example.com/a'</script>"
    )
    assert requested_hosts([tmp_path / "a.html"]) == {"cdn.example.com"}


@needs_chromium
def test_the_book_works_from_a_file(built: Path) -> None:
    looked_for = {CHAPTER: "mjx-container, button.copybtn", "search.html": "#search-results li a"}
    with chromium() as browser:
        tab, said = browser.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        for name, selectors in looked_for.items():
            tab.goto(f"{(built / '_build/html' / name).as_uri()}?q=hostile")
            for selector in selectors.split(", "):
                tab.wait_for_selector(selector, state="attached")
    assert not [text for text in said if "Content Security Policy" in text]


# --- what becomes of a text -----------------------------------------------------------------------


@pytest.mark.parametrize("name", hostile.STRINGS)
def test_a_text_becomes_html_that_says_it(name: str) -> None:
    page = BeautifulSoup(f'<p title="{as_html(hostile.STRINGS[name])}">x</p>', "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    assert list(page.p.attrs) == ["title"]
    assert page.p["title"] == visible(hostile.STRINGS[name])


@pytest.mark.parametrize(
    "text", [*hostile.STRINGS.values(), hostile.ROLES, "(label)=", "# x", "1. x"]
)
def test_a_text_becomes_myst_that_says_it(text: str) -> None:
    from markdown_it import MarkdownIt

    page = BeautifulSoup(MarkdownIt().render(f"x {as_myst(text)}"), "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    assert page.get_text().strip() == f"x {' '.join(visible(text).split())}"


def test_unseen_characters_are_written_out() -> None:
    assert visible("a\x1b[0m\u202eb\ud800\n\tc") == "a\\u001b[0m\\u202eb\\ud800\n\tc"
    assert visible("ü – 日本 שלום") == "ü – 日本 שלום"


def test_raw_html_cannot_be_left() -> None:
    assert raw_html("a\n`````\nb").startswith("``````{raw} html\n")
    assert raw_html("a").startswith("```{raw} html\n")


# --- the policy -----------------------------------------------------------------------------------

PAGE = """<html><head>
    <meta charset="utf-8" />
<script>one</script><script src="a.js"></script>
</head><body><article>TEXT</article></body></html>"""


def scripts_allowed(page: str) -> int:
    return html_policy.policy(page).count("sha256-")


def test_only_scripts_of_the_head_are_allowed() -> None:
    text = "</head></article></body><head><script>two</script></head>"
    assert scripts_allowed(PAGE) == scripts_allowed(PAGE.replace("TEXT", text)) == 1
    search = PAGE.replace("<article>TEXT</article>", "<script>two</script>")
    assert scripts_allowed(search) == 2  # nothing of anybody's on that page


def test_a_page_is_protected_once() -> None:
    page = html_policy.protect(PAGE)
    assert html_policy.protect(page) == page
    assert page.index("Content-Security-Policy") < page.index("<script")
    assert html_policy.is_protected(page) and not html_policy.is_protected(PAGE)
    with pytest.raises(ValueError, match="begin"):
        html_policy.protect(PAGE.replace("<head>", "<head><script>0</script>"))
