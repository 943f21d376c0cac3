"""The small book as it was built: what its pages show, what the gate says when one thing in it is
broken, and its Research Object Crate."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile
import pytest
import requests
from bs4 import BeautifulSoup
from rocrate_validator import services
from rocrate_validator.utils.http import HttpRequester
from small_book import EXPECTED, MODELS, PAPER, ROOT, gate
from sphinx.errors import ExtensionError

from bookkit.book import crate
from bookkit.book import gate as book_gate
from bookkit.book.sphinx_ext import record_role
from bookkit.records import seal
from replib.claims.file import MIME

CONTEXT = ROOT / "tests/ro-crate-1.1-context.json"
CURRENT, OLD = (f"chapters/{pair}.html" for pair in EXPECTED)
FAILED = f"chapters/{hostile.PAPER}/{hostile.MODEL}.failed.html"


def page(built: Path, name: str) -> str:
    return (built / "_build/html" / name).read_text()


def soup(built: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup(page(built, name), "html.parser")


def test_a_chapter_page_says_which_model_it_shows_and_counts_its_own_figures(built: Path) -> None:
    text = page(built, CURRENT)
    for shown in (
        "<h1>A Paper About Nothing (model-a)",
        '<a href="model-b.html">model-b</a>',
        "replib run fake-paper --model model-a --profile laptop -p n_prompts=30",
        "transfer (the paper used gpt2-medium)",
        "last verified: 2026-01-02",
    ):
        assert shown in text
    assert text.count('aria-current="page">model-a</a>') == 1
    for one in (text, page(built, OLD)):
        assert set(re.findall(r">Fig\. (\d+)", one)) == {"1"}
        assert set(re.findall(r">\((\d+)\)<", one)) == {"1"}


def test_the_scorecard_shows_every_claim_on_every_model(built: Path) -> None:
    text, parsed = page(built, "scorecard.html"), soup(built, "scorecard.html")
    for model, outcome in zip(MODELS, ("holds", "unclear"), strict=True):
        mark = f'class="outcome outcome-{outcome}" data-record="{PAPER}/{model}" data-claim="1.1"'
        assert text.count(f"{mark}>{outcome}</span>") == 3  # transfer, outcomes, evidence
    assert "The gain &lt;b&gt;is&lt;/b&gt; large &amp; real" in text and "random heads" in text
    assert ".failed" not in str(parsed.article)
    rows = parsed.select(".transfer-table tbody tr")
    gain, _, largest = (row.select("td") for row in rows[:3])
    assert gain[1]["title"] == gain[1].select_one(".number").get_text() == "0.3 [0.2, 0.4], n = 40"
    assert largest[1]["title"] == "too small"
    assert largest[1].select_one(".outcome").get_text() == "not testable"
    assert largest[1].select_one(".why").get_text() == "not measured"
    assert rows[3].select_one(".why").get_text() == "across models"
    assert not gain[1].select(".why")


def test_a_claim_across_models_is_decided_from_their_records(built: Path) -> None:
    """Model a lies above the bar; model b, whose page is stale, around it."""
    section = soup(built, "across.html").select_one(f'section[data-across="{PAPER}"]')
    assert section.select_one("h2").get_text().startswith("1.11: Most models <i>gain</i>")
    assert section.select_one(".outcome").get_text() == "unclear"
    shown = {mark["data-key"]: mark.get_text() for mark in section.select(".across-number")}
    assert shown == {"models": "2", "share_low": "0.0126", "share_high": "1"}
    rows = section.select("table")[1].select("tbody tr")
    assert [[cell.get_text(" ", strip=True) for cell in row.select("td")] for row in rows] == [
        ["model-a", "1,234", "0.3 [ 0.2 , 0.4 ]", "0.05", "above"],
        ["model-b", "1,234", "0.06 [ -0.04 , 0.16 ]", "0.05", "around"],
    ]
    assert "stale" in rows[1].th.get_text()
    hostile_one = soup(built, "across.html").select(".across")[1]
    assert "not testable" in hostile_one.select_one(".outcome").get_text()
    assert "Left out: " in hostile_one.get_text() and "has no gain" in hostile_one.get_text()


def test_a_stale_page_from_a_record_alone_says_so_and_shows_no_figure(built: Path) -> None:
    old = soup(built, OLD)
    note = old.select_one(".stale-note").get_text()
    assert "notebook and library changed" in note and f"--model {MODELS[1]}" in note
    for name in (CURRENT, "scorecard.html"):
        marks = soup(built, name).select(".stale")
        assert marks and all(MODELS[1] in str(mark.parent) for mark in marks)
    assert len(old.select("table.verdicts-table tbody tr")) == 4
    assert "was not kept" in old.select_one("figure img, .cell_output img")["alt"]


def test_a_wrong_key_record_or_format_is_an_error(built: Path) -> None:
    env = SimpleNamespace(docname="index", note_dependency=str)
    env.app = SimpleNamespace(env=env, srcdir=built / "build/book")
    inliner = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=env)))
    for text, message in {
        "fake-paper/model-a claims.1.1.vlaue": "index, line 7: .*vlaue",
        "fake-paper/model-c wall_time_s": "no record of fake-paper/model-c",
        "wall_time_s": "shows no single run",
        "fake-paper/model-a model.name:.1%": "format",
    }.items():
        with pytest.raises(ExtensionError, match=message):
            record_role("record", "", text, 7, inliner)


NO_POLICY = "does not carry the content security policy"
RECORD, NOTEBOOK = (
    f"build/runs/{EXPECTED[0]}/{name}" for name in ("record.json", "notebook.ipynb")
)
# What is put in the place of what, and a part of what the gate says then; "" is the page's end.
BREAKS = {
    "_build/html/index.html": [(None, "", "no book")],
    f"_build/html/{crate.FILE}": [
        (None, "", "is missing, or is no crate"),
        ('"scorecard.html",\n   "@type"', '"card.html",\n   "@type"', "names card.html"),
    ],
    f"_build/html/_static/records/{EXPECTED[0]}.json": [
        ("900.0", "901.0", f"from another _static/records/{EXPECTED[0]}.json")
    ],
    f"_build/html/_static/citations/{PAPER}.bib": [(None, "", f"{PAPER}.bib, which is not in the")],
    RECORD: [
        ("900.0", "901.0", "built from another run"),
        ('"value": 0.3', '"value": 0.4', "claim 1.1, measured"),
    ],
    NOTEBOOK: [
        ('"unclear"', '"fails"', "claim 1.2, outcome"),
        ('"display_data"', '"error", "ename": "E", "evalue": "no"', "cell 4 ended in E: no"),
        ("<Figure>", "DeadKernelError: died", "shows an error"),
        ('"execution_count": 3', '"execution_count": null', "cell 4 never ran"),
        ('"text/plain": "<Fig', '"application/vnd.jupyter.widget-view+json": "', "shows a widget"),
        (MIME, "application/json", "0 outputs of verdicts"),
        ('"kernelspec"', '"papermill": {"exception": true}, "kernelspec"', "run that failed"),
    ],
    f"_build/html/{CURRENT}": [
        (None, "", f"{CURRENT} is missing"),
        (">30.0%</span>, [", ">31.0%</span>, [", "shows '31.0%' for claims.1.1.value"),
        ('data-key="model.name"', 'data-key="model.nam"', "shows model.nam"),
        ('outcome-holds">holds', 'outcome-fails">fails', "claim 1.1 fails, the"),
        ('outcome-holds">', 'outcome-fails">', "claim 1.1 holds, the"),
        ("<td>0.3 [", "<td>0.7 [", "does not show 0.3 for claim 1.1"),
        ("<tr><td>1.2</td>", "<tr><td>1.1</td>", "no verdict on claim 1.2"),
        ('alt="A grey box for model-a"', 'alt=""', "without alternative text"),
        ('<a href="model-b.html"', '<a href="model-b.html#x"', "model-b.html#x, where"),
        ('src="../../_images/', 'src="../../_image/', "which is not in the book"),
        ('http-equiv="Content-Security-Policy"', 'name="policy"', NO_POLICY),
        ("script-src 'self'", "script-src 'self' 'unsafe-inline'", NO_POLICY),
        ("</head>", "<script>1</script></head>", NO_POLICY),
        ("", "<p>is {record}`claims.1.1.value`</p>", "unresolved role"),
        ("", "<p>{term}<code>null</code></p>", "unresolved role"),
        ("", '<p class="system-message">no</p>', "message of the build"),
        ("", '<p class="output traceback">no</p>', "output of an error"),
        ("", '<pre class="cell_output">nbclient.DeadKernelError</pre>', "shows DeadKernelError"),
        ("", '<p class="failed-note"></p>', "failed run that is not there"),
        ("", '<a href="../../../../_toc.yml">x</a>', "is not in the book"),
        ("", '<a href="/index.html">x</a>', "not relative to the page"),
        ("", '<script type="module">1</script>', "holds a script: 1"),
        ("", '<p onclick="a()">x</p>', "an event handler, onclick of p"),
        ("", '<a href=" JavaScript:a()">x</a>', "a script as href of a"),
        ("", '<link rel="preconnect" href="https://cdn.example.com">', "requests https://cdn"),
        ("", '<meta http-equiv="Refresh" content="0; url=//cdn">', "sends its reader away: 0; url"),
    ],
    f"_build/html/{OLD}": [
        ("stale-note", "no-note", "does not say whether"),
        (">not measured<", ">0.90<", "the record says 'not measured'"),
    ],
    "_build/html/scorecard.html": [
        ('1.1">unclear', '1.1">holds', "claim 1.1 holds, the record of fake-paper/model-b says"),
        ('data-format=".3g">0.06<', 'data-format=".3g">0.07<', "shows '0.07' for claims.1.1.value"),
        ('title="0.3 [0.2', 'title="0.4 [0.2', "the transfer table says '0.4"),
        ('class="why">not measured', 'class="why">gate', "says 'gate' of claim 1.10"),
    ],
    "_build/html/across.html": [
        (">unclear</span>", ">holds</span>", "says 'holds' of claim 1.11 across models, by the"),
        ('data-key="share_low">0.0126', 'data-key="share_low">0.1', "says '0.1' of claim 1.11"),
        ('data-claim="1.11"', 'data-claim="1.12"', "a claim across models that no record has"),
        ('data-format=".3g">0.3<', 'data-format=".3g">0.4<', "shows '0.4' for measurements.gain"),
        ('class="outcome ', 'class="', "across.html: lacks claim 1.11 of fake-paper"),
    ],
    f"_build/html/{FAILED}": [
        ('class="failed-note"', 'class="note"', "does not say that the run failed"),
        ("in cell [6], `fail()`</dd>", "</dd>", "does not say why"),
        ("<aside", '<p class="cell"></p><aside', "says that the run failed after"),
        ("", '<b class="outcome">holds</b>', "shows a result"),
    ],
}
CASES = [(file, *case) for file, cases in BREAKS.items() for case in cases]


@contextmanager
def broken(path: Path, old: str | None, new: str) -> Iterator[None]:
    """A file of the book with something in the place of another, or gone."""
    before = path.read_bytes()
    if old is None:
        path.unlink()
    else:
        text = before.decode()
        assert old in text, f"{old!r} is not in {path}"
        path.write_text(text.replace(old, new, 1))
    if old and path.name == "record.json":  # by somebody who also seals it again
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"seal": seal(record)}))
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(("file", "old", "new", "message"), CASES, ids=[one[3] for one in CASES])
def test_the_gate_sees(built: Path, monkeypatch, file: str, old, new: str, message: str) -> None:
    if old == "":
        old, new = "</article>", new + "</article>"
    if old is not None:  # the other pages are as they were
        page = file if file.endswith(".html") else f"_build/html/{CURRENT}"
        monkeypatch.setattr(book_gate, "pages_of", lambda html: [built / page])
    with broken(built / file, old, new):
        found = gate(built)
    assert any(message in fault for fault in found), found
    assert not any("\n" in fault for fault in found)


def test_the_gate_passes_the_book_with_plain_links_and_data(built: Path) -> None:
    links = (
        '<a href="https://arxiv.org/abs/2310.08744">x</a><img alt="x" src="data:image/png;base64,">'
        '<link rel="canonical" href="https://example.com/"><code>{record}`claims.1.1.value`</code>'
        '<script type="application/json">["https://example.com/"]</script></article>'
    )
    with broken(built / f"_build/html/{CURRENT}", "</article>", links):
        assert gate(built) == []
    missing = gate(built, [*EXPECTED, f"{PAPER}/model-c"])
    assert missing[0].startswith("no finished run of fake-paper on model-c")


def test_a_validator_accepts_the_crate(built: Path, monkeypatch, tmp_path: Path) -> None:
    """It asks the network for one file, which is at hand: the words of RO-Crate 1.1, in the public
    domain."""

    def get(self: HttpRequester, url: str, **options: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url = 404, url
        if url == crate.CONTEXT[0]:
            response.status_code, response._content = 200, CONTEXT.read_bytes()
            response.headers["Content-Type"] = "application/ld+json"
        return response

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    monkeypatch.setattr(HttpRequester, "head", get, raising=False)
    settings = services.ValidationSettings(
        rocrate_uri=str(built / "_build/html"),
        profile_identifier="process-run-crate",
        requirement_severity="REQUIRED",
        offline=True,
        cache_path=tmp_path / "cache",
    )
    result = services.validate(settings)
    assert [f"{issue.message} {issue.violatingEntity}" for issue in result.get_issues()] == []
    assert result.passed()


def test_every_run_is_there_with_what_went_in_and_what_came_out(built: Path) -> None:
    graph = json.loads(page(built, crate.FILE))["@graph"]
    found = {entity["@id"]: entity for entity in graph}
    assert len(graph) == len(found)
    run = found[f"#run/{EXPECTED[0]}"]
    record = json.loads((built / RECORD).read_text())
    assert run["startTime"] == "2026-01-02T03:04:05+00:00"
    assert run["endTime"] == "2026-01-02T03:05:20+00:00"  # 75.2 s later
    notebook = found[run["instrument"]["@id"]]
    assert notebook["version"] == record["hashes"]["notebook"]
    assert found[notebook["softwareRequirements"]["@id"]]["softwareVersion"] == "2.13.0"
    inputs = [found[thing["@id"]] for thing in run["object"]]
    assert [thing.get("sha256") for thing in inputs] == [record["hashes"]["claims"], None]
    results = [found[thing["@id"]] for thing in run["result"]]
    assert [thing["encodingFormat"] for thing in results] == ["application/json", "text/html"]
    assert {"@id": run["@id"]} in found["./"]["mentions"]
    assert found["./"]["datePublished"] == "2026-01-02"
    assert {"@id": "https://arxiv.org/abs/2001.00001"} in found["./"]["citation"]
    failed = found[f"#run/{crate.quote(f'{hostile.PAPER}/{hostile.MODEL}.failed')}"]
    assert failed["actionStatus"] == crate.FAILED
    assert failed["error"].endswith("in cell [6], `fail()`")
    assert failed["result"]["@id"].endswith(".failed.html")


def test_weights_and_files_carry_their_hash() -> None:
    record = {"paper": "p", "model": {"name": "m"}}
    record["hashes"] = {"claims": "c", "weights": "0" * 64, "inputs": {"facts_file": "1" * 64}}
    graph = crate.Graph()
    ids = [reference["@id"] for reference in crate._inputs(graph, record)]
    assert ids == ["#claims/c", f"#weights/{'0' * 64}", f"#input/{'1' * 64}"]
    assert [graph.entities[id]["sha256"] for id in ids] == ["c", "0" * 64, "1" * 64]
