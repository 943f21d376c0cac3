"""The course: what it names exists, every session is whole, and its minutes fit."""

import re
from pathlib import Path

import pytest

from bookkit.course.exercises import parts, read_exercises

ROOT = Path(__file__).parents[3]
COURSE = (ROOT / "book" / "course.md").read_text()
MINUTES = 90
SESSIONS = range(1, 7)
EXERCISES = {
    exercise.id: exercise
    for part in parts(ROOT)
    for exercise in read_exercises(ROOT / "notebooks" / part / "exercises.yaml")[1]
}
ID = re.compile(rf"`((?:{'|'.join({id.split('-')[0] for id in EXERCISES})})-[0-9]+)`")


def section(n):
    """The text of a session, without the next heading's."""
    text = COURSE.split(f"\n(course-{n})=\n")[1]
    return re.split(r"\n\([a-z0-9-]+\)=\n|\n## (?!Session)", text)[0]


def row(n, name):
    (found,) = re.findall(rf"^\| {name} \| (.+) \|$", section(n), re.M)
    return found


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
    ids = ID.findall(row(n, "Exercises in class"))
    assert sum(EXERCISES[id].minutes for id in ids) <= slot


@pytest.mark.parametrize("n", SESSIONS)
def test_a_handout_has_its_parts_and_no_typed_measurement(n):
    text = handout(n)
    titles = re.findall(r"^## (.+)$", text, re.M)
    assert titles == ["You will be able to", "The idea", "By hand", "Questions", "Words"]
    assert text.count('<div class="write">') == 3
    (record,) = re.findall(r"^\*From the record.+$", text, re.M)
    typed = re.sub(r"\{record\}`[^`]+`|[Cc]laim [0-9.]+|95% interval", "", record)
    assert not re.search(r"[0-9]+\.[0-9]+|[0-9]+%", typed)
