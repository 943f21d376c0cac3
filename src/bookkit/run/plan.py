"""What a run will do, checked before anything is loaded or written."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bookkit.project import chapter_folder, stored_module
from bookkit.records import Numerics
from bookkit.run import resources as sizing
from bookkit.run.chapter import Chapter
from bookkit.run.environment import environment
from replib.errors import UsageError, find_control
from replib.files import refuse_pointer
from replib.hashes import reached
from replib.models.sources import (
    MADE_IN_MEMORY,
    NETWORKS,
    absolute_model,
    check_network,
    model_slug,
    weights_hash,
)

# What a model must have for a notebook that reaches these, whether itself or through its chapter.
NEEDS = {
    "heads": "replib.interventions.network.Network",
    "cache": "replib.interventions.generation.continuations",
}
OPTIONS = {"model_name": "--model", "device": "--device", "profile": "--profile"}


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
    architecture: str | None = None  # one that no chapter has been tried on
    numerics: Numerics | None = None  # None: this machine's usual ones

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
    Raises UsageError for an unknown parameter or value, a file or folder that cannot be used, and a
    language model where a chapter trains its own networks.
    """
    check_network(chapter.paper, model)
    values = chapter.values(profile)
    for name, text in settings.items():
        if name in OPTIONS:
            raise UsageError(f"parameter {name} is set by {OPTIONS[name]}")
        values[name] = chapter.parameter(name).read(text)
    values |= {"model_name": model, "profile": profile}
    _check_values(values)
    if device is not None:
        values["device"] = device
    files = {name: value for name, value in values.items() if name.endswith("_file") and value}
    absolute = values | {name: str(_readable(name, value)) for name, value in files.items()}
    absolute["model_name"] = absolute_model(model)
    if values.get("against"):  # a second model
        absolute["against"] = absolute_model(values["against"])
    stored_inputs(chapter, absolute)
    limit = chapter.profile(profile).time_limit_s if time_limit_s is None else time_limit_s
    if found := find_control(str(out)):
        raise UsageError(f"output folder {str(out)!r}: {found!r} cannot stand in its name")
    try:
        folder = out.expanduser().absolute() / chapter.paper / model_slug(absolute["model_name"])
        _writable(folder)
    except (OSError, RuntimeError) as error:  # too long a name, a home folder that is not there
        raise UsageError(f"output folder {out}: {_reason(error)}") from None
    return Run(chapter, absolute["model_name"], profile, absolute, values, folder, limit)


def _check_values(values: Mapping[str, Any]) -> None:
    """UsageError for a seed below 0, a number type that is none, and a count, `n_...`, below 1."""
    dtype, known = values.get("dtype", "auto"), ("auto", *sizing.BYTES)
    if dtype not in known:
        raise UsageError(f"parameter dtype is {dtype!r}; choose one of: {', '.join(known)}")
    for name, value in values.items():
        seeds = name == "seed" or name.endswith("_seeds")
        if not seeds and not name.startswith("n_") and not name.endswith(("_steps", "_lengths")):
            continue
        several, least = isinstance(value, list), 0 if seeds else 1
        each = value if several else [value]
        if not each or any(type(one) in (int, float) and one < least for one in each):
            what = "whole numbers" if several else "a whole number"
            raise UsageError(f"parameter {name} is {value}; give {what}, {least} or more")


def stored_inputs(chapter: Chapter, values: Mapping[str, Any]) -> dict[str, str]:
    """What the run reads from stored trainings: {name: sha256}. They must be there and whole."""
    stored = stored_module(chapter.paper)
    return stored.needed(chapter.root, values, values["model_name"]) if stored else {}


def changed_since(record: Mapping[str, Any], chapter: Chapter) -> list[str]:
    """What the numbers of a record depend on and what is another now, in words. Nothing is loaded,
    so the weights of a hub model, and of one made in memory, are not looked at."""
    then, model = record["hashes"], record["model"]["name"]
    now = chapter.hashes(model, record["profile"])
    if (weights := weights_hash(model)) is not None:
        now["weights"] = weights
    found = [part for part in now if then[part] != now[part]]
    try:
        values = {**record["parameters"], "model_name": model}
        same = stored_inputs(chapter, values).items() <= then["inputs"].items()
    except UsageError:
        same = False
    return found if same else [*found, "stored trainings"]


def prepare(runs: Sequence[Run], *, skip_missing: bool = False) -> list[Run]:
    """Find the models, the device and the user's rows, in a process that may load the libraries.

    The runs with their device as it is here, if `skip_missing` without those whose embedded model
    is not installed. Raises UsageError as the loading of models and of prompts does.
    """
    quick = [
        (run.model in MADE_IN_MEMORY or run.model in NETWORKS)
        and run.parameters["device"] == "cpu"
        and not run.parameters.get("revision")
        and not run.files
        and not run.parameters.get("against")
        for run in runs
    ]
    if all(quick):
        return list(runs)
    questions = [
        {
            "paper": run.chapter.paper,
            "skip_missing": skip_missing,
            "parameters": run.parameters,
            "needs": [what for what, by in NEEDS.items() if by in reached(run.chapter.notebook)],
        }
        for run in runs
    ]
    process = subprocess.run(
        [sys.executable, "-m", "bookkit.run.child", "prepare"],
        input=json.dumps(questions),
        stdout=subprocess.PIPE,
        text=True,
        cwd=chapter_folder(runs[0].chapter.root, runs[0].chapter.paper),
        env=environment(),
        check=False,
        start_new_session=True,  # an interrupt is ours to answer
    )
    if process.returncode != 0:
        how = "killed, or out of memory" if process.returncode < 0 else "its message stands above"
        ended = f"the process that looks at the model ended with {process.returncode} ({how})"
        raise UsageError(f"{runs[0].name}: {ended}")
    answer = json.loads(process.stdout.splitlines()[-1])
    if "usage" in answer:
        raise UsageError(answer["usage"])
    pairs = zip(runs, answer["found"], strict=True)
    ready = [_made_ready(run, found) for run, found in pairs if found is not None]
    if not ready:
        raise UsageError(f"no model of {runs[0].chapter.paper} is installed; run: make setup")
    return ready


def _made_ready(run: Run, found: Mapping[str, Any]) -> Run:
    """The run with its device and what it is expected to need, scaled from the certified record of
    its paper. Raises UsageError when it cannot fit."""
    device = {"device": found["device"]}
    run = replace(run, parameters={**run.parameters, **device}, given={**run.given, **device})
    run = replace(run, architecture=found.get("architecture"))
    if not found["size"]:
        return run
    size, dtype, available = sizing.Size(**found["size"]), found["dtype"], found["available"]
    known = sizing.certified_reference(run.chapter.root, run.chapter.paper)
    work, speed = run.chapter.profile(run.profile).work, found["speed"]
    try:
        estimate = sizing.estimate(size, dtype, found["device"], available, known, work, speed)
    except UsageError as error:
        raise UsageError(f"{run.name}: {error}") from None
    return replace(run, estimate=estimate, speed=speed)


def _readable(name: str, value: str) -> Path:
    try:
        path = Path(value).expanduser().absolute()
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise UsageError(f"parameter {name}: {value} is not a file")
        refuse_pointer(path, f"parameter {name}: {value}")
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
