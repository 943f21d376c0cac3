"""A chapter as it lies in notebooks/: its notebook, parameters, claims and profiles."""

import ast
import contextlib
import json
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from bookkit.project import chapter_folder, list_chapters
from replib.claims.measure import Claims
from replib.claims.schema import Different, Strict, Words, fit
from replib.errors import UsageError, did_you_mean, find_control, one_line
from replib.files import read_text, read_yaml, sha256_text
from replib.hashes import library_hash, notebook_hash, pins_hash
from replib.models.sources import PLANTED, planted_module


@dataclass(frozen=True)
class Parameter:
    """One typed assignment of a notebook's parameters cell: `n_prompts: int = 100  # prompts`."""

    name: str
    annotation: str  # int, float, bool, str, list[...] of these, or several joined by |, None too
    default: Any
    help: str

    @cached_property
    def kind(self) -> Any:
        """The annotation as a type; ValueError for one that parameters cannot have."""
        return _type(ast.parse(self.annotation, mode="eval").body)

    def allows(self, value: Any) -> bool:
        """Is it of this type? A whole number may stand for a float, true and false for none."""
        try:
            config = ConfigDict(strict=True, allow_inf_nan=False)
            TypeAdapter(self.kind, config=config).validate_python(value)
        except ValidationError:
            return False
        return True

    def read(self, text: str) -> Any:
        """The value that `text`, from a command line, has for this parameter."""
        try:
            value = _from_text(text, self.kind)
        except ValueError:
            about = f"; it is: {self.help}" if self.help else ""
            raise UsageError(
                f"parameter {self.name}: {text!r} is not {self.annotation}{about} "
                f"(for example: -p {self.name}={to_text(self.default)})"
            ) from None
        if found := find_control(text):
            raise UsageError(f"parameter {self.name}: {found!r} cannot stand in {text!r}")
        return value

    def check(self, value: Any, where: str) -> Any:
        """`value`, if it is of this parameter's type."""
        if self.allows(value):
            return value
        said = f"{self.name} is {value!r}, which is not {self.annotation}"
        raise UsageError(f"{where}: parameter {said}")


def _settable(name: str) -> str:
    if name in ("model_name", "device", "profile"):
        raise ValueError(f"{name} is set by an option, not by a profile")
    return name


class Profile(Strict):
    """What one size of run means for a paper: its models, and the parameters that differ from the
    notebook's parameters cell."""

    models: Annotated[list[Words], Field(min_length=1), Different]
    parameters: dict[Annotated[str, AfterValidator(_settable)], Any]
    time_limit_s: Annotated[float, Field(gt=0)] = 3600.0
    work: Annotated[float, Field(gt=0)] = 1.0  # how much more than the laptop profile's


class ProfilesFile(Strict):
    smoke: Profile
    laptop: Profile
    paper: Profile


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

    def parameter(self, name: str, where: str = "") -> Parameter:
        if name in self.parameters:
            return self.parameters[name]
        raise UsageError(
            f"{where}{self.paper} has no parameter {name!r}{did_you_mean(name, self.parameters)} "
            f"(parameters: {', '.join(self.parameters)})"
        )

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

    def values(self, profile: str) -> dict[str, Any]:
        """Every parameter's value in this profile: the cell's default, or the profile's own."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return defaults | self.profile(profile).parameters

    def parameters_hash(self, profile: str) -> str:
        return sha256_text(json.dumps(self.values(profile), sort_keys=True))

    def hashes(self, model: str, profile: str) -> dict[str, str | None]:
        """sha256 of what a checkout gives to a run on `model`, and on which its numbers depend."""
        return {
            "notebook": notebook_hash(self.notebook),
            "claims": self.claims.sha256,
            "library": self.library_hash(model),
            "requirements": pins_hash(self.root / "requirements.txt"),
            "parameters": self.parameters_hash(profile),
        }


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
    where = f"profiles file {path}"
    profiles = dict(fit(ProfilesFile, read_yaml(read_text(path, "profiles file"), where), where))
    chapter = Chapter(root, claims, notebook, parameters, profiles)
    for name, profile in profiles.items():
        for key, value in profile.parameters.items():
            chapter.parameter(key, f"{where}, {name}: ").check(value, f"{where}, {name}")
    return chapter


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
        is_typed = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not is_typed or not node.value:
            raise UsageError(f"{where}: parameters cell: {line!r} is not `name: type = value`")
        name, annotation = ast.unparse(node.target), ast.unparse(node.annotation)
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        about = " ".join(comments[line].lstrip("# ") for line in lines if line in comments)
        try:
            default = ast.literal_eval(node.value)
            parameter = Parameter(name, annotation, default, about)
            fits = parameter.allows(default)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise UsageError(
                f"{where}: parameters cell: {line!r}: give a plain value of a plain type"
            ) from None
        if not fits or name in found:
            why = "comes twice" if name in found else f"is {default!r}, which is not {annotation}"
            raise UsageError(f"{where}: parameters cell: {name} {why}")
        found[name] = parameter
    needed = {"model_name": "str", "device": "str", "seed": "int", "profile": "str"}
    for name, annotation in needed.items():
        if name not in found or found[name].annotation != annotation:
            raise UsageError(f"{where}: parameters cell lacks `{name}: {annotation}`")
    return found


PLAIN = {"bool": bool, "int": int, "float": float, "str": str}


def _type(annotation: ast.expr) -> Any:
    """The type that a parameter is annotated with; ValueError for one that it cannot have."""
    match annotation:
        case ast.Constant(None):
            return None
        case ast.Name(name) if name in PLAIN:
            return PLAIN[name]
        case ast.Subscript(ast.Name("list"), inner):
            return list[_type(inner)]
        case ast.BinOp(left, ast.BitOr(), right):
            return Union[_type(left), _type(right)]  # noqa: UP007, either may be None
    raise ValueError(f"no type for a parameter: {ast.unparse(annotation)}")


def _from_text(text: str, kind: Any) -> Any:
    """`text` as the first of None, bool, int, float, list and str that it can be and that `kind`
    allows; ValueError if it can be none. A whole number has up to 18 digits, which all libraries
    can hold."""
    word = text.strip()
    kinds = get_args(kind) if get_origin(kind) is Union else (kind,)
    if {None, NoneType} & {*kinds} and word.lower() in ("none", "null"):
        return None
    if bool in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if int in kinds and re.fullmatch("[+-]?[0-9]{1,18}", word):
        return int(word)
    if float in kinds and re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", word):
        with contextlib.suppress(ValueError):  # 1.2.3
            if math.isfinite(number := float(word)):
                return number
    for items in (one for one in kinds if get_origin(one) is list):
        inside = word[1:-1] if word.startswith("[") and word.endswith("]") else word
        texts = inside.split(",") if inside.strip() else ()
        with contextlib.suppress(ValueError):
            return [_from_text(item.strip(), get_args(items)[0]) for item in texts]
    if str in kinds:
        return text
    raise ValueError(text)


def to_text(value: Any) -> str:
    """How a value is written after `-p name=`; `Parameter.read` reads it back."""
    if isinstance(value, list):
        return ",".join(to_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
