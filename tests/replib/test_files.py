"""Files read strictly, folders replaced as a whole, and what a message may hold."""

import contextlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replib.errors import LONGEST, UsageError, find_control, printable
from replib.files import put_in_place, read_json, read_text, read_yaml

LAUGHS = ", ".join(f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))
DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"paper: [&a0 [x, x], {LAUGHS}]", "line 1: *a0: aliases are not read; write it out"),
        ("paper: &a [*a]", "line 1: *a: aliases"),
        (f"paper: {DEEP}", "nested too deeply"),
        ("paper: !!bool maybe", "a value is not what it should be (KeyError: 'maybe')"),
        ("paper: !!timestamp x", "a value is not what it should be (AttributeError"),
        ("paper: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("? [a]\n: b", "line 1: a key is not text"),
        ('paper: "a\\0b"', "line 1: '\\x00' cannot stand in a text"),
        ('"\\e": toy', "line 1: '\\x1b' cannot stand in a text"),
        ("paper: toy\npaper: toy", "line 2: key 'paper' is there twice"),
    ],
)
def test_yaml_that_is_no_plain_file_is_one_line(text, message):
    with pytest.raises(UsageError) as error:
        read_yaml(text, "file x", texts_only=True)
    assert str(error.value).startswith("file x") and message in str(error.value)


def test_yaml_as_text_and_with_types():
    assert read_yaml("{a: 1.10, null: ~}", "x", texts_only=True) == {"a": "1.10", "null": None}
    assert read_yaml("{a: 1, 'on': [2001-01-01, .inf]}", "x")["a"] == 1
    for text in ("{1: 2}", "{on: 1}", "{null: 1}", "{<<: {a: 1}}"):
        with pytest.raises(UsageError, match="x, line 1: a key is not text; put it in quotes"):
            read_yaml(text, "x")
    with pytest.raises(UsageError, match="ValueError: month must be in"):
        read_yaml("2001-99-99", "x")


@pytest.mark.parametrize("text", ["010", "-007", "1:30", "1_000", "190:20:30.15", "1_0.5"])
def test_numbers_that_yaml_reads_its_own_way_are_refused(text):
    with pytest.raises(UsageError, match=f"x, line 1: {text} is not one number everywhere"):
        read_yaml(f"seeds: [3, {text}]", "x")
    assert read_yaml(f"id: {text}", "x", texts_only=True) == {"id": text}
    assert read_yaml(f"id: '{text}'", "x") == {"id": text}


def test_numbers_that_are_one_everywhere():
    assert read_yaml("[0, -0, 10, +3, 0.5, 1.0e-3, 0x10]", "x") == [0, 0, 10, 3, 0.5, 0.001, 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' is there twice"),
        ('{"a\\u0000": 1}', "cannot be a key"),
        ("[NaN]", "NaN is not a number"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("\ufeff{}", "BOM"),
        ('{"a": ', "not valid JSON"),
    ],
)
def test_json_is_read_by_the_letter(text, message):
    assert read_json('{"a": [1, null, "\\u0000"]}', "x") == {"a": [1, None, "\0"]}
    with pytest.raises(UsageError, match=f"^x.*{message}"):
        read_json(text, "x")


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"file .*none cannot be read: No such file"):
        read_text(tmp_path / "none", "file")
    with pytest.raises(UsageError, match="cannot be read: embedded null byte"):
        read_text("a\0b", "file")
    with pytest.raises(UsageError, match="is not text in UTF-8"):
        read_text(tmp_path / "bytes", "file")


def test_a_result_is_replaced_as_a_whole(tmp_path):
    """Readers who look all the time find one version or the other, or for a moment nothing."""
    folder = tmp_path / "tiny"

    def write(name):
        for i in range(300):
            new = Path(tempfile.mkdtemp(dir=tmp_path, prefix=".tiny.tmp-"))
            for file in ("notebook.ipynb", "record.json"):
                (new / file).write_text(f"{name} {i}")
            put_in_place(new, folder)

    pool = ThreadPoolExecutor()
    writers = [pool.submit(write, name) for name in "ab"]
    seen = set()
    while not all(writer.done() for writer in writers):
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            texts = set()
            for name in ("notebook.ipynb", "record.json"):
                with open(os.open(name, os.O_RDONLY, dir_fd=held)) as file:
                    texts.add(file.read())
            assert len(texts) == 1
            seen |= texts
        except FileNotFoundError:  # removed, but only after it was replaced
            with contextlib.suppress(FileNotFoundError):
                assert os.stat(folder).st_ino != os.stat(held).st_ino
        finally:
            os.close(held)
    assert [writer.result() for writer in writers] == [None, None]
    assert sorted(os.listdir(folder)) == ["notebook.ipynb", "record.json"]
    assert os.listdir(tmp_path) == ["tiny"]
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("one\n  two\r\nthree\u2028four\x85five", "one two three four five"),
        ("a  b: \x1b[31mred\x00", "a  b: \\x1b[31mred\\x00"),
        ("half \ud800, turned \u202e, tab\t", "half \\ud800, turned \\u202e, tab"),
    ],
)
def test_a_message_is_one_printable_line(given_text, shown):
    assert str(UsageError(given_text)) == shown


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(UsageError(f"parameter x: {'9' * 100_000} is not int (for example: -p x=1)"))
    assert len(message) <= LONGEST
    assert message.startswith("parameter x: 999")
    assert message.endswith("999 is not int (for example: -p x=1)")
    assert " … " in message


@given(st.text(st.characters(categories=None), max_size=3000))
def test_whatever_is_in_it(text):
    message = str(UsageError(text))
    assert message.isprintable() and len(message) <= LONGEST


def test_characters_that_are_obeyed():
    assert find_control("an ordinary text with é, 中, \xa0, and 🦔") is None
    for control in "\0\n\t\r\x1b\x7f\x9b\u2028\u202e\u2066\ud800\udfff":
        assert find_control(f"a{control}b") == control
        assert find_control(f"a{control}b", allowed=control) is None
        assert find_control(f"a{control}b\x01", allowed=control) == "\x01"
    assert printable("a\nb\xa0\u200b\ud800é") == "a\\nb\\xa0\\u200b\\ud800é"
