"""A user's own prompts, from CSV, JSON or JSON lines."""

import csv
import io
import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.colored_objects import colored_pair, make_questions
from replib.prompts.forms import mixed_word, one_form
from replib.prompts.pairs import Pair, PromptPairs, assemble
from replib.prompts.tokens import check_text, check_tokenizer, continuation_ids, single_token


class Row(BaseModel):
    """One row of a reader's file: a text in each column, that says something."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Said = Annotated[str, StringConstraints(pattern=r"\S")]  # not only white space
Stripped = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
AnyRow = TypeVar("AnyRow", bound=Row)


class PairRow(Row):
    """Two prompts with the right and the wrong answer to the first."""

    clean: Said
    corrupted: Said
    answer: Said
    foil: Said


class ColoredRow(Row):
    """[prompt, answer], as in the paper authors' data files."""

    prompt: str
    answer: str

    @model_validator(mode="before")
    @classmethod
    def _of_a_list(cls, row: Any) -> Any:
        if not isinstance(row, list) or [type(part) for part in row] != [str, str]:
            raise ValueError("must be a list of two texts, [prompt, answer]")
        return dict(zip(("prompt", "answer"), row, strict=True))


def _read_text(path: Path) -> str:
    """The file as UTF-8 text, with or without a byte order mark."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if not text.strip():
        raise UsageError(f"{path} is empty")
    return text


def _parse_json(text: str, where: str) -> object:
    n_objects = 0

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal n_objects
        n_objects += 1
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            row = "" if " row " in where else f" row {n_objects}"  # of flat rows, one an object
            raise UsageError(f"{where}{row}: key {twice[0]!r} is there twice; which one counts?")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=each_once)
        json.dumps(content, ensure_ascii=False).encode()  # no tokenizer reads half a character
        return content
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from None


def read_rows(path: Path, kind: type[AnyRow], once: Sequence[str] = ()) -> dict[str, AnyRow]:
    """The rows of a reader's JSON, JSONL or CSV file by name: "FILE row 3", counted from 1.

    UsageError for a file that is missing, empty, not UTF-8, of an unknown kind, or broken; for a
    row that lacks a column, has others, or something else than text in one, or that repeats another
    in the columns `once`.
    """
    needed = [name for name, field in kind.model_fields.items() if field.is_required()]
    more = [name for name in kind.model_fields if name not in needed]
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl", ".csv"):
        raise UsageError(f"{path}: unknown kind of file; use .json, .jsonl or .csv")
    text = _read_text(path)
    if suffix == ".json":
        rows = _parse_json(text, str(path))
        if not isinstance(rows, list):
            raise UsageError(f"{path}: must hold a list of rows, not a {type(rows).__name__}")
    elif suffix == ".jsonl":
        lines = [line for line in text.split("\n") if line.strip()]
        rows = [_parse_json(line, f"{path} row {i}") for i, line in enumerate(lines, 1)]
    else:
        begun, lines = 1, csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            for _ in lines:
                begun = lines.line_num + 1
        except csv.Error as error:  # a row may go over several lines
            to = f"s {begun} to {lines.line_num}" if lines.line_num > begun else f" {begun}"
            raise UsageError(f"{path} line{to}: not CSV ({error})") from None
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
        header = reader.fieldnames or []
        if sorted(set(header) - set(more)) != sorted(needed) or len(set(header)) < len(header):
            must = f"the columns must be {', '.join(needed)}"
            raise UsageError(f"{path}: {must}, not {', '.join(header)}")
    if not rows:
        raise UsageError(f"{path} holds no rows")
    columns = ", ".join(needed) + (f" (and, if you like, {', '.join(more)})" if more else "")
    found: dict[str, AnyRow] = {}
    seen: dict[tuple[str, ...], int] = {}
    changed: dict[str, int] = {}
    for i, content in enumerate(rows, 1):
        where = f"{path} row {i}"
        content = _in_one_form(content, where, changed)
        try:
            row = kind.model_validate(content)
        except ValidationError as failed:
            raise UsageError(f"{where}: {_wrong(failed, content, columns)}") from None
        if (key := tuple(getattr(row, name) for name in once)) and key in seen:
            raise UsageError(f"{where}: repeats row {seen[key]} ({', '.join(once)})")
        seen[key] = i
        found[where] = row
    if changed:
        said = ", ".join(f"{what} in {n} texts" for what, n in changed.items())
        print(f"{path}: read in one form: {said}")
    return found


def _in_one_form(content: Any, where: str, changed: dict[str, int]) -> Any:
    """A row with its texts as `one_form` writes them; `changed` counts what that was. UsageError
    for a word of letters that look alike and are not."""
    if isinstance(content, list):
        return [_in_one_form(part, where, changed) for part in content]
    if isinstance(content, dict):
        return {key: _in_one_form(part, where, changed) for key, part in content.items()}
    if not isinstance(content, str):
        return content
    text, what = one_form(content)
    for kind in what:
        changed[kind] = changed.get(kind, 0) + 1
    if word := mixed_word(text):
        problem = "has Latin and Cyrillic letters, which look alike; write it in one alphabet"
        raise UsageError(
            f"{where}: the word {word!r} ({word.encode('unicode_escape').decode()}) {problem}"
        )
    return text


def _wrong(failed: ValidationError, content: Any, columns: str) -> str:
    """What is wrong with a row, in words."""
    errors = failed.errors(include_url=False)
    if not errors[0]["loc"] and errors[0]["type"] == "value_error":  # of the row as a whole
        return str(errors[0]["ctx"]["error"])
    if not isinstance(content, dict):
        return f"must have {columns} and no more, not {type(content).__name__}"
    if any(e["type"] in ("missing", "extra_forbidden", "invalid_key") for e in errors):
        return f"must have {columns} and no more, not {', '.join(map(str, content))}"
    return f"{errors[0]['loc'][0]} must be text, not {errors[0]['input']!r}"


def _answer_token(tokenizer: PreTrainedTokenizerBase, where: str, key: str, row: PairRow) -> int:
    prompt, word = row.clean, getattr(row, key)
    letters, given = string.ascii_letters, f"{where}: {key} {word!r}"
    if prompt[-1] in letters and word[0] in letters:
        joined = "would be joined to the last word of clean"
        raise UsageError(f"{given} {joined}; begin it with a space: {' ' + word!r}")
    token = single_token(tokenizer, word, prompt)
    if token is None:
        pieces = tokenizer.convert_ids_to_tokens(continuation_ids(tokenizer, prompt, word))
        read = f"this tokenizer reads {pieces or 'the two together in another way'}"
        raise UsageError(f"{given} must be one known token after clean; {read}")
    return token


def pairs_from_file(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> PromptPairs:
    """A reader's own prompts: JSON (list of objects), JSONL or CSV, UTF-8.

    Columns, no others: clean, corrupted (prompts with equally many tokens), answer, foil (each one
    token as it follows the clean prompt, so usually with its leading space). "END" is the only
    position; each prompt is a group of its own. Rows are counted from 1, without a CSV's header
    and blank lines.

    UsageError as `read_rows`, and for prompts or answers that do not fit, naming the row.
    """
    path = Path(path)
    check_tokenizer(tokenizer, str(path), 1)
    rows = read_rows(path, PairRow, once=tuple(PairRow.model_fields))
    pairs: list[Pair] = []
    pad = tokenizer.pad_token
    for where, row in rows.items():
        for key in ("clean", "corrupted"):
            if pad and getattr(row, key).endswith(pad):
                filler = f"{key} ends in {pad!r}, which only fills up shorter prompts"
                raise UsageError(f"{where}: {filler}; leave it out")
            check_text(tokenizer, f"{where}: {key}", getattr(row, key))
        answer, foil = (_answer_token(tokenizer, where, key, row) for key in ("answer", "foil"))
        group = where.removeprefix(f"{path} ")
        pairs.append(Pair(row.clean, row.corrupted, answer, foil, {}, group))
    if len(rows) < 2:
        raise UsageError(f"{path} holds 1 row; give 2 or more: half find heads, half report them")
    return assemble(tokenizer, path.stem, pairs, {}, list(rows))


def colored_objects_from_file(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, seed: int = 0
) -> PromptPairs:
    """Colored Objects prompts in the format of the paper authors' data files (cobjs_data_42.json).

    A JSON list of [prompt, answer]; the prompt is one or more questions of the form that
    `colored_objects_pairs` writes, the answer the colour. Corrupted: another object of the last
    question, of as many tokens, is asked about (drawn by `seed`). Positions and candidates as in
    `colored_objects_pairs`; an object of several tokens is marked at its last one.

    UsageError as `read_rows`, and for a prompt that does not fit, naming the row.
    """
    path = Path(path)
    check_tokenizer(tokenizer, str(path), 1)
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path}: unknown kind of file; use .json")
    rows = read_rows(path, ColoredRow, once=("prompt",))
    rng = random.Random(seed)
    pairs: list[Pair] = []
    for where, row in rows.items():
        prompt, answer = row.prompt, row.answer
        check_text(tokenizer, f"{where}: prompt", prompt)
        try:
            test = make_questions(prompt)[-1]
            things = [word for word, _ in test.objects]
            asked, right = things[test.queried], test.colors[test.queried][0]
            if answer.strip().lower() != right.lower():
                raise ValueError(f"the answer is {answer!r} and the prompt says {right!r}")
            size = {t: len(continuation_ids(tokenizer, "the", f" {t}")) for t in things}
            others = [t for t in things if t != asked and size[t] == size[asked]]
            if not others:
                raise ValueError(
                    f"no other object has as many tokens as {asked!r} in this tokenizer"
                )
            pair = colored_pair(tokenizer, prompt, rng.choice(others))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        if pairs and (n := len(pair.candidates)) != (first := len(pairs[0].candidates)):
            raise UsageError(f"{where}: the last question has {n} objects, row 1 has {first}")
        pairs.append(pair)
    return assemble(tokenizer, path.stem, pairs, {}, list(rows))


# The files that any chapter may take: by parameter, functions of a tokenizer and a path. A chapter
# with files of its own has a function `file_readers` that returns the like.
READERS = {"prompts_file": pairs_from_file, "colored_objects_file": colored_objects_from_file}
