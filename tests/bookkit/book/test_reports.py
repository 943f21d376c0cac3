"""Pages that staging fills in: trust, runs, how to run again; and the front page's scorecard."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import trust as tables
from small_book import ROOT

from bookkit.book import reports
from bookkit.book.html import macro
from bookkit.book.runs import Run
from replib import hashes
from replib.errors import UsageError

REPORT = {
    "what": "Faults & ends.",
    "columns": ["fault", "injected", "wrong"],
    "rows": [["a cell <hangs>", 3, 0], ["a share", 0.12345, None]],
    "not_injected": ["disk full: needs root"],
    "seconds": 95,
    "date": "2026-01-02",
}


def write(root: Path, report: dict) -> None:
    path = root / "results" / "trust" / "faults.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with one report, of the code as it is."""
    (tmp_path / "tests/long").mkdir(parents=True)
    (tmp_path / "tests/long/faults.py").write_text("script")
    write(tmp_path, REPORT | {"code": reports.trust_hash(tmp_path, "faults")})
    return tmp_path


# --- trust ----------------------------------------------------------------------------------------


def test_a_report_becomes_a_table_that_says_when_it_is_old(root: Path) -> None:
    text = reports.trust_table(root, "faults")
    made = "Made on 2026-01-02 by <code>make faults</code>, in 2 minutes."
    assert f"<p>Faults &amp; ends. {made}" in text
    assert "Left out: disk full: needs root." in text
    assert '<th scope="row">a cell &lt;hangs&gt;</th><td>3</td><td>0</td>' in text
    assert "<td>0.123</td><td>–</td>" in text
    assert "changed since" not in text
    (root / "tests/long/faults.py").write_text("another script")
    assert "The library or the script has changed since." in reports.trust_table(root, "faults")


def test_the_long_forms_write_what_the_page_reads(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROOT", root)
    tables.write_table(root / "results/trust/faults.json", "Said.", ["x", "y"], [["one", 2]], 3.0)
    text = reports.trust_table(root, "faults")
    assert "Said. Made on " in text and '<th scope="row">one</th><td>2</td>' in text
    assert "changed since" not in text


def test_what_a_table_depends_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = root / "src" / "lib"
    library.mkdir(parents=True)
    (library / "one.py").write_text("X = 1\nY = 1\n")
    monkeypatch.setattr(hashes, "SRC", root / "src")
    cells = [nbformat.v4.new_code_cell("from lib.one import X\nX"), nbformat.v4.new_markdown_cell()]
    path = root / "notebooks/paper/paper.ipynb"
    path.parent.mkdir(parents=True)

    def now() -> str:
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return reports.trust_hash(root, "faults")

    before = now()
    cells[1].source = "another text"
    (library / "one.py").write_text("X = 1\nY = 22\n")
    assert now() == before
    (library / "one.py").write_text("X = 22\nY = 22\n")
    assert now() != before


def test_a_missing_or_broken_report_of_trust_is_one_line(root: Path) -> None:
    with pytest.raises(UsageError, match=r"fuzz\.json is missing; make it with: make fuzz"):
        reports.trust_table(root, "fuzz")
    for broken in ({"what": "x"}, {"code": "0"}, REPORT | {"code": "0", "seconds": None}):
        write(root, broken)
        with pytest.raises(UsageError, match="is not the report of make faults"):
            reports.trust_table(root, "faults")


# --- every page -----------------------------------------------------------------------------------


def run(**record: object) -> Run:
    given = {"profile": "laptop", "wall_time_s": 75.2, "peak_memory_mb": 900.4, "device": "cpu"}
    given |= {"threads": 2, "started": "2026-01-02T03:04:05Z", "claims": [{"outcome": "holds"}]}
    return Run("p", "m", given | record, "", Path())


def test_the_statistics_are_those_of_the_records() -> None:
    old = replace(run(wall_time_s=10.0), stale=("the library", "the notebook"))
    table = macro("reports.html", "runs", [run()])
    for shown in ("1 min 15 s", "900 MB", "cpu, threads: 2", "2026-01-02 03:04:05 UTC", "1 holds"):
        assert f"<td>{shown}</td>" in table
    assert "<td>2026-01-02</td>" in table
    assert "not since the library and the notebook changed" in macro("reports.html", "runs", [old])
    line = reports.totals([run(), old])
    assert "2 runs decide 2 claims in 1 min 25 s" in line and "1 of the 2" in line


def test_the_pages_of_the_repository_are_filled_from_what_is_checked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "trust_hash", lambda root, name: "")  # takes seconds
    names = ("trust", "performance", "rerun", "statistics")
    for name in names:
        text = (ROOT / "book" / f"{name}.md").read_text()
        (tmp_path / f"{name}.md").write_text(text)
    reports.write(ROOT, tmp_path, [run()])
    filled = {name: (tmp_path / f"{name}.md").read_text() for name in names}
    assert [name for name, text in filled.items() if "<!--" in text] == []
    assert (tmp_path / reports.FIGURE).read_bytes().startswith(b"\x89PNG")
    assert "replib run ioi-circuit-reuse --model gpt2-medium --profile paper" in filled["rerun"]
    marks = re.findall(r"<!-- trust (\w+) -->", (ROOT / "book/trust.md").read_text())
    assert marks == ["faults", "fuzz", "determinism", "calibration"]
    for name, column in (("faults", "wrong"), ("fuzz", "other")):
        report = json.loads((ROOT / "results" / "trust" / f"{name}.json").read_text())
        place = report["columns"].index(column)
        assert sum(row[place] for row in report["rows"]) == 0


def test_marks_of_others_stay(root: Path) -> None:
    def none() -> dict:
        raise AssertionError("no number is asked for")

    text = "<!-- citations --> <!-- pdf book --> <!-- a note: 1 -->"
    assert reports.fill(text, root, [], none) == text


# --- the front page -------------------------------------------------------------------------------

TEXT = (ROOT / "README.md").read_text()


def test_the_scorecard_is_that_of_the_certified_records() -> None:
    shown = TEXT.split(reports.START)[1].split(reports.END)[0]
    assert shown == reports.readme_table(ROOT)
    assert shown.count("smollm2-135m") == 5


def test_every_link_leads_somewhere_and_every_command_is_known() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).is_file(), target
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.M))
    assert {"book", "test", "setup"} <= named <= targets


def test_it_is_written_between_its_marks(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "README.md"
    path.write_text(f"before\n{reports.START}former\n{reports.END}after\n")
    reports.write_readme(tmp_path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "former" not in text
    path.write_text("no marks\n")
    reports.write_readme(tmp_path)
    assert path.read_text() == "no marks\n"


# --- the templates --------------------------------------------------------------------------------
