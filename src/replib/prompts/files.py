"""A user's own prompts, from CSV, JSON or JSON lines."""

import csv
import io
import json
import logging
import random
import re
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError, one_line
from replib.prompts.colored_objects import colored_pair, make_questions
from replib.prompts.pairs import Pair, PromptPairs, assemble
from replib.prompts.tokens import check_tokenizer, continuation_ids, single_token

log = logging.getLogger(__name__)
_NO_BREAK = re.compile("[\u00a0\u2007\u202f]")
# What nobody sees and a tokenizer reads; joiners belong to the letters of some scripts.
_UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]|(?<![^\x00-\x7f])[\u200c-\u200f]")
_ALIKE = str.maketrans(dict.fromkeys("\u2018\u2019\u02bb\u02bc\u2032\u00b4`", "'"))


def comparable(text: str) -> str:
    """The text as names are compared: accents joined to their letters (NFC), one kind of apostrophe
    and of space."""
    return unicodedata.normalize("NFC", _NO_BREAK.sub(" ", text).translate(_ALIKE))


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


class _Twice(NamedTuple):
    """An object in which a key comes twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Twice:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    keys = [key for key, _ in pairs]
    return _Twice(next(key for key in content if keys.count(key) > 1))


def _parse_json(text: str, where: str) -> object:
    try:
        content = json.loads(text, object_pairs_hook=_object)
        json.dumps(content, ensure_ascii=False).encode()  # no tokenizer reads half a character
        return content
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from None


def read_rows(path: Path, kind: type[AnyRow], once: Sequence[str] = ()) -> dict[str, AnyRow]:
    """The rows of a reader's JSON, JSONL or CSV file by name: "FILE row 3", counted from 1.

    UsageError for a file that is missing, empty, not UTF-8, of an unknown kind, or broken; for a
    row that lacks a column, has one twice or others, or something else than text in one, or that
    repeats another in the columns `once`; for a character that nobody sees. Letters with separate
    accents (NFD) and no-break spaces become those that a model writes, and the log says so.
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
            kind_given = "dict" if isinstance(rows, _Twice) else type(rows).__name__
            raise UsageError(f"{path}: must hold a list of rows, not a {kind_given}")
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
    changed: dict[str, list[str]] = {}
    for i, content in enumerate(rows, 1):
        where = f"{path} row {i}"
        if isinstance(content, _Twice):
            raise UsageError(f"{where}: key {content.key!r} is there twice; which one is right?")
        try:
            row = kind.model_validate(_plain(content, where, str(i), changed))
        except ValidationError as failed:
            raise UsageError(f"{where}: {_wrong(failed, content, columns)}") from None
        if (key := tuple(getattr(row, name) for name in once)) and key in seen:
            raise UsageError(f"{where}: repeats row {seen[key]} ({', '.join(once)})")
        seen[key] = i
        found[where] = row
    if changed:
        said = (f"{what} in row {', '.join(dict.fromkeys(at))}" for what, at in changed.items())
        log.warning("%s: %s", path, one_line("; ".join(said)))
    return found


def _plain(content: Any, where: str, row: str, changed: dict[str, list[str]]) -> Any:
    """A row's content with joined accents and plain spaces; `changed` gets the rows of each."""
    if not isinstance(content, dict | list):
        return content
    found = dict(content) if isinstance(content, dict) else dict(enumerate(content, 1))
    for key, text in found.items():
        if not isinstance(text, str):
            continue
        if unseen := _UNSEEN.search(text):
            problem = f"{text!r} has {unseen[0]!r}, which is not seen and yet read; leave it out"
            raise UsageError(f"{where}: {key} {problem}")
        spaced = _NO_BREAK.sub(" ", text)
        found[key] = unicodedata.normalize("NFC", spaced)
        if spaced != text:
            changed.setdefault("no-break spaces became spaces", []).append(row)
        if found[key] != spaced:
            changed.setdefault("accents were joined to their letters (NFC)", []).append(row)
    return found if isinstance(content, dict) else list(found.values())


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
        answer, foil = (_answer_token(tokenizer, where, key, row) for key in ("answer", "foil"))
        group = where.removeprefix(f"{path} ")
        pairs.append(Pair(row.clean, row.corrupted, answer, foil, {}, group))
    found = assemble(tokenizer, path.stem, pairs, {}, list(rows))
    if len(rows) < 2:  # after what is wrong in the row itself
        raise UsageError(f"{path} holds 1 row; give 2 or more: half find heads, half report them")
    return found


def colored_objects_from_file(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, seed: int = 0
) -> PromptPairs:
    """Colored Objects prompts in the format of the paper authors' data files (cobjs_data_42.json).

    A JSON list of [prompt, answer]; the prompt is one or more questions of the form that
    `colored_objects_pairs` writes, the answer the colour. Corrupted: another object of the last
    question, of as many tokens, is asked about (drawn by `seed`); a prompt that has none in this
    tokenizer is left out, counted ("rows") and logged. Positions and candidates as in
    `colored_objects_pairs`; an object of several tokens is marked at its last one.

    UsageError as `read_rows`, for a prompt that does not fit, naming the row, and if none is left.
    """
    path = Path(path)
    check_tokenizer(tokenizer, str(path), 1)
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path}: unknown kind of file; use .json")
    rows = read_rows(path, ColoredRow, once=("prompt",))
    rng = random.Random(seed)
    pairs: dict[str, Pair] = {}
    left: list[str] = []
    for where, row in rows.items():
        prompt, answer = row.prompt, row.answer
        try:
            test = make_questions(prompt)[-1]
            things = [word for word, _ in test.objects]
            asked, right = things[test.queried], test.colors[test.queried][0]
            if answer.strip().lower() != right.lower():
                raise ValueError(f"the answer is {answer!r} and the prompt says {right!r}")
            size = {t: len(continuation_ids(tokenizer, "the", f" {t}")) for t in things}
            others = [t for t in things if t != asked and size[t] == size[asked]]
            if not others:
                left.append(where)
                continue
            pair = colored_pair(tokenizer, prompt, rng.choice(others))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        first = next(iter(pairs.values()), pair)
        if (n := len(pair.candidates)) != (n_first := len(first.candidates)):
            raise UsageError(f"{where}: the last question has {n} objects, others have {n_first}")
        pairs[where] = pair
    if left:
        what = "no other object has as many tokens in this tokenizer as the one that is asked about"
        if not pairs:
            raise UsageError(f"{left[0]}: {what}, and so in all rows")
        log.warning("%s: %d rows left out (%s): %s", path, len(left), left[0].split()[-1], what)
    every = list(pairs.values())
    return assemble(tokenizer, path.stem, every, {"rows": len(left)}, list(pairs))


# The files that any chapter may take: by parameter, functions of a tokenizer and a path. A chapter
# with files of its own has a function `file_readers` that returns the like.
READERS = {"prompts_file": pairs_from_file, "colored_objects_file": colored_objects_from_file}
