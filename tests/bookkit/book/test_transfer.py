"""The transfer table and its filter, stale pages, pages from records alone, pages of heads."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import small_book as small
from bs4 import BeautifulSoup
from small_book import CHROMIUM, MODELS, PAPER

from bookkit.book.runs import find_runs
from bookkit.book.tables import transfer
from bookkit.records import read_record, write_record
from replib.claims.file import MIME


def edit_record(root, model, change):
    path = root / "build/runs" / PAPER / model / "record.json"
    record = read_record(path)
    change(record)
    write_record(path, record)


def soup(root: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((root / "_build/html" / name).read_text(), "html.parser")


def heads(record):
    record["model"] |= {"n_layers": 3, "n_heads": 4}
    record["heads"] = {
        "mover": {"heads": [[0, 1], [2, 3]], "rule": "writes the name"},
        "copy": {"heads": [[2, 3]], "rule": "writes what it reads"},
    }


def older(record):
    """As if the notebook had been another, and its text had not yet asked for a number."""
    record["hashes"] |= {"notebook": "1" * 64, "library": "2" * 64}
    claim = next(claim for claim in record["claims"] if claim["id"] == "1.1")
    claim["measured"].pop("accuracy")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """model-a is current, with heads; model-b is stale and came without its notebook."""
    root = tmp_path_factory.mktemp("transfer")
    small.make_project(root)
    notebook = root / "notebooks" / f"{PAPER}/{PAPER}.ipynb"
    more = "Accuracy {record}`claims.1.1.accuracy:.2f`.\\n\\n## Verdicts"
    notebook.write_text(notebook.read_text().replace("## Verdicts", more))
    same = small.notebook_hash(notebook.read_text())
    edit_record(root, MODELS[0], lambda r: (heads(r), r["hashes"].update(notebook=same)))
    executed = root / "build/runs" / PAPER / MODELS[0] / "notebook.ipynb"
    content = json.loads(executed.read_text().replace("## Verdicts", more))
    heads(content["cells"][-1]["outputs"][0]["data"][MIME])
    executed.write_text(json.dumps(content))
    edit_record(root, MODELS[1], older)
    (root / "build/runs" / PAPER / MODELS[1] / "notebook.ipynb").unlink()
    runs = small.stage(root)
    assert [bool(run.stale) for run in runs] == [False, True]
    result = small.build(root)
    assert result.returncode == 0, result.stdout + result.stderr
    return root


def test_the_gate_finds_nothing_wrong(built):
    assert small.gate(built) == []


def test_a_stale_page_says_what_changed_and_how_to_compute_it_again(built):
    page = soup(built, f"chapters/{PAPER}/{MODELS[1]}.html")
    note = page.select_one(".stale-note").get_text()
    assert "notebook and library changed" in note and f"--model {MODELS[1]}" in note
    assert not soup(built, f"chapters/{PAPER}/{MODELS[0]}.html").select(".stale-note")
    for name in (f"chapters/{PAPER}/{MODELS[0]}.html", "scorecard.html"):
        marks = soup(built, name).select(".stale")
        assert marks and all(
            MODELS[1] in (mark.parent.get_text() + str(mark.parent)) for mark in marks
        )


def test_a_page_from_a_record_alone_shows_its_numbers_and_no_figure(built):
    page = soup(built, f"chapters/{PAPER}/{MODELS[1]}.html")
    assert page.select_one('span.record[data-key="claims.1.1.value"]').get_text() == "6.0%"
    missing = page.select_one('span.record[data-key="claims.1.1.accuracy"]')
    assert missing.get_text() == "not measured"  # the older record has no such number
    assert len(page.select("table.verdicts-table tbody tr")) == 3
    assert "was not kept" in page.select_one("figure img, .cell_output img")["alt"]


def test_a_cell_of_the_transfer_table_has_its_number_and_interval(built):
    table = soup(built, "scorecard.html").select_one(".transfer-table")
    row = next(r for r in table.select("tbody tr") if r.th.get_text() == "1.1")
    first, second = row.select("td")[1:]
    assert first["title"] == "0.3 [0.2, 0.4], n = 40"
    assert first.select_one(".number").get_text() == first["title"]
    assert second.select_one(".stale") and not first.select_one(".stale")
    untested = next(r for r in table.select("tbody tr") if r.th.get_text() == "1.10")
    assert untested.select("td")[1]["title"] == "too small"


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("scorecard.html", 'title="0.3 [0.2', 'title="0.4 [0.2', "the transfer table says '0.4"),
        (f"chapters/{PAPER}/{MODELS[1]}.html", "stale-note", "no-note", "does not say whether"),
        (
            f"chapters/{PAPER}/{MODELS[1]}.html",
            ">not measured<",
            ">0.90<",
            "the record says 'not measured'",
        ),
    ],
)
def test_the_gate_sees_what_was_altered(built, name, old, new, fault):
    path = built / "_build/html" / name
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        assert any(fault in found for found in small.gate(built)), small.gate(built)
    finally:
        path.write_text(before)


def test_a_replication_stands_apart(built, tmp_path):
    root = tmp_path / "project"
    small.make_project(root)

    def own(record):
        for claim in record["claims"]:
            claim["scope"] = "replication"

    edit_record(root, MODELS[0], own)
    text = transfer(find_runs(root / "build/runs", None))
    replications, transfers = text.split("<h3>Transfer")
    assert MODELS[0] in replications and MODELS[1] not in replications
    assert MODELS[1] in transfers and MODELS[0] not in transfers


def test_the_atlas_has_a_page_for_each_model_with_heads(built):
    page = soup(built, f"atlas/{MODELS[0]}.html")
    text = page.get_text()
    assert "L0H1, L2H3" in text and "writes what it reads" in text
    assert "L0H1, L2H3" in page.select_one("img[alt^='Grid of 3 layers']")["alt"]
    assert not (built / f"_build/html/atlas/{MODELS[1]}.html").exists()
    assert MODELS[0] in soup(built, "atlas/index.html").select_one("nav").get_text()


FILTER = """<script>
addEventListener("load", () => {
  const form = document.querySelector(".transfer-filter");
  const rows = [...document.querySelectorAll(".transfer-table tbody tr")];
  const shown = () => rows.filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  const set = (name, value) => {
    const field = form.elements[name];
    if (field.type === "checkbox") field.checked = value; else field.value = value;
    form.dispatchEvent(new Event("change"));
  };
  const number = document.querySelector(".transfer-table .number");
  const seen = { hidden: form.hidden, all: shown(), plain: getComputedStyle(number).display };
  set("outcome", "holds"); seen.holds = shown();
  set("outcome", ""); set("differ", true); seen.differ = shown();
  seen.count = form.querySelector(".transfer-count").textContent;
  set("differ", false); set("paper", "PAPER"); seen.paper = shown();
  set("numbers", true); seen.number = getComputedStyle(number).display;
  document.title = JSON.stringify(seen);
  document.documentElement.setAttribute("data-seen", JSON.stringify(seen));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_filter_works_in_a_browser(built, tmp_path):
    path = built / "_build/html/scorecard.html"
    probe = path.with_name("probe.html")
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    probe.write_text(page + FILTER.replace("PAPER", PAPER))
    try:
        out = subprocess.run(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", probe.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    finally:
        probe.unlink()
    seen = json.loads(BeautifulSoup(out, "html.parser").html["data-seen"])
    assert seen["hidden"] is False and seen["all"] == ["1.1", "1.2", "1.10"] == seen["paper"]
    assert seen["holds"] == ["1.1"] and seen["differ"] == ["1.1"]
    assert seen["count"] == "1 of 3 claims"
    assert (seen["plain"], seen["number"]) == ("none", "block")
