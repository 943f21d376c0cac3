"""Text that somebody else wrote, on its way into HTML: shown there, never obeyed."""

import html
from typing import Any

from replib.errors import CONTROL


def visible(text: Any) -> str:
    r"""The text with every character that is obeyed rather than seen written out, as \u202e."""
    return CONTROL.sub(
        lambda match: match[0] if match[0] in "\n\t" else f"\\u{ord(match[0]):04x}", str(text)
    )


def as_html(text: Any) -> str:
    """The text as HTML, for an element or an attribute in quotation marks."""
    return html.escape(visible(text), quote=True)
