"""Many runs from one file: papers × models × seeds × parameters, as jobs of a workflow.

A job is one `replib run`; those with one seed and the same parameters stand in one folder of runs:
`make book RECORDS=build/sweeps/NAME/seed-0` makes a book of it. The second part is what a job of
any workflow depends on, and the stamps that say it is done. Snakemake watches files and parameters;
package versions and weights are neither, so their marks are given to it as parameters.
"""

import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field

from bookkit.project import chapter_folder, stored_module
from bookkit.run.chapter import find_chapter, to_text
from bookkit.run.gpus import visible_gpus
from bookkit.run.plan import Run, plan
from replib.chapters.stored import NotStored
from replib.claims.schema import Count, Different, Number, Slug, Strict, Text, Words, fit
from replib.errors import UsageError
from replib.files import read_text, read_yaml, sha256_text
from replib.hashes import file_hash, library_files
from replib.models.sources import NETWORKS, SOURCES, networks_of

FOLDER = Path("build/sweeps")
RUN = Path(__file__).parent / "run"
MOST_JOBS = 10_000
PROFILES = ("local", "slurm", "kubernetes")


def _swept(name: str) -> str:
    if name in ("model_name", "device", "profile", "seed"):
        raise ValueError(f"{name} is no parameter of a sweep; it has a key of its own")
    return name


Names = Annotated[list[Words], Field(min_length=1), Different]
Value = Number | Text


class SweepFile(Strict):
    """What a sweep's file holds."""

    name: Annotated[Slug, Field(max_length=60)]
    papers: Names
    models: Names
    seeds: Annotated[list[Count], Field(min_length=1), Different] = Field(default=[0])
    profile: Literal["smoke", "laptop", "paper"] = "laptop"
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    # a value, or a list of values of which each is tried
    parameters: dict[
        Annotated[str, AfterValidator(_swept)],
        Value | Annotated[list[Value], Field(min_length=1), Different],
    ] = Field(default={})
    threads: Annotated[Count, Field(ge=1)] = 1  # of one job
    memory_gb: Annotated[float, Field(gt=0)] = 8  # of one job, for a scheduler that asks


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    run: Run
    settings: Mapping[str, str]  # for -p


@dataclass(frozen=True)
class Sweep:
    path: Path  # its file
    name: str
    folder: Path
    profile: str  # of the runs
    device: str
    threads: int
    memory_mb: int
    jobs: Mapping[str, Job]  # by seed and parameters, as a folder's name, then paper and model
    left_out: Mapping[str, str]  # what cannot be planned yet, with the reason

    def stamp(self, name: str) -> Path:
        """The file that says that a job is done; what is in it is the reason of a refusal."""
        return self.folder / "stamps" / f"{name}.ok"


def read_sweep(root: Path, path: str | Path) -> Sweep:
    """A sweep with every job planned and checked; nothing is written. UsageError for a file that
    does not fit its schema, an unknown paper, model or parameter, and one job that comes twice."""
    where = f"sweep file {path}"
    content = fit(SweepFile, read_yaml(read_text(path, "sweep file"), where), where)
    profile, device = content.profile, content.device
    folder = root / FOLDER / content.name
    axes = {"seed": [to_text(seed) for seed in content.seeds]}
    for key, values in content.parameters.items():
        axes[key] = [to_text(one) for one in (values if isinstance(values, list) else [values])]
    n_jobs = math.prod(map(len, [content.papers, content.models, *axes.values()]))
    if n_jobs > MOST_JOBS:
        raise UsageError(f"{where}: {n_jobs} jobs; at most {MOST_JOBS} fit in one sweep")
    jobs: dict[str, Job] = {}
    left_out: dict[str, str] = {}
    chapters = [find_chapter(root, paper) for paper in content.papers]
    choices = itertools.product(*axes.values())
    for chapter, choice, model in itertools.product(chapters, choices, content.models):
        settings = dict(zip(axes, choice, strict=True))
        variant = _slug(settings)
        try:
            run = plan(chapter, model, profile, settings, out=folder / variant, device=device)
        except NotStored as error:
            left_out[f"{variant}/{chapter.paper}/{model}"] = str(error)
            continue
        name = f"{variant}/{chapter.paper}/{run.folder.name}"
        if name in jobs:
            raise UsageError(f"{where}: {name} is there twice")
        jobs[name] = Job(run, settings)
    if not jobs:
        raise UsageError(f"{where}: no job can be planned: {next(iter(left_out.values()))}")
    memory = round(1000 * content.memory_gb)
    about = content.name, folder, profile, device, content.threads, memory
    return Sweep(Path(path).absolute(), *about, jobs, left_out)


def _slug(settings: Mapping[str, str]) -> str:
    """The name of the folder of these settings: `seed-0,n_prompts-50`; with odd characters, or too
    long, eight digits of a hash as well."""
    plain = ",".join(f"{key}-{text}" for key, text in settings.items())
    if re.fullmatch(r"[A-Za-z0-9_.,-]{1,100}", plain) and ".." not in plain:
        return plain
    readable = re.sub(r"[^A-Za-z0-9_,-]+", "-", plain)[:80].strip("-")
    return f"{readable}@{sha256_text(plain)[:8]}"


def refusals(sweep: Sweep) -> dict[str, str]:
    """The jobs that were refused, such as a chapter about heads on a model without any."""
    return {name: why for name in sweep.jobs if (why := refusal(sweep.stamp(name)))}


