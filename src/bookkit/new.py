"""A new paper: the files of a chapter that runs from the first minute, to be made into the paper's.

They are copies of `templates/chapter/`, which measures one thing for real (does the model prefer
the right name?) with an interval, a gate and a null: every part that a chapter needs is there once.
"""

import json
import re
from pathlib import Path

from bookkit.book.html import as_myst
from bookkit.project import chapter_folder, list_chapters
from replib.errors import UsageError, find_control
from replib.files import read_text, read_yaml

TEMPLATES = Path(__file__).with_name("templates") / "chapter"


def new_paper(root: Path, slug: str, title: str, arxiv: str) -> list[Path]:
    """Write the files of a new chapter and enter it in the table of contents; what was written.
    UsageError, and nothing written, for a name, title or number that cannot stand in the files, for
    a name that is taken, and for a table of contents without chapters."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or len(slug) > 60:
        raise UsageError(f"{slug!r} cannot name a paper; use words-like-this")
    if slug in list_chapters(root):
        raise UsageError(f"paper {slug} is there already")
    if not re.fullmatch(r"[0-9]{4}\.[0-9]{4,5}", arxiv):
        raise UsageError(f"arXiv number {arxiv!r} is not like 2310.08744")
    title = " ".join(title.split())
    is_sound = 3 <= len(title) <= 200 and title.isprintable() and not find_control(title)
    if not is_sound or any(sign in title for sign in ("[MEM]", "[[", "{", "}", "\\")):
        problem = "give 3 to 200 characters, without \\ { } [[ and [MEM], which marks numbers"
        raise UsageError(f"title {title!r}: {problem}")
    contents = enter(root / "_toc.yml", slug)
    folder = chapter_folder(root, slug)
    places = {
        "chapter.ipynb": folder / f"{slug}.ipynb",
        "claims.yaml": folder / "claims.yaml",
        "profiles.yaml": folder / "profiles.yaml",
        "test_chapter.py": root / f"tests/replib/chapters/test_{slug.replace('-', '_')}.py",
        "page.md": root / f"book/chapters/{slug}.md",
    }
    if taken := [path for path in places.values() if path.exists()]:
        raise UsageError(f"{taken[0]} is there already")
    for name, path in places.items():
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        # Marks that would do something on a page are escaped, commas and the like are not.
        shown = re.sub(r"""\\([-,.:;?'"()/+=%])""", r"\1", as_myst(title))
        said = shown if name == "chapter.ipynb" else title
        said = json.dumps(said, ensure_ascii=False)[1:-1]  # in JSON and YAML, in quotation marks
        for mark, value in (("[[slug]]", slug), ("[[arxiv]]", arxiv), ("[[title]]", said)):
            text = text.replace(mark, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "_toc.yml").write_text(contents, encoding="utf-8")
    return [*places.values(), root / "_toc.yml"]


def enter(toc: Path, slug: str) -> str:
    """The table of contents with the chapter after the last one; its comments stay."""
    text = read_text(toc, "table of contents")
    read_yaml(text, f"table of contents {toc}")
    entries = list(re.finditer(r"(?m)^ *- file: chapters/.*$", text))
    if not entries:
        raise UsageError(f"{toc} has no entry chapters/.../index to put the new one behind")
    entry = re.sub(r"chapters/[^/]+/index", f"chapters/{slug}/index", entries[-1][0])
    return f"{text[: entries[-1].end()]}\n{entry}{text[entries[-1].end() :]}"
