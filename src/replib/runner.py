"""Run a paper's notebook on a model, in a process of its own, and keep what came of it.

    chapter = find_chapter(find_root(), "ioi-circuit-reuse")
    run = plan(chapter, "tiny", "smoke", {"n_prompts": "20"}, out=Path("build/runs"))
    execute(run)      # DIR/<paper>/<model>/{notebook.ipynb, record.json, run.log}

Everything that a user can get wrong is checked by `plan` and `prepare`, before anything is written.
`execute` works in a hidden folder beside the destination and renames it at the end, so a folder
with a `record.json` is always a finished run. A failed run leaves `<model>.failed/` with the
notebook, in which the cell that failed is marked, and the log.

Three processes: this one watches (progress, time, memory, interruption); `python -m replib.runner`
runs papermill; papermill starts the kernel.
"""

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import psutil

from replib import batches, grid, sizing
from replib.adapter_cards import INTENT_FORMATS, check_adapter
from replib.claims import MIME, Claims, check_schema, did_you_mean, one_line, read_text, read_yaml
from replib.errors import UsageError, find_control
from replib.hashes import library_hash, notebook_hash, pins_hash
from replib.project import file_hash, list_chapters, parameters_hash
from replib.records import write_record
from replib.sources import MADE_IN_MEMORY, SOURCES, is_ready, model_slug, weights_hash
from replib.storage import put_in_place

PROFILES = ("smoke", "laptop", "paper")
OPTIONS = {"model_name": "--model", "device": "--device", "profile": "--profile"}
TIME_LIMIT_S = 3600.0
PACKAGES = ("replib", "torch", "transformer-lens", "transformers", "numpy", "scipy", "papermill")
SAMPLE_S = 0.1


class RunFailed(Exception):
    """A run that was started and did not finish; the message is one line."""


# --- chapters -------------------------------------------------------------------------------------


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

    def parameters_hash(self, profile: str) -> str:
        """Of what this profile sets now."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return parameters_hash(defaults, self.profile(profile).parameters)


def find_chapter(root: Path, paper: str) -> Chapter:
    """A paper's notebook, claims and profiles; UsageError for any that is missing or wrong."""
    papers = list_chapters(root)
    if paper not in papers:
        raise UsageError(
            f"no paper {paper!r}{did_you_mean(paper, papers)} (papers: {', '.join(papers)})"
        )
    folder = root / "notebooks"
    claims = Claims.load(folder / f"{paper}.claims.yaml")
    if claims.paper != paper:
        raise UsageError(f"{paper}.claims.yaml is about {claims.paper!r}, not {paper!r}")
    notebook = read_text(folder / f"{paper}.ipynb", "notebook")
    parameters = read_parameters(notebook, f"{paper}.ipynb")
    path = folder / f"{paper}.profiles.yaml"
    content = read_yaml(read_text(path, "profiles file"), f"profiles file {path}")
    check_schema(content, "profiles", f"profiles file {path}")
    profiles = {}
    for name in PROFILES:
        if (entry := content.get(name)) is None:
            continue
        where = f"profiles file {path}, {name}"
        for key, value in entry["parameters"].items():
            _known(parameters, key, paper, where).check(value, where)
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


def _known(known: Mapping[str, Parameter], name: str, paper: str, where: str = "") -> Parameter:
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


