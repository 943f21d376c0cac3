"""Staging: from finished runs to the folder that Jupyter Book builds, `build/book`.

`stage` copies the prose pages, turns every run's executed notebook into a page and writes the
table of contents. Every number on a page comes from a record, so nothing is computed here.
"""

import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from bookkit.book import atlas, citations, contents, crate, failed, pdf, reports
from bookkit.book.failed import FailedRun
from bookkit.book.html import macro, raw_html
from bookkit.book.pages import chapter_page, landing_page, model_switch
from bookkit.book.runs import RECORDS, STALE, Run, by_paper, find_shown, first_run
from bookkit.course import classroom
from bookkit.project import list_chapters, words
from bookkit.run.chapter import Chapter, find_chapter
from replib.errors import UsageError

# A paper or a page of the method, with its runs and those that failed; it may have none.
ChapterRuns = tuple[Chapter, list[Run], list[FailedRun]]


def stage(root: Path, runs: Path, out: Path, expected: Sequence[str] | None = None) -> list[Run]:
    """Write the Jupyter Book source folder `out` anew; returns the runs that it shows.

    `root` holds `_config.yml`, `_toc.yml`, `book/` and `notebooks/`. UsageError, and `out` as it
    was, when a run is missing, unfinished or cannot be shown.
    """
    stopped = failed.find_failed(runs) if expected is None else []
    shown = find_shown(root, runs, expected, may_be_none=bool(stopped))
    chapters = find_chapters(root, shown, stopped)
    part = out.with_name(out.name + ".part")
    copy_prose(root, part)
    keep_records(part, shown)
    for chapter in chapters:
        write_chapter(part, *chapter)
    lessons = classroom.write(root, part, shown)
    pages = write_contents(root, part, chapters, lessons, atlas_pages(part, shown))
    reports.write(root, part, shown)
    started = max((run.record["started"] for run in shown), default=date.today().isoformat())
    papers = {one.paper: one.claims for one, of, _ in chapters if of and not one.claims.is_method}
    citations.write(root, part, papers, started[:4])
    for page in pages:
        if not any((part / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")):
            raise UsageError(f"_toc.yml names {page}, which is not in book/")
    contents.unlink(part, pages)
    crate.write(root, part, pages, stopped)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return shown


def find_chapters(root: Path, runs: list[Run], stopped: list[FailedRun]) -> list[ChapterRuns]:
    """Those that were run, in the order of the runs, then the others."""
    papers = by_paper(runs)
    found = []
    for name in dict.fromkeys([*papers, *(run.paper for run in stopped), *list_chapters(root)]):
        mine = [run for run in stopped if run.paper == name]
        found.append((find_chapter(root, name), papers.get(name, []), mine))
    return found


def copy_prose(root: Path, part: Path) -> None:
    """The pages of `book/` but the chapters' prose, the static files, and the configuration with
    the title and the authors of CITATION.cff."""
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(root / "book", part, ignore=shutil.ignore_patterns("chapters"))
    (part / "_static").rename(part / "static")
    about = citations.about(root)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config |= {"title": about.title, "author": words(about.authors)}
    (part / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def keep_records(part: Path, runs: Sequence[Run]) -> None:
    """The records, and which of them are stale: for {record}, the scorecard and the reader."""
    (part / RECORDS).mkdir(parents=True)
    for run in runs:
        (part / RECORDS / run.paper).mkdir(exist_ok=True)
        shutil.copy(run.folder / "record.json", part / RECORDS / f"{run.key}.json")
    stale = {run.key: list(run.stale) for run in runs if run.stale}
    (part / STALE).write_text(json.dumps(stale))


def write_chapter(part: Path, chapter: Chapter, runs: list[Run], stopped: list[FailedRun]) -> None:
    """A page for each run of a chapter, and its first page."""
    folder = part / "chapters" / chapter.paper
    folder.mkdir(parents=True, exist_ok=True)
    claims = chapter.claims
    is_alone = claims.is_method and len(runs) + len(stopped) < 2
    for run in runs:
        first = claims.is_method and run is first_run(runs)
        switch = "" if is_alone else model_switch(run.key, runs, stopped)
        chosen = chapter.values(run.record["profile"])
        page = chapter_page(chapter.root, run, switch, claims.model, chosen, first)
        (folder / f"{run.model}.ipynb").write_text(json.dumps(page, ensure_ascii=False))
    for run in stopped:
        page = failed.page(run, claims.title, model_switch(run.key, runs, stopped))
        (folder / f"{run.page}.md").write_text(page, encoding="utf-8")
    if not runs:
        # So that links to it lead somewhere.
        page = macro("chapter.html", "not_run", chapter.paper, claims, stopped)
        (folder / "index.md").write_text(page)
    elif not claims.is_method:
        prose = chapter.root / "book" / "chapters" / f"{chapter.paper}.md"
        text = prose.read_text() if prose.is_file() else ""
        page = landing_page(runs, claims, text, stopped)
        page += raw_html(pdf.place(chapter.paper)) + citations.line(chapter.paper, "../../")
        (folder / "index.md").write_text(page)


def atlas_pages(part: Path, runs: Sequence[Run]) -> list[dict[str, str]]:
    """Write a page of heads for each model that has any; their entries in the table of contents."""
    records: dict[str, list[Any]] = {}
    for run in runs:
        if run.record["heads"]:
            records.setdefault(run.model, []).append(run.record)
    for model, of_model in records.items():
        (part / "atlas").mkdir(exist_ok=True)
        (part / "atlas" / f"{model}.md").write_text(atlas.page(model, of_model), encoding="utf-8")
        (part / "atlas" / f"{model}.png").write_bytes(atlas.figure(of_model))
    return [{"file": f"atlas/{model}", "title": model} for model in records]


def write_contents(
    root: Path, part: Path, chapters: Sequence[ChapterRuns], lessons: Sequence[str], heads: list
) -> list[str]:
    """Write the table of contents; its pages, in order."""
    made = {}
    for chapter, runs, stopped in chapters:
        entry = contents.chapter_entry(chapter.paper, runs, stopped, lessons)
        made[f"chapters/{chapter.paper}/index"] = entry
    if contents.METHOD_EXERCISES in lessons:
        made[contents.METHOD_EXERCISES] = contents.METHOD_EXERCISES, []
    if heads:
        made["atlas/index"] = "atlas/index", heads
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    contents.fill(toc, made)
    (part / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    return contents.pages_in(part / "_toc.yml")
