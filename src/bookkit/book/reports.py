"""Pages about the project itself: their prose holds marks, which staging replaces.

    <!-- bench KEY:FORMAT -->   a number of benchmarks/{bench,training,sweep}.json
    <!-- bench-table NAME -->   a table of them
    <!-- trust NAME -->         the table of results/trust/NAME.json
    <!-- runs --> <!-- totals -->   every run in the book; what they took together
    <!-- paper-profiles -->     how to run each chapter on the paper's own model

The scorecard in README.md stands between two marks that stay. Nothing on these pages is typed.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from bookkit.book.html import duration, macro, macros, png, raw_html
from bookkit.book.runs import Run
from bookkit.project import list_papers, stored_module
from bookkit.records import FOLDER, read_record
from bookkit.run import resources
from bookkit.run.chapter import Chapter, find_chapter
from replib.claims.measure import Claims
from replib.claims.rules import OUTCOMES
from replib.errors import UsageError
from replib.files import sha256_text, write_whole
from replib.hashes import code_hash, library_hash, notebook_hash
from replib.markup import as_html
from replib.models.sources import EMBEDDED, networks_of

# What `make bench` measures.
MEASURED = """
from replib.interventions.network import Network
from replib.interventions.path_patching import path_patch
Network, path_patch
"""
FIGURE = "performance-growth.png"
BENCHMARKS = {"bench": "bench", "training": "bench-training", "sweep": "bench-sweep"}
MARK = re.compile(r"<!-- ([a-z-]+)(?: ([\w.-]+)(?::(\S+))?)? -->")
START, END = "<!-- scorecard -->\n", "<!-- end of scorecard -->\n"


def write(root: Path, out: Path, runs: Sequence[Run]) -> None:
    """Fill in the marks on every page at the root of the staged book `out`, and draw the figure;
    UsageError if a report is missing or broken, or lacks what a page names."""
    report = cache(partial(read_benchmarks, root))
    for path in sorted(out.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(fill(text, root, runs, report), encoding="utf-8")
        if FIGURE in text:
            (out / FIGURE).write_bytes(growth(report()["growth"]))


def fill(
    text: str, root: Path, runs: Sequence[Run], report: Callable[[], Mapping[str, Any]]
) -> str:
    """The text with its marks replaced; a mark of no report stays. `report` reads benchmarks."""
    known = {
        "bench": lambda key, spec: bench_number(report(), key, spec or ""),
        "bench-table": lambda name, _: bench_table(report(), name),
        "trust": lambda name, _: trust_table(root, name),
        "runs": lambda *_: raw_html(macro("reports.html", "runs", runs)),
        "totals": lambda *_: totals(runs),
        "paper-profiles": lambda *_: paper_profiles(root),
    }

    def value(mark: re.Match[str]) -> str:
        return known[mark[1]](mark[2], mark[3]) if mark[1] in known else mark[0]

    return MARK.sub(value, text)


def read_benchmarks(root: Path) -> dict[str, Any]:
    """What `make bench` and its siblings wrote, and whether it is older than the code."""
    read = {}
    for name, target in BENCHMARKS.items():
        path = root / "benchmarks" / f"{name}.json"
        try:
            read[name] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path} is missing; make it with: make {target}") from None
        except ValueError as error:
            raise UsageError(f"{path} is not JSON: {error}") from None
    report = read.pop("bench") | read
    training = report["training"]
    report["is_old"] = report.get("code_sha256") != code_hash(MEASURED)
    code_sha256 = stored_module(training["chapter"]).code_sha256()
    training["is_old"] = training["code_sha256"] != code_sha256
    return report


def bench_number(report: Mapping[str, Any], key: str, spec: str) -> str:
    """One number; its key is a dotted path into the report."""
    value: Any = report
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, Sequence) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise UsageError(f"the bench report has no {key}") from None
    return as_html(format(value, spec))


def bench_table(report: Mapping[str, Any], name: str) -> str:
    known = [one.replace("_", "-") for one in macros("bench.md")]
    if name not in known:
        raise UsageError(f"no bench table {name!r}; there are {', '.join(known)}")
    return macro("bench.md", name.replace("-", "_"), report).strip()


def growth(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of time against prompts, both axes logarithmic, a line a model and prompt length."""
    from replib import figures  # seconds to import: only when a book is staged

    figures.style()
    x = sorted({float(row["prompts"]) for row in rows})
    series: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["prompts"]):
        name = f"{row['model']}, {row['positions']} tokens ({row['senders']} senders)"
        series.setdefault(name, []).append(row["seconds"])
    fig = figures.lines(x, series, "prompts", "seconds")
    fig.axes[0].set(xscale="log", yscale="log", xticks=x, xticklabels=[f"{n:.0f}" for n in x])
    fig.axes[0].minorticks_off()
    return png(fig, dpi=160)


