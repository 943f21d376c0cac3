"""The course: its exercises check themselves, its notebooks for class run and give nothing away,
and what its page and hand-outs name exists and fits into the time."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from bookkit.course import classroom
from bookkit.course.checking import accepted, check
from bookkit.course.exercises import NAME, ByTest, parts, read_exercises
from replib.models.sources import available_embedded

ROOT = Path(__file__).parents[2]
PARTS = {part: read_exercises(ROOT / "notebooks" / part / NAME) for part in parts(ROOT)}
EXERCISES = {exercise.id: exercise for _, found in PARTS.values() for exercise in found}
MODELS = available_embedded()


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", PARTS)
def test_every_solution_is_right_and_what_only_looks_right_is_wrong(part, model):
    setup, found = PARTS[part]
    space = {"model_name": model}
    exec(setup, space)

    def verdict(exercise, code):
        """What the check says of a cell with this code."""
        known = dict(space)
        if exercise.record and (bounds := accepted(exercise, model)):
            known |= dict(zip(("value", "low", "high"), bounds, strict=True))
        exec(code, known)
        return check(exercise.id, known[exercise.answer], model)

    for exercise in found:
        assert verdict(exercise, exercise.solution), exercise.id
        if isinstance(exercise.check, ByTest) and model != MODELS[0]:
            continue  # wrong code is tried on one model; it takes minutes
        wrong = [verdict(exercise, code) for code in exercise.wrong]
        assert {said.outcome for said in wrong} == {"wrong"}, exercise.id
        # a hint, not the end of a program
        assert not any("trying it ended in" in said.text for said in wrong), exercise.id


def test_no_answer_is_not_a_wrong_one():
    assert check("ioi-1", ...).outcome == check("ioi-1", None).outcome == "unanswered"


# --- notebooks for class --------------------------------------------------------------------------


def made(part, *, instructor, **more):
    return classroom.notebook(part, *PARTS[part], instructor=instructor, **more)


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
    for exercise in PARTS[part][1]:
        for secret in (exercise.solution, exercise.explanation, exercise.mistakes):
            assert json.dumps(secret.strip())[1:-1] not in text, exercise.id
        assert f'replib.check(\\"{exercise.id}\\", {exercise.answer})' in text


def test_what_is_committed_is_what_the_exercises_give(tmp_path):
    """Else: make classroom."""
    fresh = {path.name: path.read_text() for path in classroom.write_notebooks(ROOT, tmp_path)}
    committed = {p.name: p.read_text() for p in (ROOT / classroom.FOLDER).glob("*.ipynb")}
    assert committed == fresh


def test_a_figure_goes_into_the_notebook_and_colab_gets_pinned_packages():
    labels = [(part, one.figure) for part, (_, found) in PARTS.items() for one in found]
    part, label = next((part, label) for part, label in labels if label)
    repository = "https://github.com/someone/book"
    figures = {label: "iVBORw0KGgo="}
    notebook = made(part, instructor=False, repository=repository, figures=figures)
    nbformat.validate(notebook)
    (cell,) = [c for c in notebook.cells if f"attachment:{label}.png" in c.source][:1]
    assert cell.attachments[f"{label}.png"] == {"image/png": "iVBORw0KGgo="}
    first = next(c.source for c in notebook.cells if c.cell_type == "code")
    assert repository in first and "requirements.txt" in first


# --- the course's page and its hand-outs ----------------------------------------------------------

COURSE = (ROOT / "book" / "course.md").read_text()
MINUTES = 90
SESSIONS = range(1, 7)
ID = re.compile(rf"`((?:{'|'.join({id.split('-')[0] for id in EXERCISES})})-[0-9]+)`")


def section(n):
    """The text of a session, without the next heading's."""
    text = COURSE.split(f"\n(course-{n})=\n")[1]
    return re.split(r"\n\([a-z0-9-]+\)=\n|\n## (?!Session)", text)[0]


def handout(n):
    return (ROOT / "book" / "handouts" / f"session-{n}.md").read_text()


def test_every_exercise_has_a_session_and_every_one_that_is_named_exists():
    assert {id for n in SESSIONS for id in ID.findall(section(n))} == EXERCISES.keys()
    for text in (COURSE, *map(handout, SESSIONS)):
        assert set(ID.findall(text)) <= EXERCISES.keys()


@pytest.mark.parametrize("n", SESSIONS)
def test_its_minutes_fit(n):
    rows = re.findall(r"^\| ([0-9]+) \| (.+) \|$", section(n), re.M)
    assert sum(int(minutes) for minutes, _ in rows) == MINUTES
    (slot,) = [int(minutes) for minutes, what in rows if "exercises" in what]
    (in_class,) = re.findall(r"^\| Exercises in class \| (.+) \|$", section(n), re.M)
    assert sum(EXERCISES[id].minutes for id in ID.findall(in_class)) <= slot


@pytest.mark.parametrize("n", SESSIONS)
def test_a_handout_has_its_parts_and_no_typed_measurement(n):
    text = handout(n)
    titles = re.findall(r"^## (.+)$", text, re.M)
    assert titles == ["You will be able to", "The idea", "By hand", "Questions", "Words"]
    assert text.count('<div class="write">') == 3
    (record,) = re.findall(r"^\*From the record.+$", text, re.M)
    typed = re.sub(r"\{record\}`[^`]+`|[Cc]laim [0-9.]+|95% interval", "", record)
    assert not re.search(r"[0-9]+\.[0-9]+|[0-9]+%", typed)
