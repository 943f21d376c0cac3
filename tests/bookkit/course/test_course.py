"""The course: what it names exists, every session is whole, and its minutes fit."""

import re
from pathlib import Path

import pytest
import yaml

from bookkit.course.exercises import parts, read_exercises

ROOT = Path(__file__).parents[3]
COURSE = (ROOT / "book" / "course.md").read_text()
MINUTES = 90
SESSIONS = range(1, 7)
PARTS = {  # of an id -> the file that has it, how many there are
    "ioi": ("ioi-circuit-reuse", 7),
    "facts": ("factual-recall", 7),
    "successor": ("successor-heads", 7),
    "knob": ("context-knob", 7),
    "copying": ("copying-mamba", 7),
    "method": ("method", 6),
}
ID = re.compile(rf"`((?:{'|'.join(PARTS)})-[0-9]+)`")


def known():
    """The exercises of all files that are finished: no stub, which has fewer."""
    sizes = dict(PARTS.values())
    found = {}
    for part in parts(ROOT):
        exercises = read_exercises(ROOT / "notebooks" / f"{part}/exercises.yaml")[1]
        if len(exercises) >= sizes.get(part, 0):
            found[part] = {exercise.id: exercise for exercise in exercises}
    return found


def section(n):
    """The text of a session, without the next heading's."""
    text = COURSE.split(f"\n(course-{n})=\n")[1]
    return re.split(r"\n\([a-z0-9-]+\)=\n|\n## (?!Session)", text)[0]


def row(n, name):
    (found,) = re.findall(rf"^\| {name} \| (.+) \|$", section(n), re.M)
    return found


def handout(n):
    return (ROOT / "book" / "handouts" / f"session-{n}.md").read_text()


@pytest.mark.parametrize("page", ["course", *SESSIONS])
def test_every_exercise_that_is_named_exists(page):
    finished = known()
    for id in ID.findall(COURSE if page == "course" else handout(page)):
        part, size = PARTS[id.rpartition("-")[0]]
        if part in finished:
            assert id in finished[part]
        else:  # a file that is not there yet, or a stub: the number at least is possible
            assert 1 <= int(id.rpartition("-")[2]) <= size


def test_every_exercise_has_a_session():
    named = {id for n in SESSIONS for id in ID.findall(section(n))}
    assert named == {f"{stem}-{i}" for stem, (_, n) in PARTS.items() for i in range(1, n + 1)}


@pytest.mark.parametrize("n", SESSIONS)
def test_a_session_has_each_of_its_parts(n):
    text = section(n)
    assert "](" in row(n, "Read before") and "notebook" in row(n, "Notebook")
    assert ID.search(row(n, "Exercises in class")) and ID.search(row(n, "Exercises at home"))
    assert f"(handouts/session-{n}.md)" in row(n, "Hand-out")
    assert re.search(r"^\*.+\?\*$", text, re.M), "its question"
    discuss = text.split("**Discuss**")[1].split("**The run.**")[0]
    assert 2 <= len(re.findall(r"^[0-9]\. ", discuss, re.M)) <= 4
    assert f"(#course-{n})" in COURSE


@pytest.mark.parametrize("n", SESSIONS)
def test_its_minutes_fit(n):
    rows = re.findall(r"^\| ([0-9]+) \| (.+) \|$", section(n), re.M)
    assert sum(int(minutes) for minutes, _ in rows) == MINUTES
    (slot,) = [int(minutes) for minutes, what in rows if "exercises" in what]
    finished = {id: e for some in known().values() for id, e in some.items()}
    ids = ID.findall(row(n, "Exercises in class"))
    assert sum(finished[id].minutes for id in ids if id in finished) <= slot


@pytest.mark.parametrize("n", SESSIONS)
def test_a_handout_has_its_parts_and_no_typed_measurement(n):
    text = handout(n)
    titles = re.findall(r"^## (.+)$", text, re.M)
    assert titles == ["You will be able to", "The idea", "By hand", "Questions", "Words"]
    assert text.count('<div class="write">') == 3
    assert len(re.findall(r"^\| (?!---|word \|).+ \|$", text.split("## Words")[1], re.M)) == 5
    (record,) = re.findall(r"^\*From the record.+$", text, re.M)
    typed = re.sub(r"\{record\}`[^`]+`|[Cc]laim [0-9.]+|95% interval", "", record)
    assert not re.search(r"[0-9]+\.[0-9]+|[0-9]+%", typed)


def test_the_table_of_contents_has_course_and_handouts():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    (teach,) = [part for part in toc["parts"] if part["caption"] == "Teach"]
    (course,) = teach["chapters"]
    assert course["file"] == "course"
    assert [s["file"] for s in course["sections"]] == [f"handouts/session-{n}" for n in SESSIONS]
    assert "(course.md)" in (ROOT / "book" / "index.md").read_text()