# --- planning -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run that has been checked: what goes in, and where the result is to stand."""

    chapter: Chapter
    model: str
    profile: str
    parameters: Mapping[str, Any]  # all of them; files by absolute path
    given: Mapping[str, Any]  # the same as a person wrote them
    folder: Path  # DIR/<paper>/<model>
    time_limit_s: float
    estimate: sizing.Estimate | None = None  # None: a model made in memory
    speed: float | None = None  # FLOP/s of this machine, measured before the run
    gpu: str | None = None  # the one that is held for it

    @property
    def name(self) -> str:
        return f"{self.chapter.paper} on {self.model}"

    @property
    def failed(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.failed")

    @property
    def files(self) -> dict[str, Path]:
        """The user's own files, by parameter."""
        items = self.parameters.items()
        return {key: Path(value) for key, value in items if key.endswith("_file") and value}


def plan(
    chapter: Chapter,
    model: str,
    profile: str,
    settings: Mapping[str, str],
    *,
    out: Path,
    device: str | None = None,
    time_limit_s: float | None = None,
) -> Run:
    """Check everything that can be checked without loading a library, and write nothing.

    `settings` are the user's parameters as text. Order: the cell's default, the profile, the user.

    Raises UsageError: a parameter that the notebook does not have, a value of another type, a file
    that cannot be read, a folder that cannot be written.
    """
    sizes = chapter.profile(profile)
    values = {name: parameter.default for name, parameter in chapter.parameters.items()}
    values |= dict(sizes.parameters)
    for name, text in settings.items():
        if name in OPTIONS:
            raise UsageError(f"parameter {name} is set by {OPTIONS[name]}")
        values[name] = _known(chapter.parameters, name, chapter.paper).read(text)
    values |= {"model_name": model, "profile": profile}
    if values["seed"] < 0:
        raise UsageError(f"parameter seed is {values['seed']}; give a whole number, 0 or more")
    if device is not None:
        values["device"] = device
    absolute = dict(values)
    for name, value in values.items():
        if name.endswith("_file") and value:
            absolute[name] = str(_readable(name, value))
    absolute["model_name"] = absolute_model(model)
    if values.get("against"):  # a second model
        absolute["against"] = absolute_model(values["against"])
    _stored(chapter, absolute)
    limit = sizes.time_limit_s if time_limit_s is None else time_limit_s
    if found := find_control(str(out)):
        raise UsageError(f"output folder {str(out)!r}: {found!r} cannot stand in its name")
    try:
        folder = out.expanduser().absolute() / chapter.paper / model_slug(absolute["model_name"])
        _writable(folder)
    except (OSError, RuntimeError) as error:  # too long a name, a home folder that is not there
        raise UsageError(f"output folder {out}: {_reason(error)}") from None
    return Run(chapter, absolute["model_name"], profile, absolute, values, folder, limit)


def absolute_model(model: str) -> str:
    """A model's name as it is; a folder, written as a path, by its absolute path.

    Raises UsageError for an empty name, one with control characters, and for a path that cannot be
    looked at.
    """
    if not model.strip():
        raise UsageError("the model's name is empty")
    if found := find_control(model):
        raise UsageError(f"model {model!r}: {found!r} cannot stand in a name")
    try:
        is_folder = Path(model).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"model {one_line(model)!r}: {_reason(error)}") from None
    if is_folder and (os.sep in model or model.startswith((".", "~"))):
        return str(Path(model).expanduser().resolve())
    return model


def _stored(chapter: Chapter, values: Mapping[str, Any]) -> dict[str, str]:
    """What the run reads from stored trainings: {name: sha256}. They must be there and whole.

    The networks of the copying chapter's grid, and adapters for a chapter with the parameter
    `adapter_seeds`; a model made in memory has none of these.
    """
    if chapter.paper == grid.PAPER:
        return {
            f"training {cell.name}": grid.read_card(chapter.root, cell)["sha256"]
            for study, settings in grid.STUDIES.items()
            for architecture in settings.architectures
            for cell in grid.reported(chapter.root, study, architecture)
        }
    if "adapter_seeds" not in values or values["model_name"] in MADE_IN_MEMORY:
        return {}
    seeds = values["adapter_seeds"]
    if not seeds:
        raise UsageError("parameter adapter_seeds is empty; give at least one, such as [1]")
    if not (isinstance(seeds, list) and all(type(s) is int and 0 <= s < 2**63 for s in seeds)):
        raise UsageError(f"parameter adapter_seeds is {seeds!r}; give seeds, such as [1]")
    model = values["model_name"]
    sha256 = SOURCES[model].sha256 if model in SOURCES else None
    return {
        f"adapter {name}-{seed}": check_adapter(
            chapter.root, chapter.paper, model, sha256, name, seed
        )[1]["sha256"]
        for name in INTENT_FORMATS
        for seed in seeds
    }


