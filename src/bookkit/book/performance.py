"""The book's page on performance, made from what `make bench` and its siblings wrote
(benchmarks/bench.json, training.json, sweep.json).

The page's prose holds `<!-- bench KEY:FORMAT -->` for one number (KEY is a dotted path into the
file) and `<!-- bench-table NAME -->` for a table. Nothing on it is typed.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from bookkit.project import stored_module
from replib.errors import UsageError
from replib.hashes import code_hash

# What `make bench` measures.
MEASURED = "from replib.interventions import Network, path_patch; Network, path_patch"
PAGE, FIGURE = "performance.md", "performance-growth.png"


def write(root: Path, out: Path) -> None:
    """Fill in the page in `out` from the reports in `root`/benchmarks, and draw its figure.

    Raises:
        UsageError: if a file is missing, is no bench report, or lacks what the page names.
    """
    report = _read(root, "bench.json", "make bench")
    report["training"] = _read(root, "training.json", "make bench-training")
    report["sweep"] = _read(root, "sweep.json", "make bench-sweep")
    same = report.get("code_sha256") == code_hash(MEASURED)
    (out / PAGE).write_text(fill((out / PAGE).read_text(encoding="utf-8"), report, same))
    (out / FIGURE).write_bytes(growth(report["growth"]))


def _read(root: Path, name: str, command: str) -> dict[str, Any]:
    path = root / "benchmarks" / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; make it with: {command}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None


def fill(text: str, report: Mapping[str, Any], same_code: bool = True) -> str:
    """`text` with its numbers and tables put in. UsageError for a name that is not there."""

    def number(match: re.Match) -> str:
        value: Any = report
        for part in match[1].split("."):
            try:
                value = value[int(part)] if isinstance(value, Sequence) else value[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UsageError(f"the bench report has no {match[1]}") from None
        return html.escape(format(value, match[2] or ""))

    def table(match: re.Match) -> str:
        if match[1] == "age":
            return (
                "" if same_code else _STALE.format(what="the interventions", command="make bench")
            )
        if match[1] not in TABLES:
            raise UsageError(f"no bench table {match[1]!r}; there are {', '.join(TABLES)}, age")
        return TABLES[match[1]](report)

    text = re.sub(r"<!-- bench ([\w.]+)(?::(\S+))? -->", number, text)
    return re.sub(r"<!-- bench-table (\S+) -->", table, text)


_STALE = """:::{{warning}}
The code of {what} has changed since these numbers were measured. `{command}` measures
them again.
:::"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _headline(case: Mapping[str, Any]) -> str:
    rows = [
        [
            row["contender"],
            f"{row['seconds']:.1f}",
            f"{row['times_faster_than_reference']:.1f}",
            f"{row['times_floor']:.2f}",
            f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else "",
            f"{row['difference']:.0e}" if "difference" in row else "",
        ]
        for row in case["rows"]
    ]
    head = ("", "seconds", "× as fast", "× floor", "peak memory, GB", "largest difference, logits")
    return _table(head, rows)


def _peers(report: Mapping[str, Any]) -> str:
    rows = [
        [
            row["sweep"],
            str(row["passes"]),
            f"{row['theirs']:.1f}",
            f"{row['ours']:.1f}",
            f"{row['theirs'] / row['ours']:.1f}",
            f"{row['difference']:.0e}",
        ]
        for row in report["peers"]["sweeps"]
    ]
    head = ("sweep", "heads", "TransformerLens, s", "replib, s", "ratio", "largest difference")
    return _table(head, rows)


def _screen(report: Mapping[str, Any]) -> str:
    rows = [[name, f"{rho:.2f}"] for name, rho in report["peers"]["screen"]["spearman"].items()]
    return _table(("exact effect", "rank correlation"), rows)


def _kinds(report: Mapping[str, Any]) -> str:
    rows = [
        [
            row["model"],
            row["what"],
            f"{row['interventions']} × {row['prompts']}",
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / row['floor']:.2f}",
        ]
        for row in report["kinds"]
    ]
    return _table(("model", "what", "interventions × prompts", "seconds", "× floor"), rows)


def _slopes(report: Mapping[str, Any]) -> str:
    rows = [
        [fit["model"], str(fit["heads"]), str(fit["positions"]), f"{fit['slope']:.2f}"]
        for fit in report["slopes"]
    ]
    return _table(("model", "heads", "tokens a prompt", "time grows as prompts to the"), rows)


def _training(report: Mapping[str, Any]) -> str:
    rows = [
        [
            row["architecture"],
            str(row["tokens"]),
            row["contender"],
            f"{row['steps_per_second']:.1f}",
            f"{row['ours_is_faster_by']:.1f}",
            f"{row['lowest']:.1f} to {row['highest']:.1f}",
        ]
        for row in report["training"]["rows"]
    ]
    head = ("", "tokens", "scan", "steps a second", "ours / it", "over rounds")
    return _table(head, rows)


def _training_age(report: Mapping[str, Any]) -> str:
    """The bench of training keeps the hash of what it timed, as the other one does."""
    stored = stored_module(report["training"]["chapter"])
    same = report["training"]["code_sha256"] == stored.code_sha256()
    return "" if same else _STALE.format(what="training", command="make bench-training")


TABLES = {
    "training-age": _training_age,
    "training": _training,
    "one-position": lambda report: _headline(report["headlines"][0]),
    "every-position": lambda report: _headline(report["headlines"][1]),
    "peers": _peers,
    "screen": _screen,
    "kinds": _kinds,
    "slopes": _slopes,
}


def growth(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of time against prompts, both axes logarithmic, a line a model and prompt length."""
    import matplotlib.pyplot as plt  # seconds to import: only when a book is staged

    from replib import figures

    figures.style()
    x = sorted({float(row["prompts"]) for row in rows})
    series: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["prompts"]):
        name = f"{row['model']}, {row['positions']} tokens ({row['senders']} senders)"
        series.setdefault(name, []).append(row["seconds"])
    fig = figures.lines(x, series, "prompts", "seconds")
    fig.axes[0].set(xscale="log", yscale="log", xticks=x, xticklabels=[f"{n:.0f}" for n in x])
    fig.axes[0].minorticks_off()
    out = BytesIO()
    fig.savefig(out, dpi=160)
    plt.close(fig)
    return out.getvalue()
