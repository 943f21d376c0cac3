"""Notebooks for class: an instructor's runs to its end, a student's is not right before it is
filled in, and what is committed is what the exercises' files give."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from bookkit.course import classroom
from bookkit.course.exercises import NAME, parts, read_exercises

ROOT = Path(__file__).parents[3]
PARTS = parts(ROOT)


def made(part: str, *, instructor: bool, **more) -> nbformat.NotebookNode:
    setup, found = read_exercises(ROOT / "notebooks" / part / NAME)
    return classroom.notebook(part, setup, found, instructor=instructor, **more)


def on_tiny(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = 'model_name = "tiny"'
    return notebook


@pytest.mark.parametrize("part", PARTS)
def test_an_instructors_notebook_runs_to_its_end_on_tiny(part):
    notebook = on_tiny(made(part, instructor=True))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    said = {
        cell.source: cell.outputs[-1].data["text/plain"]
        for cell in notebook.cells
        if "check" in cell.metadata.get("tags", [])
    }
    assert len(said) >= 4
    wrong = {check: text for check, text in said.items() if not re.match("right|unchecked", text)}
    assert wrong == {}
    assert any(text.startswith("right") for text in said.values())


@pytest.mark.parametrize("part", PARTS)
def test_a_students_notebook_is_not_right_before_it_is_filled_in(part):
    space: dict = {}
    checks = 0
    for cell in on_tiny(made(part, instructor=False)).cells:
        if cell.cell_type != "code":
            continue
        if "check" in cell.metadata.get("tags", []):
            assert not eval(cell.source, space), cell.source
            checks += 1
        else:
            exec(cell.source, space)
    assert checks >= 4


@pytest.mark.parametrize("part", PARTS)
def test_a_student_is_not_given_the_solutions(part):
    text = json.dumps(made(part, instructor=False))
    for exercise in read_exercises(ROOT / "notebooks" / part / NAME)[1]:
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
    part = next(p for p in PARTS if any(e.figure for e in _exercises(p)))
    label = next(e.figure for e in _exercises(part) if e.figure)
    notebook = made(
        part,
        instructor=False,
        repository="https://github.com/someone/book",
        figures={label: "iVBORw0KGgo="},
    )
    nbformat.validate(notebook)
    (cell,) = [c for c in notebook.cells if f"attachment:{label}.png" in c.source][:1]
    assert cell.attachments[f"{label}.png"] == {"image/png": "iVBORw0KGgo="}
    first = next(c.source for c in notebook.cells if c.cell_type == "code")
    assert "https://github.com/someone/book" in first and "requirements.txt" in first


def _exercises(part):
    return read_exercises(ROOT / "notebooks" / part / NAME)[1]
