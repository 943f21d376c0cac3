"""What a file or a record must look like; one line says where it does not."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import jsonschema

from replib.errors import UsageError, did_you_mean, find_control, one_line


def _is_finite(value: Any, kinds: Any = int | float) -> bool:
    """A number that a float can be near to; true and false are none."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _fits_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """As the standard has it: `$` is the end, where Python's is before a last line break too."""
    if validator.is_type(value, "string") and not re.fullmatch(pattern, value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


# Numbers are finite, 1.0 is no integer, and no string holds a control character.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"pattern": _fits_pattern},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "number": lambda checker, value: _is_finite(value),
            "integer": lambda checker, value: _is_finite(value, int),
            "string": lambda checker, value: (
                isinstance(value, str) and not find_control(value, "\n\t")
            ),
        }
    ),
)


@cache
def _schema(name: str) -> Any:
    text = resources.files("replib").joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    return _Validator(json.loads(text))


def check_schema(content: Any, schema: str, where: str) -> None:
    """UsageError, in one line, unless `content` fits the package's `<schema>.schema.json`."""
    try:
        error = jsonschema.exceptions.best_match(_schema(schema).iter_errors(content))
    except (RecursionError, ValueError):  # raised by the library while it words its error
        raise UsageError(f"{where}: nested too deeply, or a number is too long") from None
    if error is None:
        return
    place = where
    node = content
    for step in error.absolute_path:
        node = node[step]
        name = node.get("id") if isinstance(node, Mapping) else None
        if isinstance(step, int):
            place += f", {f'claim {name}' if name else f'entry {step + 1}'}"
        elif step != "claims":
            place += f", {step}"
    message = error.message
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        message = f"unknown key {unknown!r}{did_you_mean(str(unknown), known)}"
    elif error.validator == "type":
        given = error.instance
        if isinstance(given, str) and (control := find_control(given, "\n\t")):
            message = f"{control!r} cannot stand in a text"
        elif type(given) in (int, float) and not _is_finite(given):
            message = f"a number is not finite: {given!r}; null stands for such a one"
    raise UsageError(f"{place}: {one_line(message)}")
