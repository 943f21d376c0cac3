"""The table of contents of the staged book."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from bookkit.book import failed as failed_runs
from bookkit.book.runs import Run, by_paper, first_run
from bookkit.course import classroom
from replib.errors import UsageError

METHOD_EXERCISES = classroom.page_of(classroom.METHOD)


def table_of_contents(
    toc: dict[str, Any],
    runs: Sequence[Run],
    atlases: Sequence[str] = (),
    not_run: Sequence[str] = (),
    failed: Sequence[failed_runs.FailedRun] = (),
    lessons: Sequence[str] = (),
) -> dict[str, Any]:
    """The root's `_toc.yml` with a page a model under each `chapters/<paper>/index`, and those of
    the heads under `atlas/index`, which is left out without them.

    Runs that failed come after those that finished, a chapter's exercises (one of the `lessons`)
    last. A method has no first page of its own: that of
    its first run stands there. A paper without runs keeps its first page if it
    is among `not_run`, so that links to it lead somewhere; else it is left out. UsageError when a
    paper that has runs is not in it.
    """
    papers = by_paper(runs)
    placed = set()

    def place(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = []
        for entry in entries:
            match = re.fullmatch(r"chapters/([^/]+)/index", entry.get("file", ""))
            if match and match[1] not in {*papers, *not_run}:
                continue
            if entry.get("file") == METHOD_EXERCISES and METHOD_EXERCISES not in lessons:
                continue
            if entry.get("file") == "atlas/index":
                if atlases:
                    pages = [{"file": page, "title": page.split("/")[1]} for page in atlases]
                    kept.append(entry | {"sections": pages})
                continue
            if match:
                placed.add(match[1])
                pages = [
                    {"file": f"chapters/{run.key}", "title": run.model}
                    for run in papers.get(match[1], ())
                ]
                pages += [
                    {"file": f"chapters/{run.key}", "title": f"{run.model} (failed)"}
                    for run in failed
                    if run.paper == match[1]
                ]
                if (lesson := classroom.page_of(match[1])) in lessons:
                    pages.append({"file": lesson, "title": "Exercises"})
                if papers.get(match[1]) and papers[match[1]][0].is_method:
                    entry = {"file": f"chapters/{first_run(papers[match[1]]).key}"}
                    pages = [page for page in pages if page["file"] != entry["file"]]
                if pages:
                    entry = entry | {"sections": [*entry.get("sections", []), *pages]}
            elif "sections" in entry:
                entry = entry | {"sections": place(entry["sections"])}
            kept.append(entry)
        return kept

    result = dict(toc)
    if "parts" in toc:
        parts = [part | {"chapters": place(part["chapters"])} for part in toc["parts"]]
        result["parts"] = [part for part in parts if part["chapters"]]
    if "chapters" in toc:
        result["chapters"] = place(toc["chapters"])
    shown = dict.fromkeys([*papers, *(run.paper for run in failed)])
    if missing := [paper for paper in shown if paper not in placed]:
        raise UsageError(f"_toc.yml has no entry chapters/{missing[0]}/index")
    return result


def pages_in(toc: Mapping[str, Any]) -> list[str]:
    """Every page of a table of contents, without suffix, root first."""
    found = [toc["root"]]

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if "file" in node:
                found.append(str(PurePosixPath(re.sub(r"\.(md|ipynb)$", "", node["file"]))))
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(toc.get("parts", []))
    walk(toc.get("chapters", []))
    return found
