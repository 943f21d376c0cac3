"""The page on trust shows what the long tests wrote, and says when it is older than the code."""

import json
import re

import nbformat
import pytest
import trust as tables

from bookkit.book import trust
from replib import hashes
from replib.errors import UsageError
from replib.files import find_root

ROOT = find_root()
REPORT = {
    "what": "Faults & ends.",
    "columns": ["fault", "injected", "wrong"],
    "rows": [["a cell <hangs>", 3, 0], ["a share", 0.12345, None]],
    "not_injected": ["disk full: needs root"],
    "seconds": 95,
    "date": "2026-01-02",
}


@pytest.fixture
def root(tmp_path):
    """A project with one report, of the code as it is."""
    (tmp_path / "tests/long").mkdir(parents=True)
    (tmp_path / "tests/long" / "faults.py").write_text("script")
    write(tmp_path, REPORT | {"code": trust.code_hash(tmp_path, "faults")})
    return tmp_path


def write(root, report):
    path = root / "results" / "trust" / "faults.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))


def test_a_report_becomes_a_table(root):
    text = trust.table(root, "faults")
    assert (
        "Faults &amp; ends. Made on 2026-01-02 by <code>make faults</code>, in 2 minutes." in text
    )
    assert "Left out: disk full: needs root." in text
    assert '<th scope="row">a cell &lt;hangs&gt;</th><td>3</td><td>0</td>' in text
    assert "<td>0.123</td><td>–</td>" in text
    assert "changed since" not in text


def test_an_older_report_says_so(root):
    (root / "tests/long" / "faults.py").write_text("another script")
    assert "The library or the script has changed since." in trust.table(root, "faults")


def test_the_long_forms_write_what_the_page_reads(root, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", root)
    tables.write_table(root / "tests/long" / "faults.py", "Said.", ["x", "y"], [["one", 2]], 3.0)
    text = trust.table(root, "faults")
    assert "Said. Made on " in text and '<th scope="row">one</th><td>2</td>' in text
    assert "changed since" not in text


def test_what_a_table_depends_on(root, monkeypatch):
    library = root / "src" / "lib"
    library.mkdir(parents=True)
    (library / "one.py").write_text("X = 1\nY = 1\n")
    monkeypatch.setattr(hashes, "SRC", root / "src")
    cells = [nbformat.v4.new_code_cell("from lib.one import X\nX"), nbformat.v4.new_markdown_cell()]
    (root / "notebooks").mkdir()

    def now():
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "paper/paper.ipynb"
        )
        return trust.code_hash(root, "faults")

    before = now()
    cells[1].source = "another text"
    (library / "one.py").write_text("X = 1\nY = 22\n")
    assert now() == before
    (library / "one.py").write_text("X = 22\nY = 22\n")
    assert now() != before


def test_a_missing_or_broken_report_is_one_line(root):
    with pytest.raises(UsageError, match=r"fuzz\.json is missing; make it with: make fuzz"):
        trust.table(root, "fuzz")
    write(root, {"what": "x"})
    with pytest.raises(UsageError, match="is not the report of make faults"):
        trust.table(root, "faults")


def test_every_table_of_the_page_is_there_and_nothing_is_wrong_in_it(tmp_path):
    page = (ROOT / "book" / trust.PAGE).read_text()
    names = re.findall(r"<!-- trust (\w+) -->", page)
    assert names == ["faults", "fuzz", "determinism", "calibration"]
    (tmp_path / trust.PAGE).write_text(page)
    trust.write(ROOT, tmp_path)
    assert "<!-- trust" not in (tmp_path / trust.PAGE).read_text()
    for name, column in (("faults", "wrong"), ("fuzz", "other")):
        report = json.loads((ROOT / "results" / "trust" / f"{name}.json").read_text())
        place = report["columns"].index(column)
        assert sum(row[place] for row in report["rows"]) == 0
