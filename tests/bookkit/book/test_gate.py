"""The gate: each test breaks one thing in the small book, and sees the gate say so."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from small_book import CHROMIUM, EXPECTED, PAPER, ROOT, gate
from test_built import page

from bookkit.book.requests import requests_in_css, requests_in_script
from replib.claims.file import MIME

CHAPTER = f"_build/html/chapters/{EXPECTED[0]}.html"
RUN = f"build/runs/{EXPECTED[0]}"
END = "</article>"
NO_POLICY = "does not carry the content security policy"


def test_the_gate_passes_the_built_book(built: Path) -> None:
    assert gate(built) == []


BREAKS = {
    "a page is gone": ("_build/html/references.html", None, "", "references.html is missing"),
    "a chapter's page is gone": (CHAPTER, None, "", f"chapters/{EXPECTED[0]}.html is missing"),
    "no book": ("_build/html/index.html", None, "", "no book"),
    "no record": (f"{RUN}/record.json", None, "", "no finished run of fake-paper on model-a"),
    "unfinished": (f"{RUN}/record.json", '"finished"', '"running"', "finished"),
    "another run": (f"{RUN}/record.json", "900.0", "901.0", "built from another run"),
    "record differs": (f"{RUN}/record.json", '"value": 0.3', '"value": 0.4', "shows '30.0%' for"),
    "notebook differs": (
        f"{RUN}/record.json",
        '"value": 0.3',
        '"value": 0.4',
        "claim 1.1, measured",
    ),
    "a claim less": (f"{RUN}/notebook.ipynb", '"id": "1.2"', '"id": "1.3"', "claim 1.2 is in the"),
    "outcome differs": (f"{RUN}/notebook.ipynb", '"unclear"', '"fails"', "claim 1.2, outcome"),
    "error output": (
        f"{RUN}/notebook.ipynb",
        '"output_type": "display_data"',
        '"ename": "ValueError", "evalue": "no", "output_type": "error"',
        "cell 4 ended in ValueError: no",
    ),
    "dead kernel": (f"{RUN}/notebook.ipynb", "<Figure>", "DeadKernelError: died", "shows an error"),
    "a cell that never ran": (
        f"{RUN}/notebook.ipynb",
        '"execution_count": 3',
        '"execution_count": null',
        "cell 4 never ran",
    ),
    "a widget": (
        f"{RUN}/notebook.ipynb",
        '"text/plain": "<Figure>"',
        '"application/vnd.jupyter.widget-view+json": {}',
        "shows a widget",
    ),
    "no verdicts": (f"{RUN}/notebook.ipynb", MIME, "application/json", "0 outputs of verdicts"),
    "a run that failed": (
        f"{RUN}/notebook.ipynb",
        '"metadata": {"kernelspec"',
        '"metadata": {"papermill": {"exception": true}, "kernelspec"',
        "run that failed",
    ),
    "a number": (
        CHAPTER,
        ">30.0%</span>, [",
        ">31.0%</span>, [",
        "shows '31.0%' for claims.1.1.value",
    ),
    "a key": (CHAPTER, 'data-key="model.name"', 'data-key="model.nam"', "shows model.nam"),
    "a traceback": (
        CHAPTER,
        END,
        '<div class="cell_output"><div class="output traceback">no</div></div>',
        "output of an error",
    ),
    "a died kernel": (
        CHAPTER,
        END,
        '<div class="cell_output"><pre>nbclient.DeadKernelError</pre></div>',
        "shows DeadKernelError",
    ),
    "a verdict": (CHAPTER, 'outcome-holds">holds', 'outcome-fails">fails', "claim 1.1 fails, the"),
    "a verdict's class": (CHAPTER, 'outcome-holds">', 'outcome-fails">', "claim 1.1 holds, the"),
    "a verdict's number": (CHAPTER, "<td>0.3 [", "<td>0.7 [", "does not show 0.3 for claim 1.1"),
    "no verdict": (CHAPTER, "<tr><td>1.2</td>", "<tr><td>1.1</td>", "no verdict on claim 1.2"),
    "the scorecard": (
        "_build/html/scorecard.html",
        'outcome-unclear" data-record="fake-paper/model-b" data-claim="1.1">unclear',
        'outcome-holds" data-record="fake-paper/model-b" data-claim="1.1">holds',
        "claim 1.1 holds, the record of fake-paper/model-b says unclear",
    ),
    "the scorecard's number": (
        "_build/html/scorecard.html",
        'data-format=".3g">0.06<',
        'data-format=".3g">0.07<',
        "shows '0.07' for claims.1.1.value",
    ),
    "a role": (CHAPTER, END, "<p>is {record}`claims.1.1.value`</p>", "unresolved role"),
    "a role, half parsed": (CHAPTER, END, "<p>{term}<code>null</code></p>", "unresolved role"),
    "a message": (CHAPTER, END, '<p class="system-message">no</p>', "message of the build"),
    "no alt": (CHAPTER, 'alt="A grey box for model-a"', 'alt=""', "without alternative text"),
    "a link": (CHAPTER, 'href="model-b.html"', 'href="model-c.html"', "links to model-c.html"),
    "an anchor": (CHAPTER, 'href="#verdicts"', 'href="#verdict"', "links to #verdict, where"),
    "an anchor elsewhere": (
        CHAPTER,
        '<a href="model-b.html"',
        '<a href="model-b.html#x"',
        "model-b.html#x, where",
    ),
    "out of the book": (CHAPTER, END, '<a href="../../../../_toc.yml">x</a>', "is not in the book"),
    "from the root": (CHAPTER, END, '<a href="/index.html">x</a>', "not relative to the page"),
    "no policy": (CHAPTER, 'http-equiv="Content-Security-Policy"', 'name="policy"', NO_POLICY),
    "a wider policy": (
        CHAPTER,
        "script-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        NO_POLICY,
    ),
    "a policy too late": (CHAPTER, "<head>", '<head><script src="../../a.js"></script>', NO_POLICY),
    "another script": (CHAPTER, "</head>", "<script>1</script></head>", NO_POLICY),
    "a script": (CHAPTER, END, "<script>let a = 1;</script>", "holds a script: let a = 1;"),
    "a module": (CHAPTER, END, '<script type="module">1</script>', "holds a script: 1"),
    "a handler": (CHAPTER, END, '<p onclick="a()">x</p>', "an event handler, onclick of p"),
    "a link that runs": (CHAPTER, END, '<a href=" JavaScript:a()">x</a>', "a script as href of a"),
    "a picture": (CHAPTER, 'src="../../_images/', 'src="../../_image/', "which is not in the book"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_gate_sees(built: Path, broken: Callable, name: str) -> None:
    file, old, new, message = BREAKS[name]
    if old == END:
        new += END
    broken(file, old, new)
    found = gate(built, EXPECTED)
    assert any(message in fault for fault in found), found
    assert not any("\n" in fault for fault in found)


EXTERNAL = {
    "script": '<script src="https://cdn.example.com/a.js"></script>',
    "protocol-relative": '<script src="//cdn.example.com/a.js"></script>',
    "style sheet": '<link rel="stylesheet" href="https://cdn.example.com/a.css">',
    "preload": '<link rel="preload" as="font" href="https://cdn.example.com/a.woff2">',
    "preconnect": '<link rel="preconnect" href="https://cdn.example.com">',
    "image": '<img alt="x" src="https://cdn.example.com/a.png">',
    "srcset": '<img alt="x" src="data:," srcset="https://cdn.example.com/a.png 2x">',
    "frame": '<iframe src="https://cdn.example.com/"></iframe>',
    "frame's text": "<iframe srcdoc='<img src=\"https://cdn.example.com/a.png\">'></iframe>",
    "video": '<video poster="https://cdn.example.com/a.png"></video>',
    "object": '<object data="https://cdn.example.com/a.svg"></object>',
    "svg": '<svg><image href="https://cdn.example.com/a.png"/></svg>',
    "refresh": '<meta http-equiv="refresh" content="0; url=https://cdn.example.com/">',
    "base": '<base href="https://cdn.example.com/">',
    "ping": '<a href="#" ping="https://cdn.example.com/">x</a>',
    "style": "<style>p { background: url('https://cdn.example.com/a.png') }</style>",
    "import": '<style>@import "https://cdn.example.com/a.css";</style>',
    "style attribute": '<p style="background: url(https://cdn.example.com/a.png)">x</p>',
    "inline script": "<script>fetch('https://cdn.example.com/a')</script>",
    "inline script, no scheme": "<script>import('//cdn.example.com/a')</script>",
    "handler": "<p onclick=\"fetch('https://cdn.example.com/a')\">x</p>",
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_the_gate_sees_requests_to_other_hosts(built: Path, broken: Callable, name: str) -> None:
    broken(CHAPTER, END, EXTERNAL[name] + END)
    assert any("requests" in f and "cdn.example.com" in f for f in gate(built, EXPECTED))


def test_the_gate_lets_plain_links_and_data_pass(built: Path, broken: Callable) -> None:
    links = (
        '<a href="https://arxiv.org/abs/2310.08744">x</a><img alt="x" src="data:image/png;base64,">'
        '<link rel="canonical" href="https://example.com/"><code>{record}`claims.1.1.value`</code>'
        '<script type="application/json">["https://example.com/"]</script>'
    )
    broken(CHAPTER, END, links + END)
    assert gate(built) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("replib.css", "@font-face { src: url(https://fonts.example.com/a.woff2) }"),
        ("more.js", 'load("https://cdn.example.com/a.js")'),
        ("more.js", "new WebSocket('wss://cdn.example.com')"),
    ],
)
def test_the_gate_reads_style_sheets_and_scripts(
    built: Path, broken: Callable, file: str, text: str
) -> None:
    broken(f"_build/html/_static/{file}", "", text)
    assert any(f"_static/{file} requests" in fault for fault in gate(built, EXPECTED))


def test_what_a_script_or_style_sheet_may_name() -> None:
    assert requests_in_css("/* https://a.org */ a { b: url(data:x) url(../a.png) }") == []
    assert requests_in_script("x = 'http://www.w3.org/2000/svg'") == []
    assert requests_in_script("// https://clipboardjs.com/", "clipboard.min.js") == []
    assert requests_in_script("// https://clipboardjs.com/", "other.js") == ["clipboardjs.com"]


def test_the_gate_misses_no_expected_run(built: Path) -> None:
    assert gate(built, [*EXPECTED, f"{PAPER}/model-c"])[0].startswith(
        "no finished run of fake-paper on model-c"
    )


def test_mathjax_is_vendored_with_its_licence(built: Path) -> None:
    assert 'src="../../_static/mathjax/tex-svg-full.js' in page(
        built, f"chapters/{EXPECTED[0]}.html"
    )
    assert "mathjax" not in page(built, "references.html").lower().replace("mathjax_ignore", "")
    assert "Apache License" in (ROOT / "book/_static/mathjax/LICENSE").read_text()


def requested_hosts(page: Path, scratch: Path) -> set[str]:
    """Hosts that a headless browser asks on behalf of the page, whether or not they answer."""
    scratch.mkdir()
    log = scratch / "net.json"
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}"),
        *("--virtual-time-budget=5000", "--dump-dom"),
    ]
    command = [CHROMIUM, *flags, page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    events = json.loads(log.read_text())["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    # "not an origin": the browser itself asks, not the page
    own = [
        params for params in asked if params.get("initiator", "not an origin") != "not an origin"
    ]
    return {urlsplit(params["url"]).netloc for params in own} - {""}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_asks_no_other_host_for_anything(built: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("index.html", f"chapters/{EXPECTED[0]}.html", "scorecard.html")):
        assert requested_hosts(built / "_build/html" / name, tmp_path / str(number)) == set()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_browser_test_sees_a_request(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<script>new Image().src = 'http:/' + '/cdn.example.com/a'</script>"
    )
    hosts = requested_hosts(tmp_path / "a.html", tmp_path / "profile")
    assert hosts == {"cdn.example.com"}
