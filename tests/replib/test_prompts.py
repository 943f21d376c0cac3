"""Prompt pairs: hand-worked prompts, positions on every tokenizer, and every refusal."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, set_seed

from replib.errors import UsageError
from replib.models.sources import available_embedded
from replib.models.unpack import load_dequantised
from replib.prompts import words
from replib.prompts.capitals import capital_pairs
from replib.prompts.colored_objects import ask, colored_objects_pairs, make_questions
from replib.prompts.files import colored_objects_from_file, pairs_from_file
from replib.prompts.greater_than import greater_than_pairs
from replib.prompts.ioi import ioi_pairs
from replib.prompts.pairs import PromptPairs, first_of_groups, of_one_length
from replib.prompts.vocabulary import _PIECE, word_tokenizer

TASKS = {
    "ioi": ioi_pairs,
    "colored_objects": colored_objects_pairs,
    "two objects": partial(colored_objects_pairs, n_objects=2, n_shots=3),
    "greater_than": greater_than_pairs,
    "capitals": capital_pairs,
}
WORD = word_tokenizer()


def variant(remove=(), digits: int = 1, bos: bool = False) -> PreTrainedTokenizerFast:
    """The word tokenizer without some words, with digits in groups from the left, or with a BOS."""
    spec = json.loads(WORD.backend_tokenizer.to_str())
    vocab = [word for word in spec["model"]["vocab"] if word not in remove]
    if digits > 1:
        vocab += [f"{n:0{d}d}" for d in range(2, digits + 1) for n in range(10**d)]
    spec["model"]["vocab"] = {word: i for i, word in enumerate(vocab)}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    if digits > 1:
        pattern = _PIECE.replace("[0-9]", f"[0-9]{{1,{digits}}}", 1)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    if bos:
        eos = tokenizer.token_to_id("<eos>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", eos)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS = {"word": WORD, "word with BOS": variant(bos=True), "pairs": variant(digits=2)}


EMBEDDED = [pytest.param(name, marks=pytest.mark.embedded) for name in available_embedded()]


@cache
def find_tokenizer(kind: str):
    """One of the word tokenizers, or an embedded model's."""
    if kind in TOKENIZERS:
        return TOKENIZERS[kind]
    return AutoTokenizer.from_pretrained(load_dequantised(kind), local_files_only=True)


def decode(tokenizer, tokens) -> list[str]:
    return [tokenizer.decode([token]) for token in tokens.tolist()]


def one(**changes) -> PromptPairs:
    """Two hand-made pairs of three and two tokens."""
    fields = {
        "task": "hand-made",
        "clean": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "corrupted": torch.tensor([[1, 7, 3], [4, 6, 0]]),
        "length": torch.tensor([3, 2]),
        "answer": torch.tensor([8, 8]),
        "foil": torch.tensor([9, 9]),
        "positions": {"END": torch.tensor([2, 1]), "two": torch.tensor([[0, 1], [0, -1]])},
        "candidates": torch.tensor([[8, 9], [8, 9]]),
        "text": ("a b c", "d e"),
        "corrupted_text": ("a g c", "d f"),
        "group": ("x", "y"),
        "dropped": {},
    }
    return PromptPairs(**(fields | changes))


# --- Hand-worked ------------------------------------------------------------------------------


def test_a_colored_objects_prompt_token_by_token():
    """The positions that the paper's own script uses: colours 41, 45, 50, shot answer 30, END 61.

    Its fixed numbers hold for prompts whose words are single tokens and whose starters have two.
    """
    pairs = colored_objects_pairs(WORD, 30, seed=3)
    at = {name: where.tolist() for name, where in pairs.positions.items()}
    for i in range(30):
        tokens = decode(WORD, pairs.clean[i])
        assert len(tokens) == 62 and at["END"][i] == 61
        assert tokens[30:33] == [tokens[30].title(), "\n", "Q"]
        assert sorted(at["colors"][i]) == [41, 45, 50] and at["shot_colors"][i] == [9, 13, 18]
        assert sorted(at["objects"][i]) == [42, 46, 51] and at["query"][i] == 57
        assert (pairs.clean[i] != pairs.corrupted[i]).nonzero()[:, 0].tolist() == [57]
        other = WORD.decode([pairs.corrupted[i, 57]])
        assert decode(WORD, pairs.foil)[i] == tokens[tokens.index(other, 32) - 1].title()


