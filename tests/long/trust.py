"""What the long forms share: their runs, and their tables, as files that a page is made from."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bookkit.book.reports import trust_hash

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests"  # a project of its own, with the paper `toy`
TRUST = ROOT / "results" / "trust"
sys.path.append(str(HERE))  # pytest has it there; a script has its own folder only
# Runs are of this checkout, even where another one is installed.
PYTHONPATH = os.pathsep.join(filter(None, [f"{ROOT}/src", os.environ.get("PYTHONPATH")]))


def write_table(
    path: Path,
    what: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    seconds: float,
    **more: Any,
) -> None:
    """Write a table of the script that `path` is named after; `code` says later whether it is of
    the code as it is."""
    table = {"what": what, "columns": list(columns), "rows": [list(row) for row in rows], **more}
    table |= {"seconds": round(seconds), "date": date.today().isoformat()}
    table["code"] = trust_hash(ROOT, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table as text, a line a row."""
    cells = [list(map(str, row)) for row in [columns, *rows]]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(n) for cell, n in zip(row, width, strict=True)).rstrip()
        for row in cells
    )


def run_chapter(
    paper: str,
    model: str,
    settings: Mapping[str, Any],
    out: Path,
    *more: str,
    start: Sequence[str] = ("-m", "bookkit.cli"),
    cwd: Path = ROOT,
    threads: int = 1,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """One run on the CPU through the command line, in the profile `smoke` with these parameters."""
    words = [sys.executable, *start, "run", paper, "--model", model, "--profile", "smoke"]
    words += ["--device", "cpu", "--out", str(out), *more]
    for name, value in settings.items():
        words += ["-p", f"{name}={value}"]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "REPLIB_THREADS": str(threads)}
    environment |= variables
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
