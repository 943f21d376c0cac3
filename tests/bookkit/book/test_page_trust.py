"""Nothing foreign runs on a page: hostile records, rows and failed runs in headless Chromium.

One browser loads the small book's pages in frames, from a server that gives each page as it was
built (`on`), without its policy (`off`), with hostile HTML put into it unescaped (`raw`), and with
both faults (`bad`), which shows that the test would see a script that runs.
"""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hostile
import pytest
from bs4 import BeautifulSoup
from small_book import CHROMIUM, EXPECTED

from bookkit.book import page_policy
from bookkit.book.markup import as_myst, raw_html
from replib.markup import as_html, visible

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

PAGES = [*hostile.SEEN, "index.html"]
CHAPTER = f"chapters/{EXPECTED[0]}.html"
HOSTILE = f"chapters/{hostile.PAPER}/{hostile.MODEL}.html"
# Without a meta refresh, as no policy keeps a page from sending its reader away, and without what
# would hide the rest.
UNESCAPED = "\n".join(
    text for name, text in hostile.STRINGS.items() if name not in ("refresh", "comment")
)

HARNESS = """<!doctype html><meta charset="utf-8"><pre></pre><iframe></iframe>
<script>
const frame = document.querySelector("iframe");
const mark = document.documentElement.dataset;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (found) => {
  for (let i = 0; i < 60 && !found(); i++) await sleep(50);
  return Boolean(found());
};
const load = (path) => new Promise((done) => {
  frame.onload = () => done(frame.contentDocument);
  frame.src = path;
});
const look = async (path) => {
  delete mark.ran;
  const page = await load(path);
  await sleep(150);
  for (const link of page.querySelectorAll("a")) {
    if (link.protocol === "javascript:") link.click();
  }
  for (const node of page.querySelectorAll("*")) {
    for (const {name} of [...node.attributes]) {
      if (name.startsWith("on")) node.dispatchEvent(new Event(name.slice(2)));
    }
  }
  await sleep(50);
  return {ran: mark.ran || page.documentElement.dataset.ran, text: page.body.textContent};
};
const FEATURES = {
  maths: async () => {
    const page = await load("/on/CHAPTER");
    return until(() => page.querySelector("mjx-container svg"));
  },
  copy: async () => {
    const page = await load("/on/CHAPTER");
    return until(() => page.querySelector("button.copybtn"));
  },
  folded: async () => {
    const page = await load("/on/CHAPTER");
    const fold = page.querySelector(".cell details");
    fold.querySelector("summary").click();
    return until(() => fold.open);
  },
  theme: async () => {
    const page = await load("/on/CHAPTER");
    const before = page.documentElement.dataset.mode;
    await until(() => page.querySelector(".theme-switch-button svg"));
    page.querySelector(".theme-switch-button").click();
    return until(() => page.documentElement.dataset.mode !== before);
  },
  print: async () => {
    const page = await load("/on/CHAPTER");
    let printed = false;
    frame.contentWindow.print = () => { printed = true; };
    page.querySelector("[data-print]").click();
    return printed;
  },
  filter: async () => {
    const page = await load("/on/scorecard.html");
    const form = page.querySelector(".transfer-filter");
    const rows = [...page.querySelectorAll(".transfer-table tbody tr")];
    const shown = () => rows.filter((row) => !row.hidden).length;
    const all = shown();
    form.elements.paper.value = "fake-paper";
    form.elements.paper.dispatchEvent(new Event("change", {bubbles: true}));
    return !form.hidden && all === 5 && shown() === 3;
  },
  slider: async () => {
    const page = await load("/on/HOSTILE");
    const knob = page.querySelector(".knob");
    const input = knob.querySelector("input");
    input.value = 2;
    input.dispatchEvent(new Event("input"));
    const still = knob.querySelector(".knob-still");
    return still.hidden && knob.querySelector("output").textContent === "c = 1";
  },
  search: async () => {
    const page = await load("/on/search.html?q=" + encodeURIComponent("hostile"));
    return until(() => page.querySelector("#search-results li a") &&
      page.querySelector("#search-results p.context"));
  },
};
(async () => {
  const results = {pages: {}, features: {}};
  for (const path of PATHS) results.pages[path] = await look(path);
  for (const [name, test] of Object.entries(FEATURES)) {
    results.features[name] = await test().catch(String);
  }
  document.querySelector("pre").textContent = JSON.stringify(results);
  document.documentElement.dataset.ready = 1;
})();
</script>"""


