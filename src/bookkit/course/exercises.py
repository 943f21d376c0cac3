"""Exercises that check themselves, against the record of the model in use and without a network.

    import replib
    replib.check("ioi-1", 0.25)   # right, or not yet, with a hint

An exercise stands in notebooks/<part>/exercises.yaml, once; `replib.classroom` makes the book's
pages and the notebooks for class from it. Its answer is a number that a record decides, one of some
options, or code that is tried.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from bookkit.records import read_record, record_value, record_values
from replib.claims.schema import Slug, Strict, Words, fit
from replib.errors import UsageError, did_you_mean, one_line
from replib.files import find_root, read_text, read_yaml
from replib.models.sources import model_slug

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


NAME = "exercises.yaml"
RUNS = ("build/runs", "results")  # where records are looked for: the user's own first


@dataclass(frozen=True)
class Verdict:
    """What became of an answer; true if it is right.

    `outcome` is right, wrong, unanswered, or unchecked where the model's record cannot decide.
    """

    outcome: str
    text: str

    def __bool__(self) -> bool:
        return self.outcome == "right"

    def __repr__(self) -> str:
        return f"{self.outcome}: {self.text}"


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its file has it."""

    part: str
    id: str
    title: str
    kind: str  # predict, reason, code or research
    minutes: int
    text: str
    check: Mapping[str, Any]
    solution: str
    explanation: str
    mistakes: str
    wrong: Sequence[str]
    figure: str | None = None
    answer: str = "answer"
    start: str = field(default="answer = ...")

    @property
    def record(self) -> tuple[str, str] | None:
        """(paper, key) of the number that decides, if one does."""
        if "record" not in self.check:
            return None
        *paper, key = self.check["record"].split(" ")
        return (paper[0] if paper else self.part), key


# --- the file -------------------------------------------------------------------------------------

Letter = Annotated[str, Field(pattern="^[a-z]$")]


class ByRecord(Strict):
    """A number of a record decides."""

    # KEY of the chapter's record on the model in use, or PAPER KEY
    record: Annotated[str, Field(pattern="^([a-z0-9-]+ )?[^ ]+$")]
    # the record's interval of this key; a distance; a share of the value
    within: Annotated[str, Field(pattern="^(interval|[0-9.]+%?)$")]
    above: Words  # hint for an answer that is too large
    below: Words  # hint for one that is too small


class Option(Strict):
    text: Words
    hint: Words | None  # None for the right one


class ByOptions(Strict):
    """One of some options is right."""

    right: Letter
    options: Annotated[dict[Letter, Option], Field(min_length=3)]


class ByTest(Strict):
    """Code decides."""

    # defines test(answer) or test(answer, model); the message of a failing assert is the hint
    test: Words


def _kind_of_check(check: Any) -> str:
    keys = check if isinstance(check, Mapping) else ()
    return "a test" if "test" in keys else "choice" if "options" in keys else "a record"


class Entry(Strict):
    """One exercise; texts are MyST, code is Python."""

    id: Annotated[str, Field(pattern="^[a-z]+-[1-9][0-9]*$")]
    title: Words
    kind: Literal["predict", "reason", "code", "research"]
    minutes: Annotated[str, Field(pattern="^[1-9][0-9]?$")]
    text: Words  # the question
    figure: Annotated[str, Field(pattern="^fig-[a-z0-9-]+$")] = ""  # the chapter's, if any
    answer: Annotated[str, Field(pattern="^[a-z_][a-z0-9_]*$")] = ""  # the name of what is checked
    start: Words = ""  # what the student's cell holds
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


class ExercisesFile(Strict):
    """Every scalar is read as text, or null."""

    part: Slug  # the chapter's name, or method for the method pages
    setup: Words  # what the class notebook runs first; model_name is known in it
    exercises: Annotated[list[Entry], Field(min_length=1)]


def parts(root: Path) -> list[str]:
    """What has exercises: chapters, and the method pages together."""
    return sorted(path.parent.name for path in root.glob(f"notebooks/*/{NAME}"))


def read_exercises(path: Path) -> tuple[str, list[Exercise]]:
    """(set-up code, exercises) of a file; UsageError if it does not fit."""
    content = read_yaml(read_text(path, "exercises"), str(path), texts_only=True)
    file = fit(ExercisesFile, content, str(path))
    if file.part != path.parent.name:
        raise UsageError(f"{path}: part is {file.part!r}, which is not the folder's name")
    found = []
    for entry in file.exercises:
        check = entry.check
        if isinstance(check, ByOptions) and check.right not in check.options:
            raise UsageError(f"{path}, {entry.id}: no option {check.right!r}")
        fields = entry.model_dump(exclude_unset=True) | {"minutes": int(entry.minutes)}
        found.append(Exercise(part=file.part, **fields))
    ids = [exercise.id for exercise in found]
    if twice := [id for id in ids if ids.count(id) > 1]:
        raise UsageError(f"{path}: exercise {twice[0]} is there twice")
    return file.setup, found


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


# --- the model in use, and its record -------------------------------------------------------------


def model_in_use() -> str:
    """The name of the model that was loaded last, else of the first embedded one."""
    from replib.models.bridge import last_loaded, model_info
    from replib.models.sources import available_embedded

    model = last_loaded()
    if model is not None:
        return model_info(model).name
    if not (names := available_embedded()):
        raise UsageError("no model was loaded, and none is embedded; load one with load_model")
    return names[0]