def changed_since(record: Mapping[str, Any], chapter: Chapter) -> list[str]:
    """What the numbers of a record depend on and what is another now, in words; empty if nothing.

    Nothing is loaded, so the weights of a hub model, and of one made in memory, are not looked at;
    a revision is a commit and stays what it is.
    """
    then = record["hashes"]
    weights = weights_hash(record["model"]["name"])
    now = {
        "notebook": notebook_hash(chapter.notebook),
        "claims": chapter.claims.sha256,
        "library": library_hash(chapter.notebook),
        "requirements": pins_hash(chapter.root / "requirements.txt"),
        "parameters": chapter.parameters_hash(record["profile"]),
        "weights": then["weights"] if weights is None else weights,
    }
    found = [part for part in now if then[part] != now[part]]
    try:
        values = {**record["parameters"], "model_name": record["model"]["name"]}
        stored = _stored(chapter, values)
    except UsageError:
        return [*found, "stored trainings"]
    if any(then["inputs"].get(name) != sha256 for name, sha256 in stored.items()):
        found.append("stored trainings")
    return found


def prepare(runs: Sequence[Run], *, skip_missing: bool = False) -> list[Run]:
    """Find the models, the device and the user's rows, in a process that may load the libraries.

    The runs with their device as it is here; without those whose embedded model is not installed,
    if `skip_missing`. Embedded models are unpacked now, with messages in the terminal. Raises
    UsageError as `replib.models` and `replib.prompts` do.
    """
    quick = [
        run.model in MADE_IN_MEMORY
        and run.parameters["device"] == "cpu"
        and not run.parameters.get("revision")
        and not run.files
        for run in runs
    ]
    if all(quick):
        return list(runs)
    questions = [
        {
            "model": run.model,
            "skip_missing": skip_missing,
            "revision": run.parameters.get("revision") or None,
            "device": run.parameters["device"],
            "dtype": run.parameters.get("dtype", "float32"),
            "threads": _threads(),
            "files": {name: str(path) for name, path in run.files.items()},
        }
        for run in runs
    ]
    command = [sys.executable, "-m", "replib.runner", "prepare"]
    process = subprocess.run(
        command,
        input=json.dumps(questions),
        stdout=subprocess.PIPE,
        text=True,
        cwd=runs[0].chapter.root / "notebooks",
        env=environment(),
        check=False,
        start_new_session=True,  # an interrupt is ours to answer
    )
    if process.returncode != 0:
        how = "killed, or out of memory" if process.returncode < 0 else "its message stands above"
        raise UsageError(
            f"{runs[0].name}: the process that looks at the model ended with "
            f"{process.returncode} ({how})"
        )
    answer = json.loads(process.stdout.splitlines()[-1])
    if "usage" in answer:
        raise UsageError(answer["usage"])
    ready = []
    for run, found in zip(runs, answer["found"], strict=True):
        if found is not None:
            changed = {"device": found["device"]}
            parameters, given = dict(run.parameters) | changed, dict(run.given) | changed
            run = replace(run, parameters=parameters, given=given)
            ready.append(_estimated(run, found) if found["size"] else run)
    if not ready:
        raise UsageError(f"no model of {runs[0].chapter.paper} is installed; run: make setup")
    return ready


def _estimated(run: Run, found: Mapping[str, Any]) -> Run:
    """The run with what it is expected to need, scaled from the certified record of its paper.

    Raises UsageError when it cannot fit.
    """
    known = sizing.certified_reference(run.chapter.root, run.chapter.paper)
    try:
        estimate = sizing.estimate(
            sizing.Size(**found["size"]),
            found["dtype"],
            found["device"],
            found["available"],
            known,
            run.chapter.profile(run.profile).work,
            found["speed"],
        )
    except UsageError as error:
        raise UsageError(f"{run.name}: {error}") from None
    return replace(run, estimate=estimate, speed=found["speed"])


