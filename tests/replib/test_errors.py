"""What a message may hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replib.errors import LONGEST, UsageError, find_control, printable


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