def test_colored_objects_question_text():
    items = [("orange", "pen"), ("red", "cup"), ("blue", "mug")]
    assert ask("desk", "you see", items, 1) == (
        "Q: On the desk, you see an orange pen, a red cup, and a blue mug. "
        "What color is the cup?\nA:"
    )
    assert ask("floor", "there is", items[:2], 0) == (
        "Q: On the floor, there is an orange pen and a red cup. What color is the pen?\nA:"
    )


def test_every_digit_template_order_and_slot_has_its_share():
    pairs = greater_than_pairs(WORD, 200, seed=2)
    assert set(decode(WORD, pairs.answer)) == set("23456789")
    assert set(decode(WORD, pairs.foil)) == set("01234567")
    pairs = ioi_pairs(WORD, 72, seed=0)
    abba = (pairs.positions["IO"] < pairs.positions["S1"]).tolist()
    assert len(set(zip(pairs.group, abba, strict=True))) == 2 * len(words.IOI_TEMPLATES)
    for n in (2, 3):
        texts = colored_objects_pairs(WORD, 60, 5, n_objects=n).text
        asked = Counter(make_questions(text)[-1].queried for text in texts)
        assert asked == dict.fromkeys(range(n), 60 // n)


def test_capitals_that_begin_alike_or_stand_alone_are_dropped(monkeypatch):
    capitals = {
        "France": "Paris",
        "India": "New Delhi",
        "Spain": "New Delhi",  # begins like an earlier one
        "Italy": "Rome",
        "Peru Peru": "Lima",  # no other country has two tokens
    }
    monkeypatch.setattr("replib.prompts.capitals.CAPITALS", capitals)
    pairs = capital_pairs(WORD, 24, 0)
    assert pairs.dropped == {"countries": 2, "templates": 0}
    assert set(decode(WORD, pairs.answer)) == {" Paris", " New", " Rome"}
    assert not any("Spain" in text or "Peru" in text for text in pairs.text)


# --- Every task, every tokenizer, any seed --------------------------------------------------------


def check(tokenizer, pairs: PromptPairs, n: int) -> None:
    """What must be true of a generated set, read from its tokens and its text."""
    assert len(pairs) == n == len(set(pairs.text))
    for i in range(n):
        size = int(pairs.length[i])
        clean, corrupted = pairs.clean[i, :size], pairs.corrupted[i, :size]
        assert tokenizer(pairs.text[i]).input_ids == clean.tolist()
        assert tokenizer(pairs.corrupted_text[i]).input_ids == corrupted.tolist()
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in clean.tolist()
        assert set(pairs.clean[i, size:].tolist()) <= {tokenizer.pad_token_id}
        at = {
            name: [tokenizer.decode([t]) for t in clean[where[i][where[i] >= 0]].reshape(-1)]
            for name, where in pairs.positions.items()
        }
        answer, foil = (tokenizer.decode([t[i]]) for t in (pairs.answer, pairs.foil))
        last = tokenizer.decode(clean[-1:])
        assert pairs.text[i].endswith(last) and at["END"] == [last]
        assert pairs.answer[i] == tokenizer(pairs.text[i] + answer).input_ids[size]
        if pairs.task == "ioi":
            assert at["IO"] == [answer] and at["S1"] == at["S2"] == [foil]
            where = {name: int(where[i]) for name, where in pairs.positions.items()}
            assert where["S1+1"] == where["S1"] + 1 and where["S1"] < where["S2"] < where["END"]
            assert (where["IO"] < where["S1"]) == (i % 2 == 0)
            assert tokenizer.decode(corrupted[where["S2"]]) == answer
            assert (clean != corrupted).nonzero().tolist() == [[where["S2"]]]
        if pairs.task == "colored_objects":
            assert [c.title() for c in at["colors"]] == tokenizer.batch_decode(
                [[t] for t in pairs.candidates[i]]
            )
            assert at["queried"] == at["query"] == at["objects"][:1]
            question = pairs.text[i].rsplit(". ", 1)[1].removesuffix("\nA:")
            assert "".join(at["question"]).strip() == question
            assert at["wrong_colors"] == at["colors"][1:]
            *shots, test = make_questions(pairs.text[i])
            colors = [color for shot in shots for color, _ in shot.colors]
            assert [color.strip() for color in at["shot_colors"]] == colors
            for shot in shots:
                assert shot.answer == shot.colors[shot.queried][0].title()
                used = {color for color, _ in (*shot.colors, *test.colors)}
                assert len(used) == 2 * len(test.colors)
            things = [thing for question in (*shots, test) for thing, _ in question.objects]
            assert len(set(things)) == len(things)
        if pairs.task == "capitals":
            country, other = (
                next(c for c in words.CAPITALS if c in text[i])
                for text in (pairs.text, pairs.corrupted_text)
            )
            assert pairs.corrupted_text[i] == pairs.text[i].replace(country, other)
            assert f" {country}".endswith(at["country"][0])
            assert f" {words.CAPITALS[country]}".startswith(answer)
            assert f" {words.CAPITALS[other]}".startswith(foil)
        if pairs.task == "greater_than":
            start = pairs.text[i].split(" to the year ")[0][-4:]
            assert "".join(at["YY"]) == start[2:]
            assert pairs.text[i].endswith(f" to the year {start[:2]}")
            assert pairs.corrupted_text[i] == pairs.text[i].replace(start, f"{start[:2]}01")
            assert int(foil) < int(start[2 : 2 + len(answer)]) < int(answer)


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("kind", [*TOKENIZERS, *EMBEDDED])
def test_positions_point_to_the_right_tokens(kind, task, seed):
    tokenizer = find_tokenizer(kind)
    check(tokenizer, TASKS[task](tokenizer, 24, seed), 24)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_seed_alone_decides_and_the_word_tokenizer_gives_every_prompt_back(task):
    first, other = (TASKS[task](WORD, 60, seed) for seed in (1, 2))
    set_seed(5)
    again = TASKS[task](WORD, 60, 1)
    drawn = np.random.random(), torch.rand(1)  # noqa: NPY002
    set_seed(5)
    assert drawn == (np.random.random(), torch.rand(1))  # noqa: NPY002
    assert first.text == again.text and first.clean.equal(again.clean)
    assert first.corrupted_text == again.corrupted_text and first.text != other.text
    rows = zip(first.clean, first.length, strict=True)
    assert [WORD.decode(row[:size]) for row, size in rows] == list(first.text)


# --- What the tokenizer cannot do -------------------------------------------------------------


def test_dropped_words_are_counted():
    tokenizer = variant(remove=(" Mary", " John", " zoo", " guitar", " danced", " pen", " Red"))
    pairs = ioi_pairs(tokenizer, 60, 0)
    assert pairs.dropped == {"names": 2, "places": 1, "objects": 1, "templates": 1}
    assert not any("Mary" in text or "danced" in text for text in pairs.text)
    pairs = colored_objects_pairs(tokenizer, 60, 0)
    assert pairs.dropped == {"colors": 1, "objects": 1, "templates": 0}
    assert not any("red" in text for text in pairs.text)


def lacking(*texts: str) -> PreTrainedTokenizerFast:
    """The word tokenizer without these words."""
    return variant(remove=[f" {text}" for text in texts])


FEW_WORDS = (*words.NAMES[3:], *words.PLACES[1:], *words.OBJECTS[1:])


@pytest.mark.parametrize(
    ("make", "tokenizer", "n", "reason"),
    [
        (ioi_pairs, lacking(*words.NAMES[2:]), 50, "has 2 names as single tokens, 3 are"),
        (ioi_pairs, lacking(*words.PLACES), 50, "has 0 places"),
        (ioi_pairs, lacking("and"), 50, "no template"),
        (ioi_pairs, lacking(*FEW_WORDS), 500, "different prompts found, 500 were asked for"),
        (ioi_pairs, WORD, 0, "n_prompts must be at least 1, not 0"),
        (colored_objects_pairs, lacking(*words.COLORS[:3]), 50, "has 5 colours"),
        (colored_objects_pairs, variant(remove=["Q"]), 50, "does not know the words"),
        (partial(colored_objects_pairs, n_objects=4), WORD, 9, "n_objects must be 2 or 3, not 4"),
        (partial(colored_objects_pairs, n_shots=0), WORD, 9, "n_shots must be 1, 2 or 3, not 0"),
        (greater_than_pairs, variant(remove=["7"]), 50, "splits a year into digits"),
        (greater_than_pairs, variant(digits=3), 50, r"reads ' 1745' as \[' ', '174', '5'\]"),
        (greater_than_pairs, lacking(*words.NOUNS), 50, "has 0 nouns"),
        (capital_pairs, lacking(*list(words.CAPITALS)[5:]), 50, "give 40 prompts"),
        (capital_pairs, WORD, 3000, "3000 were asked for"),
    ],
)
def test_what_a_tokenizer_cannot_give_is_refused(make, tokenizer, n, reason):
    with pytest.raises(UsageError, match=reason) as error:
        make(tokenizer, n, 0)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_offsets_is_refused():
    class SlowTokenizer(PreTrainedTokenizerFast):
        is_fast = False

    slow = SlowTokenizer(tokenizer_object=WORD.backend_tokenizer)
    for make, what in [(make, 4) for make in TASKS.values()] + [(pairs_from_file, "mine.json")]:
        with pytest.raises(UsageError, match=r"needs a fast tokenizer .*, not SlowTokenizer"):
            make(slow, what)


# --- PromptPairs: bad sets cannot be built ------------------------------------------------------


END = torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"corrupted": torch.tensor([[1, 7, 3], [4, 6, 6]])}, r"prompt 1 .*same number of tokens"),
        ({"corrupted": torch.tensor([[1, 7, 0], [4, 6, 0]])}, r"prompt 0 .*same number of tokens"),
        ({"corrupted": torch.tensor([[1, 7, 3], [4, 5, 0]])}, r"prompt 1 .*the same tokens"),
        ({"corrupted": torch.tensor([[1, 7], [4, 6]])}, "differ in shape"),
        ({"length": torch.tensor([3, 0])}, r"prompt 1 .*length is not in 1\.\.3"),
        ({"length": torch.tensor([4, 2])}, r"prompt 0 .*length is not in"),
        ({"answer": torch.tensor([8, 9])}, r"prompt 1 .*answer and foil are the same"),
        ({"answer": torch.tensor([8])}, "answer must hold one number"),
        ({"positions": {}}, "END"),
        ({"positions": {"END": torch.tensor([2, 2])}}, "END"),
        ({"positions": {"END": END, "X": torch.tensor([0, 2])}}, "prompt 1 .*'X' lies outside"),
        ({"positions": {"END": END, "X": torch.tensor([-1, 0])}}, "prompt 0 .*'X' lies outside"),
        ({"positions": {"END": END, "X": torch.tensor([[0, -2], [0, 0]])}}, "prompt 0 .*outside"),
        ({"positions": {"END": END, "X": torch.tensor([0])}}, r"'X' must be \[prompt\]"),
        ({"candidates": torch.tensor([[8, 9], [9, 8]])}, r"prompt 1 .*first candidate"),
        ({"text": ("a b c",)}, "text has 1 entries for 2 prompts"),
        (
            {
                "clean": torch.tensor([[1, 2, 3, 0], [4, 5, 0, 9]]),
                "corrupted": torch.tensor([[1, 7, 3, 0], [4, 6, 0, 9]]),
            },
            r"prompt 1 .*padding",
        ),
    ],
)
def test_bad_sets_are_refused_without_the_runtime_checker_too(changes, reason):
    one()
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError, match=reason):
            one(**changes)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_rows_are_picked_and_runs_exchanged_together():
    pairs = colored_objects_pairs(WORD, 12, 0)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[[2, 5]] = True
    for index in ([2, 5], mask, slice(2, 6, 3)):
        picked = pairs[index]
        assert len(picked) == 2 and picked.text == (pairs.text[2], pairs.text[5])
        assert picked.clean.equal(pairs.clean[[2, 5]])
        assert picked.candidates.equal(pairs.candidates[[2, 5]])
        assert picked.positions["colors"].equal(pairs.positions["colors"][[2, 5]])
        assert picked.group == (pairs.group[2], pairs.group[5])
    with pytest.raises(TypeError):
        pairs[3]
    swapped = pairs.swapped()
    assert swapped.clean.equal(pairs.corrupted) and swapped.corrupted.equal(pairs.clean)
    assert (swapped.text, swapped.corrupted_text) == (pairs.corrupted_text, pairs.text)


