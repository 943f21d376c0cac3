"""Notebooks for class: an instructor's runs to its end, a student's is not right before it is
filled in, and what is committed is what the exercises' files give."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from bookkit.course import classroom
from bookkit.course.exercises import NAME, parts, read_exercises

ROOT = Path(__file__).parents[3]
PARTS = parts(ROOT)


def exercises(part):
    return read_exercises(ROOT / "notebooks" / part / NAME)


def made(part, *, instructor, **more):
    return classroom.notebook(part, *exercises(part), instructor=instructor, **more)


def verdicts(notebook):
    """What the checks say, by their line, when a notebook's cells run in turn on `tiny`."""
    space, said = {}, {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            space["model_name"] = "tiny"
        elif "check" in tags:
            said[cell.source] = eval(cell.source, space)
        elif cell.cell_type == "code":
            exec(cell.source, space)
    return said


@pytest.mark.parametrize("part", PARTS)
def test_solutions_are_right_and_what_a_student_begins_with_is_not(part):
    solved = verdicts(made(part, instructor=True))
    assert len(solved) >= 4 and any(solved.values())
    wrong = {line for line, said in solved.items() if said.outcome not in ("right", "unchecked")}
    assert wrong == set()
    begun = verdicts(made(part, instructor=False))
    assert begun.keys() == solved.keys()
    assert {line for line, said in begun.items() if said} == set()


@pytest.mark.parametrize("part", PARTS)
def test_a_student_is_not_given_the_solutions(part):
    text = json.dumps(made(part, instructor=False))
    for exercise in exercises(part)[1]:
        for secret in (exercise.solution, exercise.explanation, exercise.mistakes):
            assert json.dumps(secret.strip())[1:-1] not in text, exercise.id
        assert f'replib.check(\\"{exercise.id}\\", {exercise.answer})' in text


def test_what_is_committed_is_what_the_exercises_give(tmp_path):
    """Else: make classroom."""
    fresh = {path.name: path.read_text() for path in classroom.write_notebooks(ROOT, tmp_path)}
    committed = {p.name: p.read_text() for p in (ROOT / classroom.FOLDER).glob("*.ipynb")}
    assert committed == fresh


def test_their_code_is_as_clean_as_ours(tmp_path):
    classroom.write_notebooks(ROOT, tmp_path, {})
    assert len(list(tmp_path.glob("*-instructor.ipynb"))) == len(PARTS)
    ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "notebooks/ruff.toml")]
    # imports are there for what the student will write
    result = subprocess.run(
        [*ruff, "--ignore", "F401,F811", tmp_path], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_a_figure_goes_into_the_notebook_and_colab_gets_pinned_packages():
    part, label = next((part, e.figure) for part in PARTS for e in exercises(part)[1] if e.figure)
    repository = "https://github.com/someone/book"
    figures = {label: "iVBORw0KGgo="}
    notebook = made(part, instructor=False, repository=repository, figures=figures)
    nbformat.validate(notebook)
    (cell,) = [c for c in notebook.cells if f"attachment:{label}.png" in c.source][:1]
    assert cell.attachments[f"{label}.png"] == {"image/png": "iVBORw0KGgo="}
    first = next(c.source for c in notebook.cells if c.cell_type == "code")
    assert repository in first and "requirements.txt" in first