def _readable(name: str, value: str) -> Path:
    try:
        path = Path(value).expanduser().absolute()
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise UsageError(f"parameter {name}: {value} is not a file")
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"parameter {name}: {value}: {_reason(error)}") from None
    return path


def _reason(error: Exception) -> str:
    """Why a path cannot be used, in the system's words."""
    return getattr(error, "strerror", None) or str(error)


def _writable(folder: Path) -> None:
    """UsageError unless `folder` can be made, or replaced, where it is to stand."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output folder {folder} is a file")
    parent = next(path for path in folder.parents if path.exists() or path.is_symlink())
    if not parent.is_dir():
        raise UsageError(f"output folder {folder}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"output folder {folder}: {parent} cannot be written to")


# --- running --------------------------------------------------------------------------------------


@dataclass
class _Watched:
    """What is known of a run while it goes on, from the messages of its process."""

    cell: dict[str, Any] | None = None  # the cell that runs: index, code, id, line
    end: dict[str, Any] | None = None  # the last message
    peak_bytes: int = 0
    processes: dict[int, psutil.Process] = field(default_factory=dict)
    timed_out: bool = False
    exit_code: int | None = None


def execute(run: Run, progress: Callable[[int, int], None] | None = None) -> Path:
    """Run the notebook to its end; the folder with notebook, record and log.

    `progress` is called again and again with (code cells begun, code cells in all).

    Raises RunFailed when a cell fails, the kernel dies, the time is up or a claim is missing; then
    `run.failed` has notebook and log, and an earlier result stays. UsageError when the notebook
    raised one; then nothing is kept.
    """
    made = [path for path in (run.folder.parent, *run.folder.parent.parents) if not path.exists()]
    try:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(run)
        work = Path(tempfile.mkdtemp(dir=run.folder.parent, prefix=f".{run.folder.name}.tmp-"))
    except OSError as error:
        raise UsageError(f"output folder {run.folder}: {error.strerror}") from None
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work.chmod(0o755)
        return _execute_in(work, run, progress or (lambda begun, total: None))
    except OSError as error:  # the disk is full, or gone
        raise RunFailed(
            f"{run.name} failed: {error.strerror or error}: {error.filename or run.folder}"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only if nothing came of it


def _execute_in(work: Path, run: Run, progress: Callable[[int, int], None]) -> Path:
    chapter = run.chapter
    notebook, source, log = work / "notebook.ipynb", work / "source.ipynb", work / "run.log"
    source.write_text(chapter.notebook, encoding="utf-8")
    hashes = {
        "notebook": notebook_hash(chapter.notebook),
        "claims": chapter.claims.sha256,
        "library": library_hash(chapter.notebook),
        "requirements": pins_hash(chapter.root / "requirements.txt"),
        "environment": environment_hash(),
        "parameters": chapter.parameters_hash(run.profile),
        "inputs": {name: file_hash(path) for name, path in run.files.items()}
        | _stored(chapter, run.parameters),
    }
    changed = {
        name: run.parameters[name]
        for name, parameter in chapter.parameters.items()
        if repr(run.parameters[name]) != repr(parameter.default)
    }
    job = {
        "source": str(source),
        "notebook": str(notebook),
        "parameters": changed,
        "folder": str(chapter.root / "notebooks"),
    }
    threads = _threads()
    started = datetime.now(UTC)
    clock = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"{run.name}, profile {run.profile}, {started:%Y-%m-%dT%H:%M:%SZ}\n")
        file.write(f"parameters: {json.dumps(dict(run.given))}\n")
        file.flush()
        scale = 1.0 if run.estimate is None else run.estimate.batch_scale
        extra = {batches.VARIABLE: str(scale)}
        if run.gpu is not None:
            extra["CUDA_VISIBLE_DEVICES"] = run.gpu
        watched = _watch(job, run.time_limit_s, file, progress, extra)
    wall = time.monotonic() - clock
    source.unlink()

    failure = _failure(run, watched)
    if failure is None:
        try:
            bundle = _bundle(run, notebook)
        except RunFailed as error:
            failure = str(error)
    if failure is not None:
        _mark(notebook, watched, failure, chapter.notebook)
        _tidy(notebook, chapter.paper)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"\nfailed: {failure}\n")
        put_in_place(work, run.failed)
        raise RunFailed(f"{run.name} failed: {failure} (see {_short(run.failed)})")

    _tidy(notebook, chapter.paper)
    replication = run.profile == "paper" and run.model == chapter.claims.model
    scope = "replication" if replication else "transfer"
    scope = "method" if chapter.claims.is_method else scope
    record = {
        "schema_version": 1,
        **{key: bundle[key] for key in ("paper", "title", "arxiv", "model")},
        "profile": run.profile,
        "parameters": dict(run.given),
        "seed": run.parameters["seed"],
        "claims": [claim | {"scope": scope} for claim in bundle["claims"]],
        "measurements": bundle["measurements"],
        "heads": bundle["heads"],
        "changes": bundle["changes"],
        "status": "finished",
        "hashes": hashes | {"weights": bundle["model"]["sha256"]},
        "versions": _versions(),
        "device": run.parameters["device"],
        "threads": threads,
        "wall_time_s": round(wall, 1),
        "peak_memory_mb": round(watched.peak_bytes / 1e6, 1),
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "calibration": None
        if run.estimate is None
        else {
            **run.estimate.size.asdict(),
            "speed": run.speed,
            "batch_scale": run.estimate.batch_scale,
        },
    }
    write_record(work / "record.json", record)
    put_in_place(work, run.folder)
    shutil.rmtree(run.failed, ignore_errors=True)
    return run.folder


def _watch(
    job: Mapping[str, Any],
    limit_s: float,
    log: Any,
    progress: Callable[[int, int], None],
    extra: Mapping[str, str],
) -> _Watched:
    """Run the job in a process of its own; kill its whole family when the time is up, when we are
    interrupted, and whatever is left of it at the end."""
    watched = _Watched()
    deadline = time.monotonic() + limit_s if limit_s > 0 else math.inf
    # Sockets of the kernel stand here; their names must be short.
    with tempfile.TemporaryDirectory(prefix="replib-") as runtime:
        process = subprocess.Popen(
            [sys.executable, "-m", "replib.runner", "run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(runtime) | extra,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()  # stays open: its end tells the process that we are gone
            for message in _messages(process, watched, deadline):
                if "code" in message:
                    watched.cell = message
                if watched.cell is not None:
                    progress(watched.cell["code"], watched.cell["of"])
                if "end" in message:
                    watched.end = message
                    watched.peak_bytes = max(watched.peak_bytes, message.get("peak_bytes", 0))
            if not watched.timed_out:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    watched.exit_code = process.wait(timeout=max(0.0, min(30.0, _left(deadline))))
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            _sample(process, watched)
            for member in watched.processes.values():
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.kill()
            process.wait()
            psutil.wait_procs(list(watched.processes.values()), timeout=5)
            process.stdout.close()
    return watched


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _messages(
    process: subprocess.Popen, watched: _Watched, deadline: float
) -> Iterator[dict[str, Any]]:
    """The process's messages until it closes its output or the time is up, with empty ones while it
    is silent; memory on the way."""
    assert process.stdout is not None
    stream = process.stdout.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if _left(deadline) <= 0:
                watched.timed_out = True
                return
            ready = selector.select(max(0.0, min(SAMPLE_S, _left(deadline))))
            _sample(process, watched)
            if not ready:
                yield {}
                continue
            piece = os.read(stream, 65536)
            *lines, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in lines)
            if not piece:
                return


def _sample(process: subprocess.Popen, watched: _Watched) -> None:
    """Add up the memory of the process and its descendants; remember who they are."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for member in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
                watched.processes.setdefault(member.pid, member)
    watched.peak_bytes = max(watched.peak_bytes, total)