def test_the_first_of_each_group_come_group_by_group():
    pairs = one()[[0, 1, 1, 0, 0]]
    numbered = replace(pairs, text=tuple("01234"))  # groups x y y x x
    picked = first_of_groups(numbered, 2, 2)
    assert picked.text == ("0", "3", "1", "2") and picked.group == ("x", "x", "y", "y")
    assert first_of_groups(numbered, 1, 9).text == ("0", "3", "4")


def test_pairs_of_the_commonest_length():
    pairs = ioi_pairs(WORD, 40, seed=0)
    lengths = Counter(pairs.length.tolist())
    assert len(lengths) > 1
    width, most = lengths.most_common()[0]
    some = of_one_length(pairs, 3)
    assert len(some) == 3 and some.clean.shape == some.corrupted.shape == (3, width)
    assert some.positions["END"].tolist() == [width - 1] * 3
    first = [i for i, n in enumerate(pairs.length.tolist()) if n == width][:3]
    assert some.text == tuple(pairs.text[i] for i in first)
    assert len(of_one_length(pairs, 1000)) == most


# --- A reader's own files ---------------------------------------------------------------------

ROW = {
    "clean": "When Mary and John arrived at the park, John handed the lemon to",
    "corrupted": "When Mary and John arrived at the park, Mary handed the lemon to",
    "answer": " Mary",
    "foil": " John",
}
SHORT = {"clean": "Then Mary", "corrupted": "Then John", "answer": " and", "foil": " to"}


