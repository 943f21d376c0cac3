"""Pages that staging fills in: trust, runs, how to run again; and the front page's scorecard."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trust
from small_book import ROOT, code, notebook, words

from bookkit.book import reports
from bookkit.book.html import macro
from bookkit.book.runs import Run
from replib.errors import UsageError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one report, of the code as it is."""
    (tmp_path / "tests/long").mkdir(parents=True)
    (tmp_path / "tests/long/faults.py").write_text("script")
    monkeypatch.setattr(trust, "ROOT", tmp_path)
    rows = [["a cell <hangs>", 3, 0], ["a share", 0.12345, None]]
    columns, left_out = ["fault", "injected", "wrong"], ["disk full: needs root"]
    path = tmp_path / "results/trust/faults.json"
    trust.write_table(path, "Faults & ends.", columns, rows, 95, not_injected=left_out)
    return tmp_path


def test_a_report_becomes_a_table_that_says_when_it_is_old(root: Path) -> None:
    text = reports.trust_table(root, "faults")
    assert re.search(r"<p>Faults &amp; ends. Made on [\d-]{10} by <code>make faults</code>", text)
    assert ", in 2 minutes." in text and "Left out: disk full: needs root." in text
    assert '<th scope="row">a cell &lt;hangs&gt;</th><td>3</td><td>0</td>' in text
    assert "<td>0.123</td><td>–</td>" in text
    assert "changed since" not in text
    script, chapter = root / "tests/long/faults.py", root / "notebooks/p/p.ipynb"
    chapter.parent.mkdir(parents=True)
    chapter.write_text(notebook([words("text alone", "text")]))
    assert reports.trust_table(root, "faults") == text
    chapter.write_text(notebook([code("from replib.metrics import head_label\nhead_label", 1)]))
    assert "The library or the script has changed since." in reports.trust_table(root, "faults")
    chapter.unlink()
    script.write_text("another script")
    assert "The library or the script has changed since." in reports.trust_table(root, "faults")


def test_a_missing_or_broken_report_is_one_line(root: Path) -> None:
    with pytest.raises(UsageError, match=r"fuzz\.json is missing; make it with: make fuzz"):
        reports.trust_table(root, "fuzz")
    path = root / "results/trust/faults.json"
    report = json.loads(path.read_text())
    for broken in ({"what": "x"}, {"code": "0"}, report | {"seconds": None}):
        path.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match="is not the report of make faults"):
            reports.trust_table(root, "faults")
    with pytest.raises(UsageError, match=r"bench\.json is missing; make it with: make bench"):
        reports.read_benchmarks(root)
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "bench.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        reports.read_benchmarks(root)


def test_numbers_of_other_code_are_said_to_be_old(tmp_path: Path) -> None:
    assert reports.read_benchmarks(ROOT)["training"]["is_old"] is False
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    for name in ("bench", "training"):
        path = tmp_path / "benchmarks" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"code_sha256": "0" * 64}))
    old, ages = reports.read_benchmarks(tmp_path), ("age", "training-age")
    of_paths, of_training = (reports.bench_table(old, name) for name in ages)
    assert "The code of the interventions has changed" in of_paths and "`make bench`" in of_paths
    assert "The code of training has changed" in of_training and "bench-training`" in of_training
    new = {"is_old": False, "training": {"is_old": False}}
    assert [reports.bench_table(new, name) for name in ages] == ["", ""]


def test_a_name_that_is_not_in_the_report_stops_the_page() -> None:
    report = {"headlines": [{"gap": 0.5}]}
    for key in ("headlines.0.speed", "headlines.7.gap"):
        with pytest.raises(UsageError, match=f"no {key}"):
            reports.fill(f"<!-- bench {key} -->", ROOT, [], lambda: report)
    with pytest.raises(UsageError, match=r"no bench table 'everything'; there are .*peers"):
        reports.fill("<!-- bench-table everything -->", ROOT, [], lambda: report)
    of_others = "<!-- citations --> <!-- pdf book --> <!-- a note: 1 -->"
    assert reports.fill(of_others, ROOT, [], dict) == of_others


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


def test_pages_are_filled_from_what_is_checked_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reports, "trust_hash", lambda root, name: "")  # takes seconds
    names = ("trust", "performance", "rerun", "statistics")
    for name in names:
        shutil.copy(ROOT / "book" / f"{name}.md", tmp_path)
    reports.write(ROOT, tmp_path, [run()])
    filled = {name: (tmp_path / f"{name}.md").read_text() for name in names}
    assert [name for name, text in filled.items() if "<!--" in text] == []
    assert (tmp_path / reports.FIGURE).read_bytes().startswith(b"\x89PNG")
    assert "replib run ioi-circuit-reuse --model gpt2-medium --profile paper" in filled["rerun"]
    for name, column in (("faults", "wrong"), ("fuzz", "other")):
        report = json.loads((ROOT / "results" / "trust" / f"{name}.json").read_text())
        place = report["columns"].index(column)
        assert sum(row[place] for row in report["rows"]) == 0


TEXT = (ROOT / "README.md").read_text()


def test_every_link_leads_somewhere_and_every_command_is_known() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).is_file(), target
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.M))
    assert {"book", "test", "setup"} <= named <= targets


def test_the_scorecard_is_that_of_the_certified_records_between_its_marks(tmp_path: Path) -> None:
    assert TEXT.split(reports.START)[1].split(reports.END)[0] == reports.readme_table(ROOT)
    (tmp_path / "notebooks").mkdir()
    path, table = tmp_path / "README.md", reports.readme_table(tmp_path)
    path.write_text(f"before\n{reports.START}former\n{reports.END}after\n")
    reports.write_readme(tmp_path)
    assert path.read_text() == f"before\n{reports.START}{table}{reports.END}after\n"
    path.write_text("no marks\n")
    reports.write_readme(tmp_path)
    assert path.read_text() == "no marks\n"
