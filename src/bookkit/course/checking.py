"""`replib.check("ioi-1", 0.25)` checks an answer to an exercise, against the record of the model in
use, without a network."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

from bookkit.course.exercises import ByOptions, ByRecord, ByTest, Exercise, find_exercise
from bookkit.records import read_record, record_value, record_values
from replib.errors import UsageError, one_line
from replib.files import find_root
from replib.models.sources import available_embedded, model_slug, networks_of

RUNS = ("build/runs", "results")  # where records are looked for: the user's own first


@dataclass(frozen=True)
class Verdict:
    """What became of an answer; true if it is right."""

    outcome: str  # right, wrong, unanswered; unchecked where the model's record cannot decide
    text: str

    def __bool__(self) -> bool:
        return self.outcome == "right"

    def __repr__(self) -> str:
        return f"{self.outcome}: {self.text}"


def name_of(model: Any) -> str:
    """A model's name; without one that of the model loaded last, else of the first embedded one."""
    if isinstance(model, str):
        return model
    from replib.models.bridge import last_loaded, model_info

    model = last_loaded() if model is None else model
    if model is not None:
        return model_info(model).name
    if names := available_embedded():
        return names[0]
    raise UsageError("no model was loaded, and none is embedded; load one with load_model")


def find_record(paper: str, model: str | None = None) -> dict[str, Any]:
    """The record of a chapter on a model: of the user's own run if there is one, else certified. Of
    a chapter that trains its own networks it is that of the trained ones, whatever model is in use.
    """
    own = networks_of(paper)
    model = name_of(own[0] if own and model not in own else model)
    for runs in RUNS:
        path = find_root() / runs / paper / model_slug(model) / "record.json"
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


def check(id: str, answer: Any = ..., model: Any = None) -> Verdict:
    """Is this answer right? `model` is a name, or a loaded model; without it, the one loaded last.

    UsageError for an unknown exercise; any answer, of whatever type, has a verdict.
    """
    exercise = find_exercise(id)
    if answer is ... or answer is None:
        return Verdict("unanswered", f"put your answer to {id} in place of ...")
    name = name_of(model)
    match exercise.check:
        case ByRecord():
            return _against_record(exercise, answer, name)
        case ByOptions() as rule:
            return _against_options(rule, answer)
        case ByTest() as rule:
            return _against_test(exercise, rule.test, answer, model, name)


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
    value, within = float(value), exercise.check.within
    least = 0.01 * abs(value)
    if within == "interval":
        stem = key.rpartition(".")[0]
        low, high = (record_values(record).get(f"{stem}.{end}") for end in ("low", "high"))
        if low is None or high is None:
            low = high = value
    else:
        number = float(within.rstrip("%"))
        distance = number / 100 * abs(value) if within.endswith("%") else number
        low, high = value - distance, value + distance
    return value, min(float(low), value - least), max(float(high), value + least)


def _against_record(exercise: Exercise, answer: Any, model: str) -> Verdict:
    number = _number(answer)
    if number is None:
        return Verdict("wrong", f"the answer is a number, not {one_line(repr(answer), 60)}")
    try:
        bounds = accepted(exercise, model)
    except UsageError as error:  # there is no record
        return Verdict("unchecked", str(error))
    if bounds is None:
        paper, key = exercise.record
        return Verdict("unchecked", f"{key} of {paper} was not measured on {model}")
    value, low, high = bounds
    if low <= number <= high:
        said = f"{model} gave {value:.3g}; {low:.3g} to {high:.3g} counts as right"
        return Verdict("right", said)
    return Verdict("wrong", exercise.check.above if number > high else exercise.check.below)


def _against_options(rule: ByOptions, answer: Any) -> Verdict:
    letter = answer.strip().lower() if isinstance(answer, str) else None
    if letter not in rule.options:
        names = ", ".join(rule.options)
        return Verdict("wrong", f"choose one of {names}, not {one_line(repr(answer), 60)}")
    if letter == rule.right:
        return Verdict("right", rule.options[letter].text)
    return Verdict("wrong", rule.options[letter].hint)


def _against_test(exercise: Exercise, code: str, answer: Any, model: Any, name: str) -> Verdict:
    def value_of(key: str) -> Any:
        return measured(key if " " in key else f"{exercise.part} {key}", model=name)

    # The code is the book's own, from the exercises' file.
    space: dict[str, Any] = {"measured": value_of, "model_name": name}
    exec(compile(code, f"<test of {exercise.id}>", "exec"), space)
    arguments = [answer]
    if "model" in inspect.signature(space["test"]).parameters:
        arguments.append(_loaded(name) if isinstance(model, str | None) else model)
    try:
        space["test"](*arguments)
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


def _loaded(name: str) -> Any:
    """The loaded model of this name, or a new one."""
    from replib.models.bridge import last_loaded, model_info
    from replib.models.load import load_model

    model = last_loaded()
    return model if model is not None and model_info(model).name == name else load_model(name)