def environment(runtime: str | None = None) -> dict[str, str]:
    """Our environment, with what makes a run quiet and repeatable."""
    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)  # figures belong in the notebook
    environment |= {
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "REPLIB_THREADS": str(_threads()),
    }
    # glibc takes fresh pages for every tensor and gives them back at once; page faults are dear on
    # a virtual machine: reading long prompts took twice as long. Tensors up to 1 GB are to reuse
    # theirs. Means nothing elsewhere.
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))
    environment.setdefault("MALLOC_TOP_PAD_", str(64 << 20))
    if runtime is not None:
        environment["JUPYTER_RUNTIME_DIR"] = runtime
    return environment


def _threads() -> int:
    """REPLIB_THREADS, else OMP_NUM_THREADS, else every processor that we may use."""
    for name in ("REPLIB_THREADS", "OMP_NUM_THREADS"):
        if (text := os.environ.get(name)) is not None:
            if not re.fullmatch("0*[1-9][0-9]{0,3}", text):
                raise UsageError(f"{name}={text!r} is not a whole number from 1 to 9999")
            return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def environment_hash() -> str:
    """sha256 of the names and versions of all packages that are installed here."""
    installed = {
        f"{distribution.name.lower().replace('_', '-')}=={distribution.version}\n"
        for distribution in importlib.metadata.distributions()
    }
    return hashlib.sha256("".join(sorted(installed)).encode()).hexdigest()