def trust_table(root: Path, name: str) -> str:
    """What a long test wrote, with its date, its time and how to make it again, as MyST."""
    path = root / FOLDER / "trust" / f"{name}.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        is_old = report["code"] != trust_hash(root, name)
        return raw_html(macro("reports.html", "trust", name, report, is_old))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; make it with: make {name}") from None
    except (ValueError, KeyError, TypeError, UndefinedError):
        raise UsageError(f"{path} is not the report of make {name}; make it again") from None


def trust_hash(root: Path, name: str) -> str:
    """sha256 of what a table depends on: the script tests/long/NAME.py, and what of the library it
    or a notebook reaches."""
    script = (root / "tests/long" / f"{name}.py").read_text(encoding="utf-8")
    cells = [{"cell_type": "code", "source": script}]  # its hash is found as a notebook's
    alone = json.dumps({"cells": cells})
    for path in sorted(root.glob("notebooks/*/*.ipynb")):
        cells += json.loads(path.read_text(encoding="utf-8"))["cells"]
    return sha256_text(notebook_hash(alone) + library_hash(json.dumps({"cells": cells})))


def totals(runs: Sequence[Run]) -> str:
    """How many runs and claims, what they took together, and how many are verified."""
    if not runs:
        return "No run."
    claims = sum(len(run.record["claims"]) for run in runs)
    verified = sum(not run.stale for run in runs)
    time = duration(sum(run.record["wall_time_s"] for run in runs))
    memory = max(run.record["peak_memory_mb"] for run in runs)
    return (
        f"**Together:** {len(runs)} runs decide {claims} claims in {time}; the largest needs "
        f"{memory:.0f} MB. {verified} of the {len(runs)} were computed with the code as it is."
    )


def paper_profiles(root: Path) -> str:
    """The papers' own models: what each needs and the command, as MyST. Networks that a chapter
    trains itself are no matter of size."""
    papers = [paper for paper in list_papers(root) if not networks_of(paper)]
    chapters = [find_chapter(root, paper) for paper in papers]
    rows = [row for chapter in chapters for row in _paper_rows(chapter)]
    return raw_html(macro("reports.html", "paper_profiles", rows))


def _paper_rows(chapter: Chapter) -> Iterator[list[str]]:
    profile, published = chapter.profile("paper"), resources.PUBLISHED
    known = resources.certified_reference(chapter.root, chapter.paper)
    values = chapter.values("paper")
    dtype = "bfloat16" if values["dtype"] == "auto" else values["dtype"]
    for name in profile.models:
        size = memory = time = "?"
        # With a second model, both are loaded, one after the other: the larger decides.
        names = [name, values["against"]] if values.get("against") else [name]
        if all(one in published for one in names):
            largest = max((published[one] for one in names), key=lambda x: x.n_params)
            size = f"{published[name].n_params / 1e6:,.0f} million"
            needed = resources.needed(largest, dtype, True, known)
            memory = f"{resources.gigabytes(needed)} ({dtype})"
            if known:
                seconds = resources.expected_seconds(largest, known, profile.work, known.speed)
                time = resources.rough_duration(seconds)
        command = f"replib run {chapter.paper} --model {name} --profile paper --device cuda"
        yield [chapter.paper, name, size, memory, time, command]


def readme_table(root: Path) -> str:
    """How many claims of each paper have which outcome on the embedded models, or on networks that
    were trained for it, as Markdown."""
    head = [outcome.replace("_", " ") for outcome in OUTCOMES]
    lines = [f"| paper | model | {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(head)}"]
    for paper in list_papers(root):
        claims = Claims.load(root / "notebooks" / f"{paper}/claims.yaml")
        link = f"[{claims.title}](https://arxiv.org/abs/{claims.arxiv})"
        models = networks_of(paper)[:1] or EMBEDDED
        paths = [root / FOLDER / paper / model / "record.json" for model in models]
        for path in filter(Path.is_file, paths):
            outcomes = [claim["outcome"] for claim in read_record(path)["claims"]]
            counts = " | ".join(str(outcomes.count(outcome)) for outcome in OUTCOMES)
            lines.append(f"| {link} | {path.parent.name} | {counts} |")
            link = ""
    return "\n".join(lines) + "\n"


def write_readme(root: Path) -> None:
    """Put the scorecard between its marks in README.md, if the project has such a file."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if START in text and END in text:
        before, _, rest = text.partition(START)
        after = rest.partition(END)[2]
        write_whole(path, f"{before}{START}{readme_table(root)}{END}{after}".encode())
