"""Texts that look the same and are not: in one form where that changes no meaning."""

import re
import unicodedata

# What is replaced in a reader's rows: invisible marks, and spaces at which no line is broken.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]|[\u200c\u200d](?=[A-Za-z])")
_SPACES = re.compile("[\u00a0\u2007\u202f]")
_QUOTES = str.maketrans("\u2019\u2018\u02bc\u201c\u201d", "'''\"\"")


def one_form(text: str) -> tuple[str, list[str]]:
    """The text with letters composed (NFC), ordinary spaces and nothing invisible, and the names of
    what was another before."""
    plain = _INVISIBLE.sub("", text)
    spaced = _SPACES.sub(" ", plain)
    composed = unicodedata.normalize("NFC", spaced)
    changes = {
        "invisible characters left out": plain != text,
        "no-break spaces made spaces": spaced != plain,
        "letters composed (NFC)": composed != spaced,
    }
    return composed, [what for what, is_so in changes.items() if is_so]


def compared(text: str) -> str:
    """The text as it is compared with another: wide letters as plain ones (NFKC), straight quotes
    and apostrophes."""
    return unicodedata.normalize("NFKC", one_form(text)[0]).translate(_QUOTES)


def mixed_word(text: str) -> str | None:
    """The first word with both Latin and Cyrillic letters, if any."""
    for word in re.findall(r"[^\W\d_]+", text):
        scripts = {unicodedata.name(letter, "").partition(" ")[0] for letter in word}
        if {"LATIN", "CYRILLIC"} <= scripts:
            return word
    return None
