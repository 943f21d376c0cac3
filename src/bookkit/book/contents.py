"""The table of contents of the staged book: a chapter's entry gets its pages under it.

The pages are listed one by one. A `glob:` of sphinx-external-toc would list them too, but with
their whole titles, failed runs between those that finished, and without a method's first page in
the place of its chapter.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

from bookkit.book.failed import FailedRun
from bookkit.book.runs import Run, first_run
from bookkit.course import classroom
from replib.errors import UsageError

METHOD_EXERCISES = classroom.page_of(classroom.METHOD)
# Entries that stand for pages which are made, and are left out where there are none.
_MADE = re.compile(rf"chapters/.*/index|atlas/index|{METHOD_EXERCISES}")
Entry = tuple[str, list[dict[str, str]]]  # its first page, and the pages under it


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
    is_method = runs and runs[0].is_method
    first = f"chapters/{first_run(runs).key if is_method else f'{paper}/index'}"
    return first, [page for page in pages if page["file"] != first]


def fill(toc: dict[str, Any], made: Mapping[str, Entry]) -> None:
    """Put the entries of `made` into the root's `_toc.yml`, by the name that stands for them there.

    A name that stands for such an entry and is not in `made` goes, as does a part without entries.
    UsageError if `made` has pages for an entry that is not in `toc`.
    """
    left = dict(made)
    for part in toc.get("parts", [toc]):
        chapters, part["chapters"] = part["chapters"], []
        for entry in chapters:
            name = entry.get("file", "")
            if name in left:
                entry["file"], pages = left.pop(name)
                if pages:
                    entry["sections"] = [*entry.get("sections", ()), *pages]
            elif _MADE.fullmatch(name):
                continue
            part["chapters"].append(entry)
    for name, (first, pages) in left.items():
        if pages or first != name:
            raise UsageError(f"_toc.yml has no entry {name}")
    if "parts" in toc:
        toc["parts"] = [part for part in toc["parts"] if part["chapters"]]


def pages_in(toc: Path) -> list[str]:
    """Every page of a table of contents, in its order, root first."""
    try:
        return list(parse_toc_yaml(toc))
    except MalformedError as error:
        raise UsageError(f"table of contents {toc}: {error}") from None


# [text](target), where the text may go over a line's end.
_LINK = re.compile(r"\[([^][]*)\]\(([^()#\s]+)\.(?:md|ipynb)(?:#[^()\s]*)?\)")
_OF_RUNS = re.compile(rf"(chapters|atlas)/.*|{METHOD_EXERCISES}")


def unlink(part: Path, pages: Sequence[str]) -> None:
    """Leave the text alone of every link of a staged book to a page that depends on runs and is not
    among its `pages`. A link to any other page that is not there stays, and stops the build."""
    files = (part / f"{page}{suffix}" for page in pages for suffix in (".md", ".ipynb"))
    for path in filter(Path.is_file, files):
        up = path.parent.relative_to(part)

        def shown(link: re.Match, up: Path = up) -> str:
            name = os.path.normpath(up / link[2])
            return link[1] if _OF_RUNS.fullmatch(name) and name not in pages else link[0]

        text = path.read_text(encoding="utf-8")
        if (new := _LINK.sub(shown, text)) != text:
            path.write_text(new, encoding="utf-8")
