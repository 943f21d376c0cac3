"""The one error that is the user's to mend, and what a line of text may hold."""

import difflib
import re
from collections.abc import Iterable

# What a terminal or a page obeys instead of showing: controls, line separators, marks that turn the
# direction of writing, halves of a character.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
LONGEST = 1000  # characters of a message


def find_control(text: str, allowed: str = "") -> str | None:
    """The first character that is obeyed instead of shown, if any, but for the `allowed` ones."""
    return next((c for c in CONTROL.findall(text) if c not in allowed), None)


def printable(text: str) -> str:
    """The text, with escapes for what cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(ValueError):
    """Bad input: the message is one line that says what is wrong, what was given, what is right.
    The command line prints it without a traceback and exits with 2. Line breaks become spaces, what
    cannot be printed an escape, and of a message that is too long the middle is left out."""

    def __init__(self, message: str) -> None:
        line = " ".join(part.strip() for part in message.splitlines())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 4 :]}"
        super().__init__(printable(line)[:LONGEST])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing; made to be put at the end of a message."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def one_line(text: str, limit: int = 160) -> str:
    """The text without line breaks, with escapes for what cannot be printed, cut at `limit`
    characters."""
    line = printable(" ".join(text.split())[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
