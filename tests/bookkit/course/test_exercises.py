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


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", PARTS)
def test_every_solution_is_right_and_what_only_looks_right_is_wrong(part, model):
    setup, found = read_exercises(ROOT / "notebooks" / part / "exercises.yaml")
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


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_every_kind(part):
    _, found = read_exercises(ROOT / "notebooks" / part / "exercises.yaml")
    needed = {"predict", "code"} | ({"research"} if part != "method" else set())
    assert {exercise.kind for exercise in found} >= needed


def test_no_answer_is_not_a_wrong_one():
    assert check("ioi-1", ...).outcome == check("ioi-1", None).outcome == "unanswered"
