"""A user's own prompts, from CSV, JSON or JSON lines."""

import csv
import io
import json
import random
import string
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.colored_objects import colored_pair, make_questions
from replib.prompts.pairs import Pair, PromptPairs, assemble
from replib.prompts.tokens import check_tokenizer, continuation_ids, single_token

FILE_COLUMNS = ("clean", "corrupted", "answer", "foil")


def _read_text(path: str | Path) -> str:
    """The file as UTF-8 text, with or without a byte order mark."""
    path = Path(path)
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
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # no tokenizer reads half a character
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    return content


def rows_of_file(path: Path, columns: Sequence[str], more: Sequence[str] = ()) -> dict[str, object]:
    """The rows of a reader's JSON, JSONL or CSV file by name: "FILE row 3", counted from 1.

    A CSV has exactly `columns`, and perhaps some of `more`; rows of the others are not looked into.

    Raises:
        UsageError: a file that is missing, empty, not UTF-8, of an unknown kind, or broken.
    """
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
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise UsageError(f"{path} line {reader.line_num}: not CSV ({error})") from None
        header = reader.fieldnames or []
        if sorted(set(header) - set(more)) != sorted(columns) or len(set(header)) < len(header):
            raise UsageError(
                f"{path}: the columns must be {', '.join(columns)}, not {', '.join(header)}"
            )
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return {f"{path} row {i}": row for i, row in enumerate(rows, 1)}


def _answer_token(tokenizer: PreTrainedTokenizerBase, where: str, key: str, row: dict) -> int:
    prompt, word = row["clean"], row[key]
    letters = string.ascii_letters
    if prompt[-1] in letters and word[0] in letters:
        raise UsageError(
            f"{where}: {key} {word!r} would be joined to the last word of clean; "
            f"begin it with a space: {' ' + word!r}"
        )
    token = single_token(tokenizer, word, prompt)
    if token is None:
        pieces = tokenizer.convert_ids_to_tokens(continuation_ids(tokenizer, prompt, word))
        raise UsageError(
            f"{where}: {key} {word!r} must be one known token after clean; "
            f"this tokenizer reads {pieces or 'the two together in another way'}"
        )
    return token


def pairs_from_file(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> PromptPairs:
    """A reader's own prompts: JSON (list of objects), JSONL or CSV, UTF-8.

    Columns, no others: clean, corrupted (prompts with equally many tokens), answer, foil (each one
    token as it follows the clean prompt, so usually with its leading space). "END" is the only
    position; each prompt is a group of its own. Rows are counted from 1, without a CSV's header
    and blank lines.

    Raises:
        UsageError: naming the row and the reason; also for a file that is missing, empty, not
            UTF-8, of an unknown kind or with other columns.
    """
    path = Path(path)
    check_tokenizer(tokenizer, str(path), 1)
    rows = rows_of_file(path, FILE_COLUMNS)
    pairs: list[Pair] = []
    seen: dict[tuple[str, ...], str] = {}
    for where, row in rows.items():
        if not isinstance(row, dict) or set(row) != set(FILE_COLUMNS):
            got = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UsageError(f"{where}: must have {', '.join(FILE_COLUMNS)} and no more, not {got}")
        for key in FILE_COLUMNS:
            if not isinstance(row[key], str) or not row[key].strip():
                raise UsageError(f"{where}: {key} must be text, not {row[key]!r}")
        values = tuple(row[key] for key in FILE_COLUMNS)
        if values in seen:
            raise UsageError(f"{where}: repeats {seen[values].removeprefix(f'{path} ')}")
        seen[values] = where
        answer, foil = (_answer_token(tokenizer, where, key, row) for key in ("answer", "foil"))
        group = where.removeprefix(f"{path} ")
        pairs.append(Pair(row["clean"], row["corrupted"], answer, foil, {}, group))
    return assemble(tokenizer, path.stem, pairs, {}, list(rows))


def colored_objects_from_file(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, seed: int = 0
) -> PromptPairs:
    """Colored Objects prompts in the format of the paper authors' data files (cobjs_data_42.json).

    A JSON list of [prompt, answer]; the prompt is one or more questions of the form that
    `colored_objects_pairs` writes, the answer the colour. Corrupted: another object of the last
    question, of as many tokens, is asked about (drawn by `seed`). Positions and candidates as in
    `colored_objects_pairs`; an object of several tokens is marked at its last one.

    Raises:
        UsageError: naming the row and the reason; also for a missing, empty or non-JSON file.
    """
    path = Path(path)
    check_tokenizer(tokenizer, str(path), 1)
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path}: unknown kind of file; use .json")
    rows = rows_of_file(path, FILE_COLUMNS)
    rng = random.Random(seed)
    pairs: list[Pair] = []
    seen: dict[str, str] = {}
    for where, row in rows.items():
        if not isinstance(row, list) or [type(part) for part in row] != [str, str]:
            raise UsageError(f"{where}: must be a list of two texts, [prompt, answer]")
        prompt, answer = row
        if prompt in seen:
            raise UsageError(f"{where}: repeats {seen[prompt].removeprefix(f'{path} ')}")
        seen[prompt] = where
        try:
            test = make_questions(prompt)[-1]
            things = [word for word, _ in test.objects]
            right = test.colors[test.queried][0]
            if answer.strip().lower() != right.lower():
                raise ValueError(f"the answer is {answer!r} and the prompt says {right!r}")
            size = {t: len(continuation_ids(tokenizer, "the", f" {t}")) for t in things}
            others = [
                t
                for i, t in enumerate(things)
                if i != test.queried and size[t] == size[things[test.queried]]
            ]
            if not others:
                raise ValueError(
                    f"no other object has as many tokens as {things[test.queried]!r} "
                    "in this tokenizer"
                )
            pair = colored_pair(tokenizer, prompt, rng.choice(others))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        if pairs and len(pair.candidates) != len(pairs[0].candidates):
            raise UsageError(
                f"{where}: the last question has {len(pair.candidates)} objects, "
                f"row 1 has {len(pairs[0].candidates)}"
            )
        pairs.append(pair)
    return assemble(tokenizer, path.stem, pairs, {}, list(rows))


# The files that any chapter may take: by parameter, functions of a tokenizer and a path. A chapter
# with files of its own has a function `file_readers` that returns the like.
READERS = {
    "prompts_file": pairs_from_file,
    "colored_objects_file": colored_objects_from_file,
}
