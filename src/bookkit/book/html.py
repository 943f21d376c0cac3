"""The book's HTML: templates in which every text is escaped, and figures as PNG; and text that
somebody else wrote, on its way into a page: shown there, never obeyed."""

import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from replib.claims.rules import OUTCOMES
from replib.claims.tables import number_format, show_number
from replib.markup import visible


def as_myst(text: Any) -> str:
    """The text as MyST on one line: no character of it starts a mark, a role, a link or HTML."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(visible(text).split()))


def raw_html(text: str) -> str:
    """HTML as a block of MyST; the fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{{raw}} html\n{text}\n{fence}\n"


def show_value(value: Any, spec: str = "") -> str:
    """A record's value as a page shows it. ValueError when the format does not fit the value."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        value, spec = ("yes" if value else "no"), ""
    if value in OUTCOMES:
        return outcome_word(value)
    return visible(format(value, spec))


def outcome_word(outcome: str) -> str:
    return outcome.replace("_", " ")


def number_of(claim: Mapping[str, Any]) -> str:
    """A claim's number with interval and size, as text."""
    if claim["measured"] is None:
        return visible(claim["reason"] or "not measured")
    numbers = [claim["measured"]["value"], *(claim["interval"] or ())]
    value, *interval = (show_value(number, number_format(number)) for number in numbers)
    text = f"{value} {claim['measured']['unit']}".strip()
    if interval:
        text += f" [{', '.join(interval)}]"
    return visible(text + (f", n = {claim['n']}" if claim["n"] is not None else ""))


def why_not(claim: Mapping[str, Any]) -> str:
    """In a word or two why a claim could not be decided here; empty if that lies in its numbers."""
    if claim.get("across"):
        return "across models"
    if claim.get("unstable"):
        return "unstable"
    if claim["outcome"] != "not_testable":
        return ""
    if claim["measured"] is None:
        return "not measured"
    return "gate" if claim["reason"].startswith("gate not passed") else "not finite"


def duration(seconds: float) -> str:
    """How long something took, to the second: `1 min 15 s`, `2 h 1 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def as_date(time: str) -> str:
    """A time of a record or a log, for a reader."""
    return time.replace("T", " ").replace("Z", " UTC")


_TEMPLATES = Environment(
    loader=PackageLoader("bookkit.book"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    # Markup is HTML already. Of anything else, what a browser would obey is written out.
    finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
)
_TEMPLATES.globals |= {"OUTCOMES": OUTCOMES}
_FILTERS = (show_value, number_format, number_of, show_number, outcome_word, why_not, duration)
_FILTERS += (as_date,)
_TEMPLATES.filters |= {function.__name__: function for function in _FILTERS}
_TEMPLATES.filters["as_myst"] = lambda text: Markup(as_myst(text))
_TEMPLATES.filters["raw_html"] = lambda text: Markup(raw_html(text))


def render(template: str, **values: Any) -> str:
    """The HTML that a template makes of values, every one of them text and not HTML."""
    return _TEMPLATES.get_template(template).render(values)


def macro(template: str, name: str, *values: Any) -> str:
    """The same for one macro of a template."""
    return str(getattr(_TEMPLATES.get_template(template).module, name)(*values))


def macros(template: str) -> list[str]:
    """The names of a template's macros."""
    return [name for name in vars(_TEMPLATES.get_template(template).module) if name[0] != "_"]


def png(fig: Any, dpi: int) -> bytes:
    """A figure of matplotlib as PNG, the same bytes each time; the figure is closed."""
    import matplotlib.pyplot as plt

    out = BytesIO()
    fig.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(fig)
    return out.getvalue()