def write(folder, name: str, rows) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        quoted = [[f'"{value}"' for value in row.values()] for row in rows]
        lines = [",".join(rows[0]), *(",".join(row) for row in quoted)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl", "mine.csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])  # a byte order mark, as Excel writes
def test_a_readers_prompts(tmp_path, name, mark):
    path = write(tmp_path, name, [ROW, SHORT])
    path.write_bytes(mark + path.read_bytes())
    pairs = pairs_from_file(WORD, path)
    assert pairs.text == (ROW["clean"], "Then Mary") and pairs.length.tolist() == [14, 2]
    assert decode(WORD, pairs.answer) == [" Mary", " and"]
    assert decode(WORD, pairs.foil) == [" John", " to"]
    assert list(pairs.positions) == ["END"] and pairs.positions["END"].tolist() == [13, 1]
    assert pairs.candidates is None and pairs.group == ("row 1", "row 2")
    path = write(tmp_path, name, [ROW, SHORT | {"answer": " zebra"}])
    with pytest.raises(UsageError, match=f"{name} row 2: answer ' zebra' must be one known token"):
        pairs_from_file(WORD, path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (SHORT | {"corrupted": "Then Mary and"}, "clean has 2 tokens and corrupted 3"),
        (SHORT | {"corrupted": "Then Mary"}, "clean and corrupted are the same tokens"),
        (SHORT | {"foil": " and"}, "answer and foil are the same token"),
        (SHORT | {"foil": " and to"}, r"foil ' and to' must be one known token .* \[' and', ' to'"),
        (SHORT | {"answer": "and"}, "answer 'and' would be joined .* begin it with a space: ' and"),
        (SHORT | {"clean": "Zebra Mary"}, ".*does not know a word of clean 'Zebra Mary'"),
        (SHORT | {"clean": "  "}, "clean must be text"),
        (SHORT | {"corrupted": "Then<pad>"}, "corrupted ends in '<pad>', which only fills up"),
        (SHORT | {"answer": 3}, "answer must be text, not 3"),
        ({k: v for k, v in SHORT.items() if k != "foil"}, "must have clean, .* not clean, corr"),
        (SHORT | {"note": "x"}, "must have .* not clean, corrupted, answer, foil, note"),
        (["a", "b", "c", "d"], "must have .* not list"),
        (ROW, "repeats row 1"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, reason):
    with pytest.raises(UsageError, match=f"mine.json row 2: {reason}") as error:
        pairs_from_file(WORD, write(tmp_path, "mine.json", [ROW, row]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.json", None, "no such file"),
        ("mine.txt", b"x", "unknown kind of file; use .json, .jsonl or .csv"),
        ("mine.json", b" \n ", "is empty"),
        ("mine.json", b"[]", "holds no rows"),
        ("mine.json", b"{}", "must hold a list of rows, not a dict"),
        ("mine.json", b"[1, 2", "not JSON"),
        ("mine.json", b"[" * 100_000, "not JSON"),
        ("mine.json", b'["\\ud800"]', "not JSON .*surrogates not allowed"),
        ("mine.json", b"\xff\xfe[", r"is not UTF-8 text \(byte 0\)"),
        ("mine.jsonl", b'{"clean": 1}\n{"clean"', "row 2: not JSON"),
        ("mine.csv", b"clean,corrupted,answer,foil,x\n1,2,3,4,5\n", "columns must be .* foil, x"),
        ("mine.csv", b"clean,corrupted,answer,foil\na,b,c\n", "row 1: foil must be text, not None"),
        ("mine.csv", b"clean,corrupted,answer,foil\na,b,c,d,e\n", "row 1: must have"),
        ("mine.csv", b'clean,corrupted,answer,foil\n\n"a"x,b,c,d\n', "line 3: not CSV"),
        ("mine.csv", b'clean,corrupted,answer,foil\n"a,b\nc\nd"x\n', "lines 2 to 4: not CSV"),
        ("mine.json", json.dumps([SHORT]).encode(), "holds 1 row; give 2 or more"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=reason) as error:
        pairs_from_file(WORD, path)
    assert "\n" not in str(error.value)


def authors_rows(n: int) -> list[list[str]]:
    pairs = colored_objects_pairs(WORD, n, 0)
    return [list(row) for row in zip(pairs.text, decode(WORD, pairs.answer), strict=True)]


def test_the_authors_format_is_read(tmp_path):
    path = write(tmp_path, "cobjs.json", authors_rows(30))
    made = colored_objects_pairs(WORD, 30, 0)
    read, again, other = (colored_objects_from_file(WORD, path, seed) for seed in (1, 1, 2))
    assert read.text == made.text and read.clean.equal(made.clean) and read.group == made.group
    assert read.answer.equal(made.answer) and read.candidates.equal(made.candidates)
    assert list(read.positions) == list(made.positions)
    assert all(read.positions[name].equal(at) for name, at in made.positions.items())
    assert again.foil.equal(read.foil) and not other.foil.equal(read.foil)
    check(WORD, read, 30)
    with pytest.raises(UsageError, match="unknown kind of file; use"):
        colored_objects_from_file(WORD, tmp_path / "cobjs.csv")


def test_objects_of_several_words_are_read(tmp_path):
    def prompt(first, second):
        items = [("red", first), ("blue", second)]
        shot = ask("desk", "I see", [("green", "cup"), ("black", "mug")], 0)
        return f"{shot} Green\n{ask('table', 'there is', items, 0)}"

    path = write(tmp_path, "c.json", [[prompt("red pen", "table lamp"), "Red"]])
    pairs = colored_objects_from_file(WORD, path)
    assert pairs.corrupted_text[0].endswith("What color is the table lamp?\nA:")
    assert decode(WORD, pairs.clean[0, pairs.positions["objects"][0]]) == [" pen", " lamp"]
    assert decode(WORD, pairs.clean[0, pairs.positions["colors"][0]]) == [" red", " blue"]
    path = write(tmp_path, "d.json", [[prompt("pen", "table lamp"), "Red"]])
    with pytest.raises(UsageError, match="row 1: no other object has as many tokens"):
        colored_objects_from_file(WORD, path)
    rows = [[prompt("pen", "table lamp"), "Red"], [prompt("pen", "cup"), "Red"]]
    left = colored_objects_from_file(WORD, write(tmp_path, "e.json", rows))
    assert (len(left), left.dropped) == (1, {"rows": 1})


QUESTION = "Q: On the table, there is a red pen and a blue cup. What color is the {}?\nA:"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["text", 3], r"must be a list of two texts, \[prompt, answer\]"),
        (["x" + QUESTION.format("pen"), "Red"], "not in the form"),
        ([QUESTION.format("pen") + " Red", "Red"], "not in the form"),
        ([QUESTION.format("mug"), "Red"], "'mug' is asked about and not listed"),
        ([QUESTION.format("pen"), " Blue"], "the answer is ' Blue' and the prompt says 'red'"),
        ([QUESTION.format("pen").replace("cup", "pen"), "Red"], ".*one object twice"),
        ([QUESTION.format("pen").replace("blue", "red"), "Red"], ".*one colour twice"),
        ([QUESTION.format("pen").replace("blue", "mauve"), "Red"], "'mauve' or 'Mauve' is not one"),
        ([QUESTION.format("pen"), " Red"], "the last question has 2 objects, others have 3"),
        (authors_rows(1)[0], "repeats row 1"),
    ],
)
def test_a_bad_colored_objects_row_is_named(tmp_path, row, reason):
    path = write(tmp_path, "cobjs.json", [authors_rows(1)[0], row])
    with pytest.raises(UsageError, match=f"cobjs.json row 2: {reason}") as error:
        colored_objects_from_file(WORD, path)
    assert "\n" not in str(error.value)
