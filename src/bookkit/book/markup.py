"""Text that somebody else wrote, on its way into a page: shown there, never obeyed."""

import re
from typing import Any

from replib.markup import visible


def as_myst(text: Any) -> str:
    """The text as MyST on one line: no character of it starts a mark, a role, a link or HTML.

    >>> as_myst("a *b*")
    'a \\\\*b\\\\*'
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(visible(text).split()))


def raw_html(text: str) -> str:
    """HTML as a block of MyST; the fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{{raw}} html\n{text}\n{fence}\n"
