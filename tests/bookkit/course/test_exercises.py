"""Every exercise on every embedded model: its solution is right, what only looks right is not."""

from pathlib import Path

import pytest

from bookkit.course import exercises
from bookkit.course.checking import accepted, check
from bookkit.course.exercises import ByTest, read_exercises
from replib.models.sources import available_embedded

ROOT = Path(__file__).parents[3]
PARTS = exercises.parts(ROOT)
MODELS = available_embedded()


@pytest.fixture(
    scope="module",
    params=[(part, model) for part in PARTS for model in MODELS],
    ids=lambda pair: "-".join(pair),
)
def lesson(request):
    """(exercises, model, what the set-up defines), as the first cells of the class notebook."""
    part, model = request.param
    setup, found = read_exercises(ROOT / "notebooks" / f"{part}/exercises.yaml")
    space = {"model_name": model}
    exec(setup, space)
    return found, model, space


def answers(exercise, model, code, space):
    """What a cell with this code hands to the check."""
    known = dict(space)
    if exercise.record and (bounds := accepted(exercise, model)):
        known |= dict(zip(("value", "low", "high"), bounds, strict=True))
    exec(code, known)
    return known[exercise.answer]


@pytest.mark.slow
def test_every_solution_is_right(lesson):
    found, model, space = lesson
    verdicts = {
        exercise.id: check(exercise.id, answers(exercise, model, exercise.solution, space), model)
        for exercise in found
    }
    assert {id: verdict for id, verdict in verdicts.items() if not verdict} == {}


@pytest.mark.slow
def test_what_only_looks_right_is_wrong(lesson):
    found, model, space = lesson
    for exercise in found:
        if isinstance(exercise.check, ByTest) and model != MODELS[0]:
            continue  # code is tried on one model; it takes minutes
        tried = [answers(exercise, model, code, space) for code in exercise.wrong]
        verdicts = [check(exercise.id, answer, model) for answer in tried]
        assert [verdict.outcome for verdict in verdicts] == ["wrong"] * len(verdicts), exercise.id
        # a hint, not the end of a program
        assert not any("trying it ended in" in verdict.text for verdict in verdicts), exercise.id


def test_nothing_written_yet_is_not_right(lesson):
    found, model, space = lesson
    for exercise in found:
        answer = answers(exercise, model, exercise.start, space)
        assert not check(exercise.id, answer, model), exercise.id


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_enough_of_every_kind(part):
    _, found = read_exercises(ROOT / "notebooks" / f"{part}/exercises.yaml")
    assert len(found) >= (4 if part == "method" else 6)
    assert {exercise.kind for exercise in found} >= {"predict", "code"}
    if part != "method":
        assert "research" in {exercise.kind for exercise in found}
    for exercise in found:
        assert len(exercise.wrong) >= 3


def test_no_answer_is_not_a_wrong_one():
    assert check("ioi-1", ...).outcome == check("ioi-1", None).outcome == "unanswered"
