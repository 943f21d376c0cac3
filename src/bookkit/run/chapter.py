"""A chapter as it lies in notebooks/: its notebook, parameters, claims and profiles."""

import ast
import json
import math
import re
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from bookkit.project import chapter_folder, list_chapters
from replib.claims.measure import Claims
from replib.claims.schema import check_schema
from replib.errors import UsageError, did_you_mean, find_control, one_line
from replib.files import read_text, read_yaml, sha256_text
from replib.hashes import library_hash
from replib.models.sources import PLANTED, planted_module

PROFILES = ("smoke", "laptop", "paper")
TIME_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Parameter:
    """One typed assignment of a notebook's parameters cell: `n_prompts: int = 100  # prompts`."""

    name: str
    annotation: str  # int, float, bool, str, list[...] of these, or several joined by |, None too
    default: Any
    help: str

    def read(self, text: str) -> Any:
        """The value that `text`, from a command line, has for this parameter."""
        try:
            value = _from_text(text, ast.parse(self.annotation, mode="eval").body)
        except ValueError:
            about = f"; it is: {self.help}" if self.help else ""
            raise UsageError(
                f"parameter {self.name}: {text!r} is not {self.annotation}{about} "
                f"(for example: -p {self.name}={_to_text(self.default)})"
            ) from None
        if found := find_control(text):
            raise UsageError(f"parameter {self.name}: {found!r} cannot stand in {text!r}")
        return value

    def check(self, value: Any, where: str) -> Any:
        """`value`, if it is of this parameter's type; a whole number may stand for a float."""
        if not _fits(value, ast.parse(self.annotation, mode="eval").body):
            raise UsageError(
                f"{where}: parameter {self.name} is {value!r}, which is not {self.annotation}"
            )
        return value


@dataclass(frozen=True)
class Profile:
    """What one size of run means for a paper: its models, its parameters, its time limit."""

    models: tuple[str, ...]
    parameters: Mapping[str, Any]
    time_limit_s: float = TIME_LIMIT_S
    work: float = 1.0  # how much more there is to compute than in the laptop profile


@dataclass(frozen=True)
class Chapter:
    """The three files of one paper, read and checked."""

    root: Path
    claims: Claims
    notebook: str  # the .ipynb file's text
    parameters: Mapping[str, Parameter]
    profiles: Mapping[str, Profile]

    @property
    def paper(self) -> str:
        return self.claims.paper

    def profile(self, name: str) -> Profile:
        if name not in self.profiles:
            raise UsageError(
                f"{self.paper} has no profile {name!r}; it has: {', '.join(self.profiles)}"
            )
        return self.profiles[name]

    def modules(self, model: str) -> list[str]:
        """The modules of planted models that this notebook reads on `model`: they are loaded by
        name, which no import shows."""
        named = [name for name in PLANTED if name == model or f'"{name}' in self.notebook]
        return [planted_module(name) for name in named]

    def library_hash(self, model: str) -> str:
        """Of the code of this project that a run on `model` computes with."""
        return library_hash(self.notebook, *self.modules(model))

    def parameters_hash(self, profile: str) -> str:
        """Of what this profile sets now."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        values = defaults | dict(self.profile(profile).parameters)
        return sha256_text(json.dumps(values, sort_keys=True))


def find_chapter(root: Path, paper: str) -> Chapter:
    """A paper's notebook, claims and profiles; UsageError for any that is missing or wrong."""
    papers = list_chapters(root)
    if paper not in papers:
        raise UsageError(
            f"no paper {paper!r}{did_you_mean(paper, papers)} (papers: {', '.join(papers)})"
        )
    folder = chapter_folder(root, paper)
    claims = Claims.load(folder / "claims.yaml")
    if claims.paper != paper:
        raise UsageError(f"{paper}/claims.yaml is about {claims.paper!r}, not {paper!r}")
    notebook = read_text(folder / f"{paper}.ipynb", "notebook")
    parameters = read_parameters(notebook, f"{paper}.ipynb")
    path = folder / "profiles.yaml"
    content = read_yaml(read_text(path, "profiles file"), f"profiles file {path}")
    check_schema(content, "profiles", f"profiles file {path}")
    profiles = {}
    for name in PROFILES:
        if (entry := content.get(name)) is None:
            continue
        where = f"profiles file {path}, {name}"
        for key, value in entry["parameters"].items():
            known_parameter(parameters, key, paper, where).check(value, where)
        limit = float(entry.get("time_limit_s", TIME_LIMIT_S))
        work = float(entry.get("work", 1.0))
        profiles[name] = Profile(tuple(entry["models"]), entry["parameters"], limit, work)
    return Chapter(root, claims, notebook, parameters, profiles)


