"""The table of the papers' own models on the page about running again, filled in at staging."""

import html
from collections.abc import Iterator
from pathlib import Path

from bookkit.book.markup import raw_html, scrolling
from bookkit.project import list_papers
from bookkit.run import resources as sizing
from bookkit.run.chapter import Chapter, find_chapter

PAGE = "rerun.md"
MARK = "<!-- paper-profiles -->"
_HEAD = ("Chapter", "Model", "Parameters", "Memory", "Time here", "Command")


def write(root: Path, out: Path) -> None:
    """Put the table into the page in `out`."""
    rows = [row for paper in list_papers(root) for row in _rows(root, find_chapter(root, paper))]
    head = "".join(f'<th scope="col">{title}</th>' for title in _HEAD)
    body = "\n".join(rows)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    page = out / PAGE
    text = page.read_text(encoding="utf-8")
    scrolled = raw_html(scrolling("The papers' models", table))
    page.write_text(text.replace(MARK, scrolled), encoding="utf-8")


def _rows(root: Path, chapter: Chapter) -> Iterator[str]:
    profile = chapter.profile("paper")
    known = sizing.certified_reference(root, chapter.paper)
    defaults = {name: parameter.default for name, parameter in chapter.parameters.items()}
    values = defaults | dict(profile.parameters)
    dtype = "bfloat16" if values["dtype"] == "auto" else values["dtype"]
    for name in profile.models:
        command = f"replib run {chapter.paper} --model {name} --profile paper --device cuda"
        cells = ["?"] * 3
        # With a second model, both are loaded, one after the other: the larger decides.
        names = [name, values["against"]] if values.get("against") else [name]
        if all(one in sizing.PUBLISHED for one in names):
            size = max((sizing.PUBLISHED[one] for one in names), key=lambda size: size.n_params)
            own = sizing.PUBLISHED[name]
            memory = sizing.gigabytes(sizing.needed(size, dtype, True, known))
            cells = [f"{own.n_params / 1e6:,.0f} million", f"{memory} ({dtype})", "?"]
            if known:
                seconds = sizing.expected_seconds(size, known, profile.work, known.speed)
                cells[2] = sizing.rough_duration(seconds)
        words = [chapter.paper, name, *cells]
        row = "".join(f"<td>{html.escape(word)}</td>" for word in words)
        yield f"<tr>{row}<td><code>{html.escape(command)}</code></td></tr>"