# --- the end of a run -----------------------------------------------------------------------------


def _failure(run: Run, watched: _Watched) -> str | None:
    """Why the run did not reach the end of its notebook, in one line; None if it did."""
    cell = watched.cell
    place = "before its first cell"
    if cell is not None:
        place = f"in cell [{cell['code']}], `{cell['line']}`"
    if watched.timed_out:
        return f"time limit of {run.time_limit_s:g} s reached {place}"
    end = watched.end
    if end is None:
        return f"its process ended with {watched.exit_code} {place}"
    match end["end"]:
        case "finished":
            return None
        case "usage":
            raise UsageError(f"{end['error']} ({place.partition(',')[0]})")
        case "cell":
            return f"{end['error']} {place}"
        case "dead":
            return f"the kernel died {place} (out of memory, or killed)"
        case _:
            return f"{end['error']} {place}"


def _bundle(run: Run, notebook: Path) -> dict[str, Any]:
    """The claims as the notebook's last code cell left them, checked against the claims file."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":  # papermill lets SystemExit(0) pass
                text = one_line(f"{output['ename']}: {output['evalue']}", 300)
                raise RunFailed(f"{text} in cell [{number}], which ended the notebook early")
    holders = [
        (cell, output["data"][MIME])
        for cell in code
        for output in cell["outputs"]
        if MIME in output.get("data", {})
    ]
    if len(holders) != 1:
        raise RunFailed(
            f"the notebook ended with {len(holders)} tables of verdicts; its last code cell must "
            "call claims.verdicts(...) once"
        )
    cell, bundle = holders[0]
    if cell is not code[-1] or "claims" not in cell["metadata"].get("tags", ()):
        raise RunFailed("the verdicts must come from the last code cell, with the tag claims")
    expected = [claim.id for claim in run.chapter.claims.claims]
    got = [claim["id"] for claim in bundle["claims"]]
    if missing := [claim for claim in expected if claim not in got]:
        raise RunFailed(f"claim {missing[0]} is missing from the verdicts")
    if got != expected or bundle["claims_sha256"] != run.chapter.claims.sha256:
        raise RunFailed("the verdicts are about another claims file, or it changed during the run")
    if bundle["model"]["name"] != run.model:
        raise RunFailed(f"the notebook measured {bundle['model']['name']!r}, not {run.model!r}")
    return bundle


def _mark(notebook: Path, watched: _Watched, failure: str, source: str) -> None:
    """Mark the cell that ran when the run ended, where papermill did not.

    papermill saves an ordinary error truthfully; after a dead kernel or a kill its file says that
    every cell is completed, or that one still runs, or breaks off in the middle.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = json.loads(source)
    end = watched.end["end"] if watched.end is not None else "killed"
    content["metadata"].setdefault("papermill", {})["exception"] = True
    seen = False
    for cell in content["cells"] if end != "cell" else []:
        about = cell["metadata"].setdefault("papermill", {})
        if seen:
            about["status"] = "pending" if end != "finished" else "completed"
        if watched.cell is not None and cell.get("id") == watched.cell["id"]:
            seen = True
            cell["execution_count"] = watched.cell["code"]
            about.update(status="failed", exception=True)
            name = "TimeLimit" if watched.timed_out else "RunFailed"
            error = {"output_type": "error", "ename": name, "evalue": failure}
            outputs = cell.setdefault("outputs", [])
            if all(output["output_type"] != "error" for output in outputs):
                outputs.append(error | {"traceback": [failure]})
    _write_json(notebook, content)


