"""The cells of a run's notebook on their way to a page: labels, figures, parameters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from replib.claims.file import MIME
from replib.errors import UsageError


def source_of(cell: Mapping[str, Any]) -> str:
    """A cell's text; a notebook may store it in lines."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


OUTPUT_LIMIT = 20_000  # characters of one output that a page shows
_LABEL = r"[A-Za-z][\w:.-]*"
_DEFINED = (
    re.compile(rf"(?m)^(\()({_LABEL})(\)=[ \t]*)$"),
    re.compile(rf"(?m)^([ \t]*:(?:name|label):[ \t]*)({_LABEL})([ \t]*)$"),
    re.compile(rf"(?m)(\$\$[ \t]*\()({_LABEL})(\)[ \t]*)$"),
)
_REFERRED = (
    re.compile(rf"(\]\(#)({_LABEL})(\))"),
    re.compile(rf"(\{{(?:ref|numref|eq)\}}`(?:[^`<]*<)?)({_LABEL})(>?`)"),
)


def localise_labels(cells: Sequence[dict[str, Any]], suffix: str) -> None:
    """Append `-suffix` to every label that the notebook defines, and to its references to it: one
    notebook becomes a page a model, and Sphinx wants a label once in the whole book."""
    texts = [source_of(cell) for cell in cells if cell["cell_type"] == "markdown"]
    figures = [cell["metadata"].get("mystnb", {}).get("figure") or {} for cell in cells]
    defined = {match[2] for text in texts for rule in _DEFINED for match in rule.finditer(text)}
    defined |= {figure["name"] for figure in figures if "name" in figure}

    def rename(match: re.Match[str]) -> str:
        name = f"{match[2]}-{suffix}" if match[2] in defined else match[2]
        return match[1] + name + match[3]

    def localise(text: str) -> str:
        for rule in (*_DEFINED, *_REFERRED):
            text = rule.sub(rename, text)
        return text

    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = localise(source_of(cell))
    for figure in figures:
        if "caption" in figure:
            figure["caption"] = localise(figure["caption"])
        if "name" in figure:
            figure["name"] = f"{figure['name']}-{suffix}"


def lift_alt_text(cells: Sequence[dict[str, Any]], where: str) -> None:
    """Put each figure's alternative text where myst-nb reads it: that of the output (its metadata,
    `{"image/png": {"alt": ...}}`), else that of the cell (`mystnb.image.alt`). UsageError for a
    picture with neither, or two in one cell."""
    for number, cell in enumerate(cells, 1):
        outputs = cell["outputs"] if cell["cell_type"] == "code" else ()
        shown = [(mime, output) for output in outputs for mime in output.get("data", {})]
        pictures = [(mime, output) for mime, output in shown if mime.startswith("image/")]
        if not pictures:
            continue
        if len(pictures) > 1:
            raise UsageError(f"{where}, cell {number}: {len(pictures)} pictures; show one a cell")
        mime, output = pictures[0]
        options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
        alt = output.get("metadata", {}).get(mime, {}).pop("alt", None) or options.get("alt")
        if not alt or not alt.strip():
            raise UsageError(f"{where}, cell {number}: the picture has no alternative text")
        options["alt"] = " ".join(alt.split())


def fold_parameters(cells: Sequence[dict[str, Any]]) -> None:
    """Fold the cell of defaults; leave the values of this run open, under a plain heading."""
    for cell in cells:
        tags = cell["metadata"].setdefault("tags", []) if cell["cell_type"] == "code" else []
        if "parameters" in tags:
            tags.append("hide-input")
            prompts = cell["metadata"].setdefault("mystnb", {})
            prompts["code_prompt_show"] = "Show the parameters, their defaults and their meaning"
            prompts["code_prompt_hide"] = "Hide the parameters"
        if "injected-parameters" in tags:
            values = re.sub(r"\A# Parameters\n", "", source_of(cell))
            cell["source"] = f"# Set for this run\n{values}"


def shorten_outputs(cells: Sequence[dict[str, Any]]) -> None:
    """Cut what a cell printed where nobody would read it all, and leave out the claims bundle: the
    page shows the table beside it. The executed notebook has both."""
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(MIME, None)
            if "text" in output:
                output["text"] = cut("".join(output["text"]))


def cut(text: str) -> str:
    """The text up to OUTPUT_LIMIT, and how much more there is."""
    if len(text) <= OUTPUT_LIMIT:
        return text
    return f"{text[:OUTPUT_LIMIT]}\n… ({len(text) - OUTPUT_LIMIT:,} more characters)\n"
