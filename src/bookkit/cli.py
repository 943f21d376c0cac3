"""The command line: `replib run PAPER ...` and its siblings; `replib --help` lists them.

Exit codes: 0 finished, 1 a run failed, 2 the command was wrong (one line, nothing written),
130 interrupted.
"""

import contextlib
import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

import replib
from bookkit import train as training
from bookkit.book import commands as book
from bookkit.book import reports
from bookkit.certify import certify, check, is_second, second_run, unstable
from bookkit.new import new_paper
from bookkit.project import list_chapters, words
from bookkit.records import alterations, compare, find_run, read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import RunFailed, execute
from bookkit.run.gpus import own_gpu
from bookkit.run.plan import Run, changed_since, plan, prepare
from bookkit.sweep import PROFILES, command, read_sweep, refusals, run_sweep, to_run
from replib.claims.rules import OUTCOMES
from replib.errors import UsageError, one_line
from replib.files import find_root, write_whole
from replib.models.sources import EMBEDDED, KNOWN, available_embedded

OUT = Path("build/runs")
app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    help=replib.__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(book.app, name="book")

Text = str | None
Profile = Literal["smoke", "laptop", "paper"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Paper = Annotated[str, Argument(metavar="PAPER", help="A name that `replib list` shows.")]
Finished = Annotated[str, Argument(metavar="RUN", help="A folder, or PAPER/MODEL in --out.")]
Out = Annotated[Path, Option(metavar="DIR", help="Where runs stand.")]
MODELS = f"{', '.join(KNOWN)}, a folder, a hub id; or a chapter's own networks, trained-NAME."
PAIRS = "A parameter of the notebook; may come several times."
LIMIT = "For each model; 0 for none; default: the profile's, else an hour."
REFUSAL = "For workflows: if the run is refused, write the line to FILE and end with 0."
WHERE = f"{', '.join(PROFILES)}, or a folder."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # As after an interrupt: a run's processes and its hidden folder go with us.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        own = list(sys.argv[1:] if arguments is None else arguments)
        extra: list[str] = []
        if "--" in own:
            own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
        if extra and own[:1] != ["sweep"]:
            raise UsageError(f"{extra[0]!r} after --: only replib sweep passes options on")
        own += [f"--passed-on={word}" for word in extra]
        with typer.main.get_command(app).make_context("replib", own) as context:
            return context.command.invoke(context)
    except typer.Exit as end:  # after --help and --version
        return end.exit_code
    except (typer.TyperException, UsageError) as error:
        _say(_wrong(error) if isinstance(error, typer.TyperException) else str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # who read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _wrong(error: typer.TyperException) -> str:
    """What is wrong with a command, as one line; of a value also which option it was given to."""
    text = error.format_message()
    if found := getattr(error.__cause__, "errors", list)():  # pydantic's
        text = f"{error.param.opts[0]} is {found[0]['input']}: {error.message}"
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "replib"
    return f"{text.replace('Value error, ', '')} (see {where} --help)"


def _version(asked: bool) -> bool:
    if asked:
        print(f"replib {replib.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _top(
    version: Annotated[
        bool, Option("--version", help="Show the version.", callback=_version)
    ] = False,
) -> None:
    pass


@app.command("list")
def list_all() -> int:
    """List the papers, their profiles, and the models installed."""
    root = find_root()
    chapters = [find_chapter(root, paper) for paper in list_chapters(root)]
    for chapter in sorted(chapters, key=lambda chapter: chapter.claims.is_method):
        claims = chapter.claims
        about = "a page of the method" if claims.is_method else f"arXiv {claims.arxiv}"
        print(f"{claims.paper}\n  {claims.title} ({about})")
        for name, profile in chapter.profiles.items():
            default = "  (default)" if name == "laptop" else ""
            print(f"  {name:<7} {', '.join(profile.models)}{default}", flush=True)
    installed = available_embedded()
    states = (f"{name} ({'' if name in installed else 'not '}installed)" for name in EMBEDDED)
    print(f"embedded models: {', '.join(states)}")
    return 0


@app.command()
def run(
    paper: Paper,
    model: Annotated[Text, Option(metavar="NAME", help=MODELS)] = None,
    profile: Annotated[Profile, Option(help="How large.")] = "laptop",
    parameters: Annotated[list[str], Option("-p", metavar="name=value", help=PAIRS)] = (),
    seed: Annotated[Text, Option(metavar="N", help="Same as -p seed=N.")] = None,
    dtype: Annotated[Text, Option(metavar="TYPE", help="Of numbers, such as float32.")] = None,
    revision: Annotated[
        Text, Option(metavar="R", help="A hub model's branch, tag, commit.")
    ] = None,
    device: Annotated[Device | None, Option(help="Where to compute.")] = None,
    out: Out = OUT,
    time_limit: Annotated[float | None, Option(metavar="SECONDS", help=LIMIT)] = None,
    refusal: Annotated[Path | None, Option(metavar="FILE", help=REFUSAL)] = None,
    certify_it: Annotated[bool, Option("--certify", help="Then certify it.")] = False,
) -> int:
    """Run a paper's notebook on a model, or on those of the profile."""
    short = {"seed": seed, "dtype": dtype, "revision": revision}
    pairs = [*parameters, *(f"{name}={text}" for name, text in short.items() if text is not None)]
    try:
        if time_limit is not None and not 0 <= time_limit < float("inf"):
            raise UsageError(f"--time-limit is {time_limit}; give seconds, or 0 for none")
        chapter = find_chapter(find_root(), paper)
        settings = _settings(pairs)
        models = chapter.profile(profile).models if model is None else [model]
        runs = [
            plan(chapter, name, profile, settings, out=out, device=device, time_limit_s=time_limit)
            for name in models
        ]
        ready = prepare(runs, skip_missing=model is None)
        failed = [
            one
            for one in ready
            if not _run_one(one) or (certify_it and not _certify_one(one.folder))
        ]
    except UsageError as error:
        if refusal is None:
            raise
        _keep(refusal, str(error))
        _say(str(error))
        return 0
    if refusal is not None and not failed:
        _keep(refusal)
    return 1 if failed else 0


def _run_one(run: Run) -> bool:
    """Run it and say what came of it; whether it finished."""
    if run.estimate is not None:
        _say(f"{run.name}: {run.estimate.line()}")
    try:
        waiting = functools.partial(_say, f"{run.name}: waiting for a GPU")
        with own_gpu(run.parameters["device"], waiting) as gpu, _progress(run.name) as progress:
            folder = execute(replace(run, gpu=gpu), progress)
    except RunFailed as error:
        _say(str(error))
        return False
    record = read_record(folder / "record.json")
    counts = Counter(claim["outcome"] for claim in record["claims"])
    found = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
    print(f"{run.name}: {found}; {record['wall_time_s']:.0f} s; {folder}", flush=True)
    return True


def _keep(path: Path, refused: str = "") -> None:
    """Write why a run was refused into a file; without a reason the file goes."""
    try:
        if refused:
            write_whole(path, (one_line(refused, 2000) + "\n").encode())
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        before = f"{refused}; " if refused else ""
        raise UsageError(f"{before}--refusal {path}: {error.strerror}") from None


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    """The user's parameters as text, by name."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"-p {pair!r} is not name=value")
        if name.strip() in settings:
            raise UsageError(f"parameter {name.strip()} is given twice")
        settings[name.strip()] = text
    return settings


@app.command()
def sweep(
    file: Annotated[str, Argument(metavar="SWEEP.yaml", help="Name, papers, models, seeds, ...")],
    profile: Annotated[str, Option(metavar="NAME", help=WHERE)] = "local",
    jobs: Annotated[int | None, Option(metavar="N", min=1, help="Jobs at once.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would run, and why.")] = False,
    passed_on: Annotated[list[str], Option(hidden=True)] = (),  # what stands after --
) -> int:
    """Run papers × models × seeds × parameters, here or on a cluster.

    Runs every job of a sweep file that is not done, or whose notebook, library, packages,
    parameters or weights have changed since. What is given after -- goes to Snakemake.
    """
    root = find_root()
    planned = read_sweep(root, file)
    line = command(root, planned, profile, jobs, passed_on)
    _say(f"sweep {planned.name}: {len(planned.jobs)} jobs; results in {planned.folder}")
    for name, reason in planned.left_out.items():
        _say(f"{name} is left out: {reason}")
    if dry_run:
        waiting = to_run(root, planned, line)
        for name, reason in waiting.items():
            done = f"build/sweeps/{planned.name}/stamps/{name}.ok"
            print(f"{name}: {'not done yet' if done in reason else one_line(reason, 300)}")
        print(f"{len(waiting)} of {len(planned.jobs)} jobs would run", flush=True)
        return 0
    if run_sweep(root, planned, line):
        _say(f"sweep {planned.name}: some jobs failed; to go on, give the same command again")
        return 1
    for name, reason in refusals(planned).items():
        print(f"{name}: refused: {reason}")
    done = f"all {len(planned.jobs)} jobs are done: {planned.folder}"
    print(f"sweep {planned.name}: {done}", flush=True)
    return 0


@app.command("certify")
def _certify(run: Finished, out: Out = OUT) -> int:
    """Run it again with other numerics, keep both among the results.

    The second run has the same seed and hashes, but other threads and older instructions. A claim
    whose outcome differs is unclear. The record is to be checked in.
    """
    return 0 if _certify_one(find_run(run, out)) else 1


def _certify_one(folder: Path) -> bool:
    """Certify a finished run; whether its second run finished."""
    root, record = find_root(), read_record(folder / "record.json")
    chapter = find_chapter(root, record["paper"])
    changes = changed_since(record, chapter)
    second = None
    if not check(folder, changes).get("again"):
        run = second_run(chapter, record)
        path = run.folder / "record.json"  # it may be there, from a certification that was stopped
        if not path.is_file() or not is_second(record, read_record(path)):
            (run,) = prepare([run], skip_missing=False)
            if not _run_one(run):
                return False
        second = read_record(path)
    path = certify(root, folder, changes, second)
    reports.write_readme(root)
    shaky = unstable(read_record(path))
    print(f"certified: {path}{f'; unstable: {words(shaky)}' if shaky else ''}", flush=True)
    return True


@app.command()
def verify(run: Finished, out: Out = OUT) -> int:
    """Compare a run with the certified record, claim by claim."""
    folder = find_run(run, out)
    apart, verdicts = compare(find_root(), folder)
    if apart:
        _say(f"not the same computation as the certified one; other: {words(apart)}")
    for verdict in verdicts:
        print(f"{verdict.claim:<8} {verdict.disagreement or f'agrees ({verdict.outcome})'}")
    altered = alterations(folder)
    for text in altered:
        print(f"altered: {text}")
    bad = sum(bool(verdict.disagreement) for verdict in verdicts)
    print(f"{folder}: {len(verdicts) - bad} of {len(verdicts)} claims agree", flush=True)
    return 1 if bad or altered else 0


@app.command()
def new(
    slug: Annotated[str, Argument(metavar="SLUG", help="Its name, words-like-this.")],
    title: Annotated[str, Option(metavar="TITLE", help="The paper's title.")],
    arxiv: Annotated[str, Option(metavar="NUMBER", help="Such as 2310.08744.")],
) -> int:
    """Start a chapter on another paper.

    Writes notebook, claims, profiles, test and page of a new chapter, which run as they are, and
    enters it in the book's table of contents.
    """
    for path in new_paper(find_root(), slug, title, arxiv):
        print(path)
    print(f"next: replib run {slug} --profile smoke", flush=True)
    return 0


# What comes after the paper is the chapter's, --help as well.
@app.command(context_settings={"allow_interspersed_args": False})
def train(
    paper: Paper,
    options: Annotated[list[str], Argument(metavar="OPTION", help="PAPER --help lists them.")] = (),
) -> int:
    """Train again what a chapter keeps stored, in place of the old."""
    return training.train(find_root(), paper, list(options), _say)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, else a line at each quarter of the cells."""
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        about = progress.TextColumn("{task.description}", markup=False)
        rest = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
        with progress.Progress(about, *rest, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda begun, total: bar.update(task, completed=begun - 1, total=total)
        return
    told = -1

    def tell(begun: int, total: int) -> None:
        nonlocal told
        if (quarter := 4 * (begun - 1) // total) > told:
            told = quarter
            _say(f"{name}: cell {begun} of {total}")

    yield tell


def _say(text: str) -> None:
    print(f"replib: {one_line(text, 2000)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