def _tidy(notebook: Path, paper: str) -> None:
    """Take this machine's paths out of what papermill wrote about the notebook."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    about = content["metadata"].get("papermill", {})
    if "input_path" in about:
        about |= {"input_path": f"notebooks/{paper}.ipynb", "output_path": "notebook.ipynb"}
    _write_json(notebook, content)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sweep(run: Run) -> None:
    """Remove what runs that were killed left beside the destination; running ones hold a lock."""
    for work in run.folder.parent.glob(f".{run.folder.name}.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - work.stat().st_mtime < 60:
                continue
            lock = os.open(work, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(work, ignore_errors=True)
            finally:
                os.close(lock)


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


# --- in the run's own process ---------------------------------------------------------------------


def _run_child() -> None:
    """Run papermill for the job on standard input, with messages as JSON lines on standard output.

    The kernel inherits our output, so the messages go through a copy of it and the output itself
    to the log. When standard input ends, the process that watches us is gone, and so are we.
    """
    say_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def say(message: Mapping[str, Any]) -> None:
        say_to.write(json.dumps(message) + "\n")
        say_to.flush()

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    end = _papermill(job, say)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    say(end | {"peak_bytes": peak if sys.platform == "darwin" else peak * 1024})


def _papermill(job: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class Engine(NBClientEngine):
        """papermill's engine, which says what cell it is at."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
            code = [c for c in nb_man.nb.cells if c.cell_type == "code" and c.source.strip()]
            begun, save = 0, nb_man.cell_start

            def cell_start(cell: Any, cell_index: int | None = None, **rest: Any) -> None:
                nonlocal begun
                save(cell, cell_index, **rest)
                if cell.cell_type == "code" and cell.source.strip():
                    begun += 1
                    line = one_line(cell.source.strip().splitlines()[0], 60)
                    about = {"code": begun, "of": len(code), "id": cell.get("id"), "line": line}
                    say(about)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    papermill_engines.register("replib", Engine)
    # Through sockets in the file system, not ports: two kernels that start at once may take the
    # same port. `ip` is where the sockets stand; a socket's path has room for some 100 bytes.
    sockets = os.path.join(os.environ["JUPYTER_RUNTIME_DIR"], "kernel")
    ipc = {"transport": "ipc", "ip": sockets} if len(os.fsencode(sockets)) < 90 else {}
    transport = Config({"KernelManager": ipc})
    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    try:
        papermill.execute_notebook(
            job["source"].translate(braces),
            job["notebook"].translate(braces),
            parameters=job["parameters"],
            engine_name="replib",
            kernel_name="python3",
            cwd=job["folder"],
            progress_bar=False,
            log_output=True,
            start_timeout=120,
            iopub_timeout=120,
            config=transport,
        )
    except papermill.PapermillExecutionError as error:
        text = one_line(f"{error.ename}: {error.evalue}", 300)
        if error.ename == "UsageError":
            return {"end": "usage", "error": one_line(error.evalue, 1000)}
        return {"end": "cell", "error": text}
    except DeadKernelError:
        return {"end": "dead"}
    except Exception as error:
        logging.exception("papermill failed")
        return {"end": "other", "error": one_line(f"{type(error).__name__}: {error}", 300)}
    return {"end": "finished"}