def read_parameters(notebook: str, where: str) -> dict[str, Parameter]:
    """The parameters of a notebook, from the cell with the tag `parameters`: typed assignments of
    plain values with trailing comments, nothing else."""
    try:
        cells = json.loads(notebook)["cells"]
        texts = [(cell, cell["cell_type"], "".join(cell["source"])) for cell in cells]
        sources = [t for cell, _, t in texts if "parameters" in cell["metadata"].get("tags", ())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{where} is not a notebook") from None
    if len(sources) != 1:
        raise UsageError(f"{where} has {len(sources)} cells with the tag parameters; it needs one")
    try:
        body = ast.parse(sources[0]).body
        tokens = list(tokenize.generate_tokens(StringIO(sources[0]).readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise UsageError(f"{where}: parameters cell: {one_line(str(error))}") from None
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str, Parameter] = {}
    for node in body:
        line = one_line(ast.unparse(node))
        if not (
            isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
        ):
            raise UsageError(f"{where}: parameters cell: {line!r} is not `name: type = value`")
        name, annotation = ast.unparse(node.target), ast.unparse(node.annotation)
        try:
            default = ast.literal_eval(node.value)
            fits = _fits(default, node.annotation)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise UsageError(
                f"{where}: parameters cell: {line!r}: give a plain value of a plain type"
            ) from None
        if not fits or name in found:
            why = "comes twice" if name in found else f"is {default!r}, which is not {annotation}"
            raise UsageError(f"{where}: parameters cell: {name} {why}")
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        about = " ".join(comments[line].lstrip("# ") for line in lines if line in comments)
        found[name] = Parameter(name, annotation, default, about)
    needed = {"model_name": "str", "device": "str", "seed": "int", "profile": "str"}
    for name, annotation in needed.items():
        if name not in found or found[name].annotation != annotation:
            raise UsageError(f"{where}: parameters cell lacks `{name}: {annotation}`")
    return found


def known_parameter(
    known: Mapping[str, Parameter], name: str, paper: str, where: str = ""
) -> Parameter:
    if name in known:
        return known[name]
    raise UsageError(
        f"{where + ': ' if where else ''}{paper} has no parameter {name!r}"
        f"{did_you_mean(name, known)} (parameters: {', '.join(known)})"
    )


def _parts(kind: ast.expr) -> list[ast.expr]:
    """The alternatives of `a | b | c`."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return [*_parts(kind.left), *_parts(kind.right)]
    return [kind]


def _fits(value: Any, kind: ast.expr) -> bool:
    """Is `value` of the type written as `kind`? ValueError for a type that parameters cannot have.

    >>> _fits(3, ast.parse("float | None", mode="eval").body)
    True
    """
    fits = []
    for part in _parts(kind):
        match part:
            case ast.Constant(None):
                fits.append(value is None)
            case ast.Name("bool"):
                fits.append(isinstance(value, bool))
            case ast.Name("int"):
                fits.append(isinstance(value, int) and not isinstance(value, bool))
            case ast.Name("float"):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                fits.append(number and abs(value) <= sys.float_info.max)
            case ast.Name("str"):
                fits.append(isinstance(value, str))
            case ast.Subscript(ast.Name("list"), inner):
                of_type = [_fits(item, inner) for item in value] if isinstance(value, list) else []
                fits.append(isinstance(value, list) and all(of_type))
            case _:
                raise ValueError(f"no type for a parameter: {ast.unparse(part)}")
    return any(fits)


def _from_text(text: str, kind: ast.expr) -> Any:
    """`text` as the first of the alternatives of `kind` that it can be, text itself as the last;
    ValueError if it can be none. A whole number has up to 18 digits, which all libraries can hold.
    """
    word = text.strip()
    order = {"None": 0, "bool": 1, "int": 2, "float": 3, "str": 5}
    for part in sorted(_parts(kind), key=lambda p: order.get(ast.unparse(p), 4)):
        match part:
            case ast.Constant(None) if word.lower() in ("none", "null"):
                return None
            case ast.Name("bool") if word.lower() in ("true", "false"):
                return word.lower() == "true"
            case ast.Name("int") if re.fullmatch(r"[+-]?[0-9]{1,18}", word):
                return int(word)
            case ast.Name("float") if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", word):
                if math.isfinite(number := float(word)):
                    return number
            case ast.Name("str"):
                return text
            case ast.Subscript(ast.Name("list"), inner):
                inside = word[1:-1] if word.startswith("[") and word.endswith("]") else word
                items = [item.strip() for item in inside.split(",")] if inside.strip() else []
                return [_from_text(item, inner) for item in items]
    raise ValueError(text)


def _to_text(value: Any) -> str:
    """How a value is written after `-p name=`; `_from_text` reads it back."""
    if isinstance(value, list):
        return ",".join(_to_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