def find_record(paper: str, model: str | None = None) -> dict[str, Any]:
    """The record of a chapter on a model: of the user's own run if there is one, else certified."""
    model = model or model_in_use()
    root = find_root()
    for runs in RUNS:
        path = root / runs / paper / model_slug(model) / "record.json"
        if path.is_file():
            return read_record(path)
    raise UsageError(
        f"no record of {paper} on {model}; make one: replib run {paper} --model {model}"
    )


def measured(key: str, paper: str | None = None, model: str | None = None) -> Any:
    """A number of a record, as the pages show it: `measured("claims.1.8.value", "ioi-…")`.

    None if it was not measured on this model. UsageError for an unknown key.
    """
    if paper is None:
        *first, key = key.split(" ")
        if not first:
            raise UsageError(f"measured({key!r}): write 'PAPER KEY', or name the paper")
        paper = first[0]
    return record_value(find_record(paper, model), key)


# --- checking -------------------------------------------------------------------------------------


def check(id: str, answer: Any = ..., model: str | TransformerBridge | None = None) -> Verdict:
    """Is this answer right? `model` is a name, or a loaded model; without it, the one loaded last.

    UsageError for an unknown exercise; any answer, of whatever type, has a verdict.
    """
    exercise = find_exercise(id)
    if answer is ... or answer is None:
        return Verdict("unanswered", f"put your answer to {id} in place of ...")
    if isinstance(model, str) or model is None:
        name, loaded = model or model_in_use(), None
    else:
        from replib.models.bridge import model_info

        name, loaded = model_info(model).name, model
    if exercise.record:
        return _against_record(exercise, answer, name)
    if "options" in exercise.check:
        return _against_options(exercise, answer)
    return _against_test(exercise, answer, name, loaded)


def _number(answer: Any) -> float | None:
    """A number of any library, as a float; None if it is no finite number."""
    if isinstance(answer, str | bool):
        return None
    try:
        number = float(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def accepted(exercise: Exercise, model: str) -> tuple[float, float, float] | None:
    """(value, lowest and highest answer that counts) by the record; None if it was not measured.

    `within: interval` takes the record's interval of the same number; where it has none, or one
    without width, and for every other `within`, the distance is at least 1% of the value.
    """
    paper, key = exercise.record
    record = find_record(paper, model)
    value = record_value(record, key)
    if value is None:
        return None
    value, within = float(value), exercise.check["within"]
    least = 0.01 * abs(value)
    if within == "interval":
        stem = key.rpartition(".")[0]
        low, high = (record_values(record).get(f"{stem}.{end}") for end in ("low", "high"))
        if low is None or high is None:
            low = high = value
        return value, min(float(low), value - least), max(float(high), value + least)
    number = float(within.rstrip("%"))
    distance = max(number / 100 * abs(value) if within.endswith("%") else number, least)
    return value, value - distance, value + distance


def _against_record(exercise: Exercise, answer: Any, model: str) -> Verdict:
    number = _number(answer)
    if number is None:
        return Verdict("wrong", f"the answer is a number, not {one_line(repr(answer), 60)}")
    try:
        bounds = accepted(exercise, model)
    except UsageError as error:  # there is no record
        return Verdict("unchecked", str(error))
    paper, key = exercise.record
    if bounds is None:
        return Verdict("unchecked", f"{key} of {paper} was not measured on {model}")
    value, low, high = bounds
    if low <= number <= high:
        said = f"{model} gave {value:.3g}; {low:.3g} to {high:.3g} counts as right"
        return Verdict("right", said)
    return Verdict("wrong", exercise.check["above" if number > high else "below"])


def _against_options(exercise: Exercise, answer: Any) -> Verdict:
    options = exercise.check["options"]
    letter = answer.strip().lower() if isinstance(answer, str) else None
    if letter not in options:
        names = ", ".join(options)
        return Verdict("wrong", f"choose one of {names}, not {one_line(repr(answer), 60)}")
    if letter == exercise.check["right"]:
        return Verdict("right", options[letter]["text"])
    return Verdict("wrong", options[letter]["hint"])


def _against_test(
    exercise: Exercise, answer: Any, name: str, loaded: TransformerBridge | None
) -> Verdict:
    def value_of(key: str) -> Any:
        return measured(key if " " in key else f"{exercise.part} {key}", model=name)

    # The code is the book's own, from the exercises' file.
    space: dict[str, Any] = {"measured": value_of, "model_name": name}
    exec(compile(exercise.check["test"], f"<test of {exercise.id}>", "exec"), space)
    test = space["test"]
    extra = ()
    if "model" in inspect.signature(test).parameters:
        extra = (loaded if loaded is not None else _loaded(name),)
    try:
        test(answer, *extra)
    except AssertionError as error:
        return Verdict("wrong", one_line(str(error) or "a test of it fails", 300))
    except NotImplementedError:
        return Verdict("unanswered", f"{exercise.answer} is not written yet")
    except UsageError as error:  # of a record that is not there
        return Verdict("unchecked", str(error))
    except Exception as error:
        said = f"trying it ended in {type(error).__name__}: {error}"
        return Verdict("wrong", one_line(said, 300))
    return Verdict("right", exercise.title)


def _loaded(name: str) -> TransformerBridge:
    """The loaded model of this name, or a new one."""
    from replib.models.bridge import last_loaded, model_info
    from replib.models.load import load_model

    model = last_loaded()
    return model if model is not None and model_info(model).name == name else load_model(name)
