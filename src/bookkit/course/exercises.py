"""The exercises: what a file `notebooks/<part>/exercises.yaml` holds, read and checked.

An exercise stands there once; `bookkit.course.classroom` makes the book's pages and the notebooks
for class from it, and `bookkit.course.checking` says whether an answer is right. That is a number
which a record decides, one of some options, or code that is tried.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag

from replib.claims.schema import Slug, Strict, Words, fit
from replib.errors import UsageError, did_you_mean
from replib.files import find_root, read_text, read_yaml

NAME = "exercises.yaml"
Letter = Annotated[str, Field(pattern="^[a-z]$")]


class ByRecord(Strict):
    """A number of a record decides: KEY of the chapter's on the model in use, or PAPER KEY."""

    record: Annotated[str, Field(pattern="^([a-z0-9-]+ )?[^ ]+$")]
    # the record's interval of this key; a distance; a share of the value
    within: Annotated[str, Field(pattern="^(interval|[0-9.]+%?)$")]
    above: Words  # hint for an answer that is too large
    below: Words  # hint for one that is too small


class Option(Strict):
    """An answer to choose, and what to say to who chooses it."""

    text: Words
    hint: Words | None  # None for the right one


class ByOptions(Strict):
    """One of some options is right."""

    right: Letter
    options: Annotated[dict[Letter, Option], Field(min_length=3)]


class ByTest(Strict):
    """Code decides; it defines test(answer) or test(answer, model). The message of a failing assert
    is the hint."""

    test: Words


def _kind_of_check(check: Any) -> str:
    keys = check if isinstance(check, Mapping) else ()
    return "a test" if "test" in keys else "choice" if "options" in keys else "a record"


class Exercise(Strict):
    """One exercise; texts are MyST, code is Python."""

    _part: str = PrivateAttr("")  # whose file it stands in
    id: Annotated[str, Field(pattern="^[a-z]+-[1-9][0-9]*$")]
    title: Words
    kind: Literal["predict", "reason", "code", "research"]
    minutes: Annotated[str, Field(pattern="^[1-9][0-9]?$"), AfterValidator(int)]
    text: Words  # the question
    figure: Annotated[str, Field(pattern="^fig-[a-z0-9-]+$")] = ""  # the chapter's, if any
    answer: Annotated[str, Field(pattern="^[a-z_][a-z0-9_]*$")] = "answer"  # what is checked
    start: Words = "answer = ..."  # what the student's cell holds
    check: Annotated[
        Annotated[ByRecord, Tag("a record")]
        | Annotated[ByOptions, Tag("choice")]
        | Annotated[ByTest, Tag("a test")],
        Discriminator(_kind_of_check),
    ]
    solution: Words  # code that gives the right answer
    explanation: Words
    mistakes: Words  # for the teacher: what goes wrong, and what to say then
    # plausible wrong answers, as code that knows value, low and high where the record decides
    wrong: Annotated[list[Words], Field(min_length=3)]

    @property
    def part(self) -> str:
        return self._part

    @property
    def record(self) -> tuple[str, str] | None:
        """(paper, key) of the number that decides, if one does."""
        if not isinstance(self.check, ByRecord):
            return None
        *paper, key = self.check.record.split(" ")
        return (paper[0] if paper else self.part), key


class ExercisesFile(Strict):
    """Every scalar is read as text, or null."""

    part: Slug  # the chapter's name, or method for the method pages
    setup: Words  # what the class notebook runs first; model_name is known in it
    exercises: Annotated[list[Exercise], Field(min_length=1)]


def parts(root: Path) -> list[str]:
    """What has exercises: chapters, and the method pages together."""
    return sorted(path.parent.name for path in root.glob(f"notebooks/*/{NAME}"))


def read_exercises(path: Path) -> tuple[str, list[Exercise]]:
    """(set-up code, exercises) of a file; UsageError if it does not fit."""
    content = read_yaml(read_text(path, "exercises"), str(path), texts_only=True)
    file = fit(ExercisesFile, content, str(path))
    if file.part != path.parent.name:
        raise UsageError(f"{path}: part is {file.part!r}, which is not the folder's name")
    ids = [exercise.id for exercise in file.exercises]
    if twice := [id for id in ids if ids.count(id) > 1]:
        raise UsageError(f"{path}: exercise {twice[0]} is there twice")
    for exercise in file.exercises:
        check = exercise.check
        if isinstance(check, ByOptions) and check.right not in check.options:
            raise UsageError(f"{path}, {exercise.id}: no option {check.right!r}")
        exercise._part = file.part
    return file.setup, file.exercises


def find_exercise(id: str) -> Exercise:
    """The exercise of this project with that id; UsageError if there is none."""
    known = _all(find_root())
    if not isinstance(id, str) or id not in known:
        raise UsageError(f"no exercise {id!r}{did_you_mean(str(id), known)}")
    return known[id]


@cache
def _all(root: Path) -> dict[str, Exercise]:
    found: dict[str, Exercise] = {}
    for part in parts(root):
        path = root / "notebooks" / part / NAME
        for exercise in read_exercises(path)[1]:
            if exercise.id in found:
                raise UsageError(f"{path}: exercise {exercise.id} is in {found[exercise.id].part}")
            found[exercise.id] = exercise
    return found
