"""The table of contents of the staged book: a chapter's entry gets its pages under it.

The pages are listed one by one. A `glob:` of sphinx-external-toc would list them too, but with
their whole titles, failed runs between those that finished, and without a method's first page in
the place of its chapter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

from bookkit.book.failed import FailedRun
from bookkit.book.runs import Run, first_run
from bookkit.course import classroom
from replib.errors import UsageError

Entry = dict[str, Any]
METHOD_EXERCISES = classroom.page_of(classroom.METHOD)


def chapter_entry(
    paper: str, runs: Sequence[Run], failed: Sequence[FailedRun], lessons: Sequence[str]
) -> Entry:
    """A chapter's entry: its first page, and under it one for each run, those that failed after
    those that finished, and its exercises if they are among the `lessons`.

    A method has no first page of its own: that of its first run stands there.
    """
    pages = [{"file": f"chapters/{run.key}", "title": run.model} for run in runs]
    pages += [{"file": f"chapters/{run.key}", "title": f"{run.model} (failed)"} for run in failed]
    if (lesson := classroom.page_of(paper)) in lessons:
        pages.append({"file": lesson, "title": "Exercises"})
    first = f"chapters/{paper}/index"
    if runs and runs[0].is_method:
        first = f"chapters/{first_run(runs).key}"
    return {"file": first, "sections": [page for page in pages if page["file"] != first]}


def atlas_entry(pages: Sequence[str]) -> Entry:
    """The atlas with a page for each model of which heads are known."""
    sections = [{"file": page, "title": page.split("/")[1]} for page in pages]
    return {"file": "atlas/index", "sections": sections}


def fill(toc: Mapping[str, Any], made: Mapping[str, Entry]) -> dict[str, Any]:
    """The root's `_toc.yml` with the entries of `made`, by the name that stands for them there.

    A name that stands for such an entry and is not in `made` is left out, as is a part without
    entries. UsageError if `made` has pages for an entry that is not in `toc`.
    """
    placed = set()

    def filled(node: Any) -> Any:
        if isinstance(node, Mapping) and (name := node.get("file")) in made:
            placed.add(name)
            sections = node.get("sections", []) + made[name]["sections"]
            entry = {**node, **made[name], "sections": sections}
            return entry if sections else {key: entry[key] for key in entry if key != "sections"}
        if isinstance(node, Mapping):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(one) for one in node if not _left_out(one, made)]
        return node

    result = filled(toc)
    for name, entry in made.items():
        if name not in placed and (entry["sections"] or entry["file"] != name):
            raise UsageError(f"_toc.yml has no entry {name}")
    if "parts" in result:
        result["parts"] = [part for part in result["parts"] if part["chapters"]]
    return result


def _left_out(node: Any, made: Mapping[str, Entry]) -> bool:
    name = str(node.get("file", "")) if isinstance(node, Mapping) else ""
    chapter = name.startswith("chapters/") and name.endswith("/index")
    return (chapter or name in ("atlas/index", METHOD_EXERCISES)) and name not in made


def pages_in(toc: Path) -> list[str]:
    """Every page of a table of contents, in its order, root first."""
    try:
        return list(parse_toc_yaml(toc))
    except MalformedError as error:
        raise UsageError(f"table of contents {toc}: {error}") from None
