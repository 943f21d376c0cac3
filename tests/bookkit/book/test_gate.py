"""The gate: each test breaks one thing in the small book, and sees the gate say so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_book import CHAPTER, EXPECTED, PAPER, ROOT, gate
from test_built import page

from replib.claims.file import MIME

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


LEAVING = {
    "preconnect": '<link rel="preconnect" href="https://cdn.example.com">',
    "no scheme": '<link rel="dns-prefetch" href="//cdn.example.com">',
    "refresh": '<meta http-equiv="Refresh" content="0; url=https://cdn.example.com/">',
}


@pytest.mark.parametrize("name", LEAVING)
def test_the_gate_sees_what_no_policy_stops(built: Path, broken: Callable, name: str) -> None:
    broken(CHAPTER, END, LEAVING[name] + END)
    assert any("cdn.example.com" in fault for fault in gate(built, EXPECTED))


def test_the_gate_lets_plain_links_and_data_pass(built: Path, broken: Callable) -> None:
    links = (
        '<a href="https://arxiv.org/abs/2310.08744">x</a><img alt="x" src="data:image/png;base64,">'
        '<link rel="canonical" href="https://example.com/"><code>{record}`claims.1.1.value`</code>'
        '<script type="application/json">["https://example.com/"]</script>'
    )
    broken(CHAPTER, END, links + END)
    assert gate(built) == []


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
