"""What claims may look like, in a file and in a record, and the one line that says where not.

`fit` checks plain content, as YAML or JSON gave it, against a pydantic model. All models here and
in the workshop are `Strict`: no other keys, no value turned into another type, finite numbers.
"""

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from replib.claims.rules import OUTCOMES, RESERVED
from replib.errors import UsageError, did_you_mean, find_control, one_line

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A mapping with exactly these keys, whose values are what they should be from the start."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


# --- single values --------------------------------------------------------------------------------


def _shown(text: str) -> str:
    if control := find_control(text, "\n\t"):
        raise ValueError(f"{control!r} cannot stand in a text")
    return text


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ValueError(f"{_given(value)} is not a number")
    if not abs(value) <= sys.float_info.max:
        raise ValueError(_not_finite(value))
    return value


def _scalar(value: Any) -> Any:
    if value is None:
        return None
    return _shown(value) if isinstance(value, str) else _number(value)


def _different(values: list[Any]) -> list[Any]:
    kinds = [(type(value), value) for value in values]
    if twice := [value for kind, value in kinds if kinds.count((kind, value)) > 1]:
        raise ValueError(f"{_given(twice[0])} is there twice")
    return values


Text = Annotated[str, AfterValidator(_shown)]
Words = Annotated[str, Field(min_length=1), AfterValidator(_shown)]
Slug = Annotated[str, Field(pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]
ClaimId = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(\.[A-Za-z0-9]+)*$")]
Key = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_]*$")]
Whole = Annotated[int, AfterValidator(_number)]
Count = Annotated[int, Field(ge=0), AfterValidator(_number)]
Number = Annotated[Any, AfterValidator(_number)]  # a truth value too
Scalar = Annotated[Any, AfterValidator(_scalar)]  # a text, a number, a truth value or null
Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]
Different = AfterValidator(_different)  # no value of a list comes twice


# --- what a notebook hands over -------------------------------------------------------------------


class Source(Strict):
    """Where the paper has its number."""

    mark: Literal["abstract", "figure", "released code", "second-hand", "none"]
    where: Text | None  # section or figure


class SmallestEffect(Strict):
    """Less would not matter, and why; "fails" is evidence that the effect is smaller than this."""

    value: Number
    reason: Words


class Rule(Strict):
    """How a claim was decided: in words, and as expressions over its numbers."""

    text: Text
    gate: Text | None
    gate_text: Text | None
    holds_if: Text
    fails_if: Text
    smallest_effect: SmallestEffect | None = None


def _free(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} cannot name a number")
    return name


class Measured(Strict, extra="allow"):
    """The value, its unit and a note, and every other number of the claim by its name."""

    value: Number | None
    unit: Text
    note: Text
    __pydantic_extra__: dict[Annotated[Key, AfterValidator(_free)], Number | None]


class Null(Strict, extra="allow"):
    """The null in words, and the numbers of its distribution."""

    description: Text | None
    __pydantic_extra__: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Number | None]


class Found(Strict):
    """What one of two runs gave for a claim. None in a number's place: it was not finite."""

    outcome: Literal[OUTCOMES]
    reason: Text
    measured: Measured | None
    interval: Interval | None
    n: Count | None
    null: Null | None


class Unstable(Strict):
    """What two runs of one computation gave that differ in threads and instruction sets only."""

    first: Found
    second: Found


class MeasuredClaim(Strict):
    """A claim as a record has it. None in a number's place: it was not finite."""

    id: ClaimId
    statement: Words
    reported: Text | None
    source: Source
    measured: Measured | None
    interval: Interval | None
    n: Count | None
    null: Null | None
    decision_rule: Rule
    across: list[Key] | None = None  # what is compared, if the claim compares models
    outcome: Literal[OUTCOMES]
    reason: Text
    scope: Literal["replication", "transfer", "method"]
    unstable: Unstable | None = None  # two outcomes; the numbers above are those of one of them

    @model_validator(mode="after")
    def _fits_its_outcome(self) -> "MeasuredClaim":
        decided = self.outcome in ("holds", "fails", "unclear")
        if decided and (self.measured is None or self.measured.value is None):
            raise ValueError(f"measured has no finite value, but the outcome is {self.outcome}")
        if decided and None in (self.interval or ()):
            raise ValueError(f"interval has no finite ends, but the outcome is {self.outcome}")
        if self.outcome == "not_testable" and not self.reason:
            raise ValueError("reason is empty, but the outcome is not_testable")
        if self.outcome == "not_attempted" and self.measured is not None:
            raise ValueError("measured is there, but the outcome is not_attempted")
        if self.unstable is not None:
            both = (self.unstable.first, self.unstable.second)
            if self.outcome != "unclear" or both[0].outcome == both[1].outcome:
                raise ValueError("unstable is there, but not two outcomes, of which none is clear")
            if self.measured not in [one.measured for one in both]:
                raise ValueError("measured is of neither of the two runs in unstable")
        return self


class Measurement(Strict):
    """A number that a page shows and that is not a claim's own."""

    value: Number | None
    interval: Interval | None
    n: Count | None
    unit: Text


class Role(Strict):
    """Which heads, [layer, head], play a role, and the rule that decided."""

    heads: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    rule: Words


# --- the check, and its one line ------------------------------------------------------------------


def fit(model: type[Model], content: Any, where: str) -> Model:
    """`content` as the model; UsageError, in one line, unless it fits."""
    try:
        return model.model_validate(content)
    except ValidationError as failed:
        errors = failed.errors(include_url=False)
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    # A misspelt key is also a missing one: the first says more.
    error = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    place, models = _place(model, content, error["loc"])
    raise UsageError(f"{where}{place}: {one_line(_message(error, models), 300)}")


def _place(model: type[BaseModel], content: Any, steps: tuple) -> tuple[str, list[type[BaseModel]]]:
    """(`, claim 1.8, source`, the models that may stand there) of an error's steps."""
    place, node, models = "", content, [model]
    for step in steps:
        try:
            node = node[step]
        except (LookupError, TypeError):  # a missing key, or a mark of pydantic's own
            continue
        if isinstance(step, int):
            kind = "exercise" if "exercises" in steps else "claim"
            name = node.get("id") if isinstance(node, Mapping) else None
            place += f", {kind} {name}" if name else f", entry {step + 1}"
            continue
        fields = [one.model_fields[step] for one in models if step in one.model_fields]
        if not fields and any(one.model_config["extra"] == "forbid" for one in models):
            break  # an unknown key
        models = [inner for field in fields for inner in _models_in(field.annotation)]
        place += f", {step}" if step not in ("claims", "exercises") else ""
    return place, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _message(error: Mapping[str, Any], models: list[type[BaseModel]]) -> str:
    key, given = error["loc"][-1] if error["loc"] else "", error["input"]
    match error["type"]:
        case "missing":
            return f"{key!r} is a required property"
        case "extra_forbidden":
            known = [name for model in models for name in model.model_fields]
            return f"unknown key {key!r}{did_you_mean(str(key), known)}"
        case "value_error":
            return str(error["ctx"]["error"])
        case "finite_number" | "float_type" if type(given) in (int, float):  # an int: too large
            return _not_finite(given)
    said = error["msg"].partition(" should ")[2].partition(" or instance of")[0]
    return f"{_given(given)} should {said}" if said else error["msg"]


def _not_finite(number: Any) -> str:
    return f"a number is not finite: {_given(number)}; null stands for such a one"


def _given(value: Any) -> str:
    try:
        return one_line(repr(value), 100)
    except (ValueError, RecursionError):  # too many digits, or too deep
        return f"a {type(value).__name__}"
