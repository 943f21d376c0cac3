"""The book: from finished runs to a Jupyter Book source folder, and the parts that Sphinx needs.

`stage` copies the prose pages, turns every run's executed notebook into a page and writes the
table of contents. Sphinx loads this module as an extension for the role {record} and the directive
{scorecard}. Every number on a page comes from a record, so this module computes none.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import yaml

from bookkit import certified as certified_records
from bookkit.book import atlas, citations, crate, pdf, performance, reruns, run_statistics, trust
from bookkit.book import failed as failed_runs
from bookkit.book.contents import pages_in, table_of_contents
from bookkit.book.markup import as_myst, raw_html
from bookkit.book.pages import chapter_page, landing_page, model_switch
from bookkit.book.runs import (
    RECORDS,
    STALE,
    Run,
    by_paper,
    find_changes,
    find_runs,
    finished,
    first_run,
    named_in_prose,
    of_papers,
)
from bookkit.book.tables import duration, tally
from bookkit.course import classroom
from bookkit.project import list_chapters, words
from replib.claims.measure import Claims
from replib.errors import UsageError
from replib.files import read_yaml


def atlas_pages(part: Path, runs: Sequence[Run]) -> list[str]:
    """Write a page of heads for each model that has any; their names in the table of contents."""
    names = []
    for model in dict.fromkeys(run.model for run in runs if run.record["heads"]):
        records = [run.record for run in runs if run.model == model and run.record["heads"]]
        (part / "atlas").mkdir(exist_ok=True)
        (part / "atlas" / f"{model}.md").write_text(atlas.page(model, records), encoding="utf-8")
        (part / "atlas" / f"{model}.png").write_bytes(atlas.figure(records))
        names.append(f"atlas/{model}")
    return names


def stage(root: Path, runs: Path, out: Path, expected: Sequence[str] | None = None) -> list[Run]:
    """Write the Jupyter Book source folder `out` anew; returns the runs that it shows.

    `root` holds `_config.yml`, `_toc.yml`, `book/` and `notebooks/`. UsageError, and `out` as it
    was, when a run is missing, unfinished or cannot be shown.
    """
    certified = root / certified_records.FOLDER
    failed: list[failed_runs.FailedRun] = []
    if expected is None:
        failed = failed_runs.find_failed(runs)
        own = finished(runs)
        if not own and not failed:
            find_runs(runs, None)  # says that there is none
        more = [pair for pair in named_in_prose(root / "book") if pair not in own]
        expected = [*own, *(p for p in more if (certified / p / "record.json").is_file())]
    found = [
        replace(run, stale=find_changes(root, run))
        for run in (find_runs(runs, expected, certified) if expected else [])
    ]
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(
        root / "book",
        part,
        ignore=lambda folder, names: (
            {"_static", "chapters"} if Path(folder) == root / "book" else set()
        ),
    )
    shutil.copytree(root / "book" / "_static", part / "static")
    about = citations.about(root)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config |= {"title": about.title, "author": words(about.authors)}
    (part / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    stale = {run.key: list(run.stale) for run in found if run.stale}
    (part / RECORDS).mkdir(parents=True)
    (part / STALE).write_text(json.dumps(stale))
    lessons = classroom.write(root, part, found)
    toc = table_of_contents(
        yaml.safe_load((root / "_toc.yml").read_text()),
        found,
        atlas_pages(part, found),
        not_run := [paper for paper in list_chapters(root) if paper not in by_paper(found)],
        failed,
        lessons,
    )
    for paper in not_run:
        claims = Claims.load(root / "notebooks" / f"{paper}/claims.yaml")
        (part / "chapters" / paper).mkdir(parents=True, exist_ok=True)
        links = failed_runs.links([run for run in failed if run.paper == paper])
        label = f"({paper})=\n" if claims.is_method else ""
        what = "page" if claims.is_method else "chapter"
        cited = f"[arXiv:{claims.arxiv}](https://arxiv.org/abs/{claims.arxiv}). "
        said = f"No run of this {what} finished" if links else f"This {what} was not run"
        (part / "chapters" / paper / "index.md").write_text(
            f"{label}# {as_myst(claims.title)}\n\n{'' if claims.is_method else cited}"
            f"{said} for this book: `replib run {paper}`.\n\n{links}"
        )
    (part / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    for paper, members in by_paper(found).items():
        claims = Claims.load(root / "notebooks" / f"{paper}/claims.yaml")
        profiles_file = root / "notebooks" / f"{paper}/profiles.yaml"
        profiles = read_yaml(profiles_file.read_text(), str(profiles_file))
        folder = part / "chapters" / paper
        folder.mkdir(parents=True, exist_ok=True)
        stopped = [run for run in failed if run.paper == paper]
        alone = claims.is_method and len(members) + len(stopped) == 1
        for run in members:
            switch = "" if alone else model_switch(run.key, members, stopped)
            first = claims.is_method and run is first_run(members)
            page = chapter_page(root, run, switch, claims.model, profiles, first)
            (folder / f"{run.model}.ipynb").write_text(json.dumps(page, ensure_ascii=False))
            record = part / RECORDS / f"{run.key}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.folder / "record.json", record)
        if claims.is_method:
            continue
        prose = root / "book" / "chapters" / f"{paper}.md"
        text = prose.read_text() if prose.is_file() else ""
        page = landing_page(members, claims, text, stopped)
        page += raw_html(pdf.place(paper)) + citations.line(paper, "../../")
        (folder / "index.md").write_text(page)
    for run in failed:
        members = [other for other in found if other.paper == run.paper]
        switch = model_switch(run.key, members, [r for r in failed if r.paper == run.paper])
        claims = Claims.load(root / "notebooks" / f"{run.paper}/claims.yaml")
        page = failed_runs.page(run, claims.title, switch)
        path = part / "chapters" / f"{run.key}.ipynb"
        path.write_text(json.dumps(page, ensure_ascii=False))
    papers = {
        paper: Claims.load(root / "notebooks" / f"{paper}/claims.yaml")
        for paper in by_paper(of_papers(found))
    }
    started = [run.record["started"] for run in found]
    citations.write(root, part, papers, max(started, default=date.today().isoformat())[:4])
    if (part / performance.PAGE).is_file():
        performance.write(root, part)
    if (part / reruns.PAGE).is_file():
        reruns.write(root, part)
    if (part / trust.PAGE).is_file():
        trust.write(root, part)
    if (part / run_statistics.PAGE).is_file():
        run_statistics.write(part, found, tally, duration)
    for page in pages_in(toc):
        if not any((part / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")):
            raise UsageError(f"_toc.yml names {page}, which is not in book/")
    crate.write(root, part, RECORDS, pages_in(toc), failed)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return found