def serve(html: Path, paths: list[str], foreign: list[str]) -> ThreadingHTTPServer:
    """The book in four ways, and the page that loads them; `foreign` gets what asks for HOST."""
    harness = HARNESS.replace("PATHS", json.dumps(paths)).replace("CHAPTER", CHAPTER)
    harness = harness.replace("HOSTILE", HOSTILE)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, directory=str(html), **options)

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if hostile.HOST in self.headers.get("Host", ""):
                foreign.append(self.headers["Host"])
            if self.path == "/":
                return self.answer(harness)
            how, _, rest = self.path.strip("/").partition("/")
            self.path = f"/{rest}"
            path = html / rest.partition("?")[0]
            if path.suffix != ".html":
                return super().do_GET()
            text = path.read_text()
            if how in ("off", "bad"):
                text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            if how in ("raw", "bad"):
                text = re.sub("<article[^>]*>", lambda match: match[0] + UNESCAPED, text)
            if how == "bad":
                text = text.replace(hostile.HOST, f"bad.{hostile.HOST}")
            self.answer(text)

        def answer(self, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def seen(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the browser found: pages, features, what it said on its console, foreign requests."""
    foreign: list[str] = []
    paths = [f"/{how}/{page}" for how in ("on", "off", "raw") for page in PAGES]
    query = "?q=" + "%3Cimg%20src%3Dx%20onerror%3Dtop.document.documentElement.dataset.ran%3D1%3E"
    paths += [f"/on/search.html{query}", f"/off/search.html{query}", f"/bad/{CHAPTER}"]
    server = serve(built / "_build/html", paths, foreign)
    port = server.server_address[1]
    profile = tmp_path_factory.mktemp("profile")
    rules = f"MAP *{hostile.HOST} 127.0.0.1:{port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        *(f"--user-data-dir={profile}", f"--host-resolver-rules={rules}"),
        *("--enable-logging=stderr", "--virtual-time-budget=120000", "--dump-dom"),
    ]
    command = [CHROMIUM, *flags, f"http://127.0.0.1:{port}/"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    server.shutdown()
    page = BeautifulSoup(ended.stdout, "html.parser")
    assert page.html.get("data-ready") == "1", ended.stdout[:2000]
    found = json.loads(page.pre.get_text())
    yield found | {"console": ended.stderr.splitlines(), "foreign": foreign}


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
@pytest.mark.parametrize(
    "name", ["maths", "copy", "folded", "theme", "print", "filter", "slider", "search"]
)
def test_under_the_policy_the_book_works(seen: dict[str, Any], name: str) -> None:
    assert seen["features"][name] is True


@needs_chromium
def test_no_page_breaks_its_own_policy(seen: dict[str, Any]) -> None:
    refused = [line for line in seen["console"] if "Content Security Policy" in line]
    assert [line for line in refused if "/on/" in line] == []
    assert [line for line in refused if "/raw/" in line]


@needs_chromium
def test_no_page_asks_another_host(seen: dict[str, Any]) -> None:
    assert set(seen["foreign"]) == {f"bad.{hostile.HOST}"}


@needs_chromium
def test_the_book_works_from_a_file(built: Path, tmp_path: Path) -> None:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}")
    flags += ("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom")
    looked_for = {CHAPTER: "mjx-container, button.copybtn", "search.html": "#search-results li a"}
    for name, selector in looked_for.items():
        address = f"{(built / '_build/html' / name).as_uri()}?q=hostile"
        command = [CHROMIUM, *flags, address]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        page = BeautifulSoup(ended.stdout, "html.parser")
        assert all(page.select(one) for one in selector.split(", ")), name
        assert "Content Security Policy" not in ended.stderr


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
    return page_policy.policy(page).count("sha256-")


def test_only_scripts_of_the_head_are_allowed() -> None:
    text = "</head></article></body><head><script>two</script></head>"
    assert scripts_allowed(PAGE) == scripts_allowed(PAGE.replace("TEXT", text)) == 1
    search = PAGE.replace("<article>TEXT</article>", "<script>two</script>")
    assert scripts_allowed(search) == 2  # nothing of anybody's on that page


def test_a_page_is_protected_once() -> None:
    page = page_policy.protect(PAGE)
    assert page_policy.protect(page) == page
    assert page.index("Content-Security-Policy") < page.index("<script")
    assert page_policy.is_protected(page) and not page_policy.is_protected(PAGE)
    with pytest.raises(ValueError, match="begin"):
        page_policy.protect(PAGE.replace("<head>", "<head><script>0</script>"))