def command(
    root: Path, sweep: Sweep, profile: str, n_jobs: int | None, extra: Sequence[str]
) -> list[str]:
    """Snakemake's command line for a sweep; UsageError for a profile that is neither one of
    PROFILES nor a folder with config.yaml."""
    own = root / "workflow/profiles"
    try:
        chosen = own / profile if profile in PROFILES else Path(profile).expanduser()
        is_profile = (chosen / "config.yaml").is_file()
    except (OSError, RuntimeError):  # a path that cannot be looked at
        is_profile = False
    if not is_profile:
        raise UsageError(
            f"profile {profile!r} is neither a folder with config.yaml nor one of: "
            f"{', '.join(PROFILES)}"
        )
    words = [sys.executable, "-m", "snakemake", "--snakefile", f"{root}/workflow/sweep.smk"]
    words += ["--directory", str(root), "--profile", str(chosen)]
    if n_jobs is not None:
        words += ["--jobs", str(n_jobs)]
        if profile == "local":
            words += ["--cores", str(n_jobs * sweep.threads)]
    if profile == "local":
        words += ["--resources", f"gpu={max(1, len(visible_gpus()))}"]
    return [*words, *extra]


def run_sweep(root: Path, sweep: Sweep, words: Sequence[str]) -> int:
    """Snakemake's exit code; UsageError when this sweep is running already."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(sweep.folder / ".lock", timeout=0):
            # Our lock ends with us, unlike Snakemake's, which a killed process leaves behind.
            words = [*words, "--nolock", "--quiet", "rules", "host"]
            return subprocess.run(words, cwd=root, check=False, env=_environment(sweep)).returncode
    except Timeout:
        raise UsageError(f"sweep {sweep.name} is running already") from None


def to_run(root: Path, sweep: Sweep, words: Sequence[str]) -> dict[str, str]:
    """The jobs that would run, by name, each with the reason; nothing is run. UsageError with
    Snakemake's last line when it cannot plan."""
    words = [*words, "--dry-run", "--nolock", "--quiet", "host"]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": _environment(sweep)}
    process = subprocess.run(words, cwd=root, check=False, text=True, **more)
    if process.returncode != 0:
        raise UsageError(f"the sweep cannot be planned: {process.stdout.strip().splitlines()[-1]}")
    found = {}
    for block in re.split(r"^rule ", process.stdout, flags=re.MULTILINE):
        stamp = re.search(r"^    output: \S*?/stamps/(\S+)\.ok$", block, re.MULTILINE)
        reason = re.search(r"^    reason: (.*)$", block, re.MULTILINE)
        if stamp and reason:
            found[stamp[1]] = reason[1].replace(f"{root}{os.sep}", "")
    return dict(sorted(found.items()))


def _environment(sweep: Sweep) -> dict[str, str]:
    """For Snakemake: which file. Not by --config, whose values are read as YAML."""
    return {**os.environ, "REPLIB_SWEEP": str(sweep.path)}


# --- the jobs of a workflow -----------------------------------------------------------------------


def asked(name: str) -> list[str]:
    """The words of the environment variable `name`, parted as a shell does it: a folder with a
    space in its name stands in quotes."""
    text = os.environ.get(name, "")
    try:
        return shlex.split(text)
    except ValueError:  # a quotation mark that belongs to a name
        return text.split()


def models_of(paper: str, words: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The models that a book shows of a paper when these `words` were asked for: a chapter that
    trains its own networks shows its usual ones whatever language models were asked for, and any
    other chapter leaves such networks out."""
    own = networks_of(paper)
    if own:
        return [word for word in words if word in own] or list(usual)
    return [word for word in words if word not in NETWORKS] if words else list(usual)


def own_files(run: Run) -> list[list[str]]:
    """What tells one version of the user's own files from another. They are no input files, in
    whose names Snakemake reads braces as wildcards."""
    return [[key, file_hash(path)] for key, path in run.files.items()]


def weights(name: str) -> str:
    """What tells one set of weights from another without reading them."""
    if name in SOURCES:
        source = SOURCES[name]
        sizes = [[path.name, path.stat().st_size] for path in source.paths() or ()]
        return json.dumps([source.sha256, source.requirements, sizes])
    if Path(name).is_dir():
        files = [path for path in sorted(Path(name).rglob("*")) if path.is_file()]
        return json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files])
    return name


def inputs(run: Run) -> list[str]:
    """The project's files that a run reads: notebook, claims, modules, stored trainings."""
    folder = chapter_folder(run.chapter.root, run.chapter.paper)
    found = [folder / f"{folder.name}.ipynb", folder / "claims.yaml"]
    found += library_files(run.chapter.notebook, *run.chapter.modules(run.model))
    # They do not change the numbers, but what a record holds.
    found += sorted(RUN.glob("*.py"))
    if stored := stored_module(run.chapter.paper):
        found += stored.files(run.chapter.root, run.model)
    return [os.path.relpath(path, run.chapter.root) for path in found]


def refusal(stamp: Path) -> str:
    """Why a run was refused, as its stamp has it; empty if it was not."""
    return stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else ""


def drop_stale_stamps(stamps: Iterable[tuple[Path, Path]]) -> None:
    """Remove every stamp, (stamp, the run's folder), that says nothing: one without the reason of a
    refusal, and with no record or one that was written later by hand."""
    for stamp, folder in stamps:
        record = folder / "record.json"
        if not stamp.exists() or refusal(stamp):
            continue
        if not record.exists() or record.stat().st_mtime > stamp.stat().st_mtime:
            stamp.unlink()
