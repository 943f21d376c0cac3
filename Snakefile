# One job for every paper and method on every model, one at a time (or jobs=N), then the book.
# Called by `make book`.
#
#   snakemake --cores all [--config profile=smoke models="tiny planted-ioi" papers=ioi-circuit-reuse]
#
# A run is made again when its notebook, its claims, its parameters, a library module, the pinned
# packages, its stored trainings or the weights change; text and looks of the book only build the
# book again.

import json
import os
import re
import sys
from pathlib import Path

from bookkit import jobs
from replib.errors import UsageError
from bookkit.project import PACKAGE, list_chapters
from replib.files import find_root
from bookkit.run.chapter import find_chapter
from bookkit.run.plan import plan
from replib.models.sources import MADE_IN_MEMORY, SOURCES
from snakemake.exceptions import WorkflowError

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

ROOT = find_root()
# A model that was asked for may be refused by a chapter; one of the profile's may not. Not among the
# parameters, whose change would run everything again.
if config.get("models"):
    os.environ["REPLIB_REFUSAL"] = "yes"
PROFILE = config.get("profile", "laptop")
LOCK = jobs.lock(ROOT)
AT_ONCE = int(config.get("jobs", 1))  # each needs its own memory
BOOK_MODULES = (
    *("book.py", "book_gate.py", "browser.py", "citations.py", "classroom.py", "crate.py"),
    *("exercises.py", "failed_runs.py", "markup.py", "page_cells.py", "page_names.py"),
    *("page_policy.py", "pdf.py", "performance.py", "records.py", "reruns.py"),
    *("run_statistics.py", "trust.py"),
)


def find_controls(paper):
    """The planted and the random model, where a page of the book reads their records."""
    text = "".join(path.read_text() for path in sorted(Path("book").rglob("*.md")))
    return [name for name in MADE_IN_MEMORY if re.search(rf"\b{paper}/{name}\b", text)]


def find_jobs():
    """(paper, model's folder) -> the run, planned, for everything that the book is to show.

    Those are the models asked for, else the profile's, and the controls.
    """
    found = {}
    asked = str(config.get("models", "")).split()
    for paper in str(config.get("papers", "")).split() or list_chapters(ROOT):
        chapter = find_chapter(ROOT, paper)
        models = asked or chapter.profile(PROFILE).models
        for name in [*models, *find_controls(paper)]:
            if not asked and name in SOURCES and SOURCES[name].paths() is None:
                print(f"book: {name} is not installed; its page is left out", file=sys.stderr)
                continue
            try:
                run = plan(chapter, name, PROFILE, {}, out=Path("build/runs"))
            except jobs.NOT_YET as error:
                print(f"book: {paper} on {name} is left out: {error}", file=sys.stderr)
                continue
            found[paper, run.folder.name] = run
    return found


try:
    JOBS = find_jobs()
except UsageError as error:
    raise WorkflowError(str(error)) from None
PAIRS = [f"{paper}/{model}" for paper, model in JOBS]

jobs.drop_stale_stamps(
    (Path(f"build/stamps/{pair}.ok"), Path("build/runs", pair)) for pair in PAIRS
)


wildcard_constraints:
    paper="[^/]+",
    model="[^/]+",


# The stamps too: Snakemake does not make a missing file again that only an up-to-date one needs.
rule book:
    input:
        [f"build/stamps/{pair}.ok" for pair in PAIRS],
        "_build/html/index.html",


rule html:
    input:
        stamps=[f"build/stamps/{pair}.ok" for pair in PAIRS],
        pages=sorted(str(p) for p in Path("book").rglob("*") if p.is_file() and p.name[0] != "."),
        lessons=sorted(str(path) for path in Path("notebooks").glob("*.exercises.yaml")),
        config=["_config.yml", "_toc.yml", "CITATION.cff"],
        code=[str(PACKAGE / name) for name in BOOK_MODULES],
        bench=["benchmarks/bench.json"] if Path("book/performance.md").is_file() else [],
        trust=sorted(str(path) for path in Path("results/trust").glob("*.json")),
    output:
        "_build/html/index.html",
    params:
        pairs=PAIRS,
        lock=LOCK,
    shell:
        "python -m replib.book stage --runs build/runs --out build/book --stamps build/stamps"
        " --expect {params.pairs} && "
        "rm -rf _build && "
        "jupyter-book build build/book --path-output . -W -n --keep-going -q && "
        "python -m replib.book gate --html _build/html --runs build/runs --book build/book"
        " --stamps build/stamps --expect {params.pairs}"


# The runner replaces build/runs/<paper>/<model> as a whole and only at the end, so a run that fails
# leaves the earlier one. Snakemake deletes the outputs of a rule: they are stamps, kept elsewhere.
rule chapter:
    input:
        lambda wildcards: jobs.inputs(JOBS[wildcards.paper, wildcards.model]),
    output:
        touch("build/stamps/{paper}/{model}.ok"),
    params:
        model=lambda wildcards: JOBS[wildcards.paper, wildcards.model].model,
        profile=PROFILE,
        parameters=lambda wildcards: json.dumps(
            dict(JOBS[wildcards.paper, wildcards.model].parameters), sort_keys=True
        ),
        lock=LOCK,
        weights=lambda wildcards: jobs.weights(JOBS[wildcards.paper, wildcards.model].model),
    threads: max(1, workflow.cores // AT_ONCE)  # one run at a time takes every core
    shell:
        "REPLIB_THREADS={threads} replib run {wildcards.paper} --model {params.model:q} --profile {params.profile}"
        " --out build/runs ${{REPLIB_REFUSAL:+--refusal {output}}}"