def _die_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock would be held when we end
        pass
    for member in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            member.kill()
    os._exit(1)


def _prepare_child() -> None:
    """Answer `prepare`'s questions; the libraries are imported here and not in the watcher."""
    say_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions = json.loads(sys.stdin.read())
    try:
        answer = {"found": [_prepare_one(question) for question in questions]}
    except UsageError as error:
        answer = {"usage": one_line(str(error), 1000)}
    say_to.write(json.dumps(answer) + "\n")
    say_to.flush()


def _prepare_one(question: Mapping[str, Any]) -> dict[str, Any] | None:
    """Device, number type, size and speed of a run; None if its model is to be left out."""
    from replib import sources

    name, revision = question["model"], question["revision"]
    embedded = name in sources.EMBEDDED and name not in sources.available_embedded()
    if embedded and question["skip_missing"]:
        print(f"replib: {name} is not installed, left out", file=sys.stderr)
        return None
    found = {"device": question["device"], "dtype": question["dtype"], "size": None, "speed": None}
    simple = found["device"] == "cpu" and found["dtype"] in sizing.BYTES and revision is None
    folder = size = None
    if simple and name in sources.EMBEDDED and is_ready(name):
        # No need of the libraries, which take seconds. Of damaged weights preparing makes new ones.
        with contextlib.suppress(UsageError):
            folder = sources.unpacked_folder(name)
            size = sizing.folder_size(folder)
    if size is None:
        from replib import models

        device = models.find_device(found["device"])
        found["device"] = str(device)
        found["dtype"] = str(models.find_dtype(found["dtype"], device)).removeprefix("torch.")
        fits = None
        if name not in MADE_IN_MEMORY:

            def fits(n_params: int) -> None:
                size = sizing.Size(n_params, 0, 1)
                free = sizing.available_bytes(found["device"])
                sizing.estimate(size, found["dtype"], found["device"], free, None)

        folder = models.prepare_model(name, revision=revision, before_download=fits)
    if folder is not None:
        size = size or sizing.folder_size(folder)
        found |= {"size": size.asdict(), "available": sizing.available_bytes(found["device"])}
        found["speed"] = sizing.measure_speed(
            size.d_model, found["dtype"], found["device"], question["threads"]
        )
    _check_files(question)
    return found


def _check_files(question: Mapping[str, Any]) -> None:
    """Read the user's rows as the chapter will."""
    if not question["files"]:
        return
    from replib import contexts, facts, models, prompts

    loaders = {
        "prompts_file": prompts.pairs_from_file,
        "colored_objects_file": prompts.colored_objects_from_file,
        "conflicts_file": lambda tokenizer, path: contexts.cases_from_file(path),
        "facts_file": lambda tokenizer, path: facts.readable(
            tokenizer, facts.facts_from_file(path), at_least=8
        ),
    }
    if files := {key: path for key, path in question["files"].items() if key in loaders}:
        tokenizer = models.load_model(question["model"], revision=question["revision"]).tokenizer
        for key, path in files.items():
            loaders[key](tokenizer, path)


if __name__ == "__main__":
    {"run": _run_child, "prepare": _prepare_child}[sys.argv[1]]()
