"""The command line: `replib run PAPER ...` and its siblings; `replib --help` lists them.

Exit codes: 0 finished, 1 a run failed, 2 the command was wrong (one line, nothing written),
130 interrupted.
"""

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import replib
from bookkit.book import readme
from bookkit.certified import alterations, certify, compare, find_run
from bookkit.new import new_paper
from bookkit.project import list_chapters, words
from bookkit.records import read_record
from bookkit.run.chapter import PROFILES, find_chapter
from bookkit.run.execute import RunFailed, execute
from bookkit.run.gpus import own_gpu
from bookkit.run.plan import Run, absolute_model, plan, prepare
from bookkit.sweep import PROFILES as SWEEP_PROFILES
from bookkit.sweep import command, read_sweep, refusals, run_sweep, to_run
from replib.chapters.context_knob.cards import INTENT_FORMATS
from replib.chapters.copying_mamba import training_grid as grid
from replib.claims.rules import OUTCOMES
from replib.errors import UsageError, one_line
from replib.files import find_root, write_whole
from replib.models.sources import EMBEDDED, KNOWN, MADE_IN_MEMORY, available_embedded

OUT = Path("build/runs")
SHORT = (
    ("seed", "N", ""),
    ("dtype", "TYPE", "auto, float32, bfloat16, float16 or float64; "),
    ("revision", "R", "of a hub model: a branch, a tag or a commit; "),
)
TRAINED = ("context-knob", grid.PAPER)


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        own, extra = words, []
        if "--" in words:
            own, extra = words[: words.index("--")], words[words.index("--") + 1 :]
        options = _parser().parse_args(own)
        if extra and options.command is not _sweep:
            raise UsageError(f"{extra[0]!r} after --: only replib sweep passes options on")
        options.extra = extra
        return options.command(options)
    except UsageError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # who read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> _Parser:
    parser = _Parser(prog="replib", description=replib.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"replib {replib.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="the papers, their profiles, the models installed")
    listing.set_defaults(command=_list)

    run = commands.add_parser("run", help="run a paper's notebook on a model", allow_abbrev=False)
    run.set_defaults(command=_run)
    run.add_argument("paper", metavar="PAPER", help="a name that `replib list` shows")
    run.add_argument("--model", help=f"{', '.join(KNOWN)}, a folder, or a hub id")
    run.add_argument("--profile", choices=PROFILES, default="laptop", help="default: laptop")
    run.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="name=value",
        help="a parameter of the notebook; may come several times",
    )
    for name, metavar, about in SHORT:
        run.add_argument(f"--{name}", metavar=metavar, help=f"{about}the same as -p {name}=...")
    run.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"))
    run.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"default: {OUT}")
    run.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="for each model; 0 for none; default: the profile's, else an hour",
    )

    run.add_argument(
        "--refusal",
        type=Path,
        metavar="FILE",
        help="for workflows: if the run is refused, write the line to FILE and end with 0",
    )

    sweep = commands.add_parser(
        "sweep",
        help="run papers × models × seeds × parameters, here or on a cluster",
        allow_abbrev=False,
        description="Run every job of a sweep file that is not done, or whose notebook, library, "
        "packages, parameters or weights have changed since. What is given after -- goes to "
        "Snakemake.",
    )
    sweep.set_defaults(command=_sweep)
    sweep.add_argument("file", metavar="SWEEP.yaml", help="name, papers, models, seeds, ...")
    sweep.add_argument(
        "--profile",
        default="local",
        help=f"{', '.join(SWEEP_PROFILES)}, or a folder; default: local",
    )
    sweep.add_argument("--jobs", type=int, metavar="N", help="jobs at once")
    sweep.add_argument("--dry-run", action="store_true", help="say what would run, and why")

    for name, about in (
        ("certify", "put a run's record among the project's results, to be checked in"),
        ("verify", "compare a run with the certified record, claim by claim"),
    ):
        command = commands.add_parser(name, help=about, description=f"{about}.".capitalize())
        command.set_defaults(command={"certify": _certify, "verify": _verify}[name])
        command.add_argument("run", metavar="RUN", help="a run's folder, or PAPER/MODEL")
        command.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"default: {OUT}")

    new = commands.add_parser(
        "new",
        help="start a chapter on another paper",
        description="Write notebook, claims, profiles, test and page of a new chapter, which run "
        "as they are, and enter it in the book's table of contents.",
    )
    new.set_defaults(command=_new)
    new.add_argument("slug", metavar="SLUG", help="its name, words-like-this")
    new.add_argument("--title", required=True, help="the paper's title")
    new.add_argument("--arxiv", required=True, metavar="NUMBER", help="such as 2310.08744")

    train = commands.add_parser(
        "train",
        help="train again what a chapter keeps stored",
        allow_abbrev=False,
        description="Train what a chapter keeps stored, from nothing, in place of the old. "
        "context-knob: the adapters of one model and seed. copying-mamba: the cells of its grid "
        "that are missing, altered or older than the code; or one cell.",
    )
    train.set_defaults(command=_train)
    train.add_argument("paper", metavar="PAPER", choices=TRAINED, help=", ".join(TRAINED))
    knob = train.add_argument_group("context-knob")
    knob.add_argument("--model", help=f"{', '.join(EMBEDDED)}, a folder, a hub id")
    knob.add_argument("--seed", type=int, metavar="S", help="0, 1, 2, ...")
    knob.add_argument(
        "--format", choices=INTENT_FORMATS, help="how the intent is written; default: each in turn"
    )
    copying = train.add_argument_group("copying-mamba")
    copying.add_argument("--cell", metavar="NAME", help="only this one, such as copy/rope-0.003-1")
    copying.add_argument("--cores", type=int, metavar="N", help="cells at a time; default: all")
    train.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu")
    return parser


def _run(options: argparse.Namespace) -> int:
    """The exit code; with --refusal, a refused run is a result of its own, kept in that file."""
    if options.refusal is None:
        return _run_all(options)
    try:
        code = _run_all(options)
    except UsageError as error:
        with _kept(options.refusal, f"{error}; "):
            write_whole(options.refusal, (one_line(str(error), 2000) + "\n").encode())
        _say(str(error))
        return 0
    if code == 0:
        with _kept(options.refusal):
            options.refusal.unlink(missing_ok=True)
    return code


@contextlib.contextmanager
def _kept(path: Path, before: str = "") -> Iterator[None]:
    """A file of a refusal that cannot be changed is one line, with what was to be said `before`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{before}--refusal {path}: {error.strerror}") from None


def _run_all(options: argparse.Namespace) -> int:
    chapter = find_chapter(find_root(), options.paper)
    settings = _settings(options)
    if options.time_limit is not None and not 0 <= options.time_limit < float("inf"):
        raise UsageError(f"--time-limit is {options.time_limit}; give seconds, or 0 for none")
    models = (
        [options.model] if options.model is not None else chapter.profile(options.profile).models
    )
    runs = [
        plan(
            chapter,
            model,
            options.profile,
            settings,
            out=options.out,
            device=options.device,
            time_limit_s=options.time_limit,
        )
        for model in models
    ]
    code = 0
    for run in prepare(runs, skip_missing=options.model is None):
        if run.estimate is not None:
            _say(f"{run.name}: {run.estimate.line()}")
        try:
            waiting = functools.partial(_say, f"{run.name}: waiting for a GPU")
            with own_gpu(run.parameters["device"], waiting) as gpu, _progress(run) as progress:
                folder = execute(replace(run, gpu=gpu), progress)
        except RunFailed as error:
            _say(str(error))
            code = 1
            continue
        record = read_record(folder / "record.json")
        counts = Counter(claim["outcome"] for claim in record["claims"])
        found = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        print(f"{run.name}: {found}; {record['wall_time_s']:.0f} s; {folder}", flush=True)
    return code


def _sweep(options: argparse.Namespace) -> int:
    root = find_root()
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs is {options.jobs}; give a whole number, 1 or more")
    planned = read_sweep(root, options.file)
    path = Path(options.file)
    words = command(root, path, planned, options.profile, options.jobs, options.extra)
    _say(f"sweep {planned.name}: {len(planned.jobs)} jobs; results in {planned.folder}")
    for name, reason in planned.left_out.items():
        _say(f"{name} is left out: {reason}")
    if options.dry_run:
        waiting = to_run(root, words)
        for name, reason in waiting.items():
            done = f"build/sweeps/{planned.name}/stamps/{name}.ok"
            print(f"{name}: {'not done yet' if done in reason else one_line(reason, 300)}")
        print(f"{len(waiting)} of {len(planned.jobs)} jobs would run", flush=True)
        return 0
    if run_sweep(root, planned, words):
        _say(f"sweep {planned.name}: some jobs failed; to go on, give the same command again")
        return 1
    for name, reason in refusals(planned).items():
        print(f"{name}: refused: {reason}")
    count = len(planned.jobs)
    print(f"sweep {planned.name}: all {count} jobs are done: {planned.folder}", flush=True)
    return 0


def _new(options: argparse.Namespace) -> int:
    for path in new_paper(find_root(), options.slug, options.title, options.arxiv):
        print(path)
    print(f"next: replib run {options.slug} --profile smoke", flush=True)
    return 0


def _certify(options: argparse.Namespace) -> int:
    path = certify(root := find_root(), find_run(options.run, options.out))
    readme.write(root)
    print(f"certified: {path}", flush=True)
    return 0


def _verify(options: argparse.Namespace) -> int:
    folder = find_run(options.run, options.out)
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


def _train(options: argparse.Namespace) -> int:
    foreign = ("model", "seed", "format") if options.paper == grid.PAPER else ("cell", "cores")
    for name in foreign:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} does not belong to {options.paper}; see replib train -h")
    return _train_grid(options) if options.paper == grid.PAPER else _train_adapters(options)


def _train_grid(options: argparse.Namespace) -> int:
    """One cell here, or what is needed as jobs of Snakemake, until nothing is."""
    root = find_root()
    if options.cores is not None and options.cores < 1:
        raise UsageError(f"--cores is {options.cores}; give a whole number, 1 or more")
    if options.cell is not None:
        cell = grid.cell_of(options.cell)
        from replib.chapters.copying_mamba.training import train_cell

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = train_cell(root, cell, options.device, lambda t: _say(f"{cell.name}: {t}"))
        print(f"{grid.PAPER}, {cell.name}: {path}", flush=True)
        return 0
    while cells := grid.needed(root):
        _say(f"{grid.PAPER}: {len(cells)} cells to train")
        marks = [f"build/grid/{cell.name}.done" for cell in cells]
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(root / "workflow/grid.smk"),
        ]
        command += ["--cores", str(options.cores or os.cpu_count() or 1), "--keep-going"]
        command += ["--config", f"device={options.device}", "--quiet", "rules", "--force", *marks]
        if subprocess.run(command, cwd=root, check=False).returncode:
            _say(f"{grid.PAPER}: some cells failed; to go on: replib train {grid.PAPER}")
            return 1
    print(f"{grid.PAPER}: all cells are there: {grid.folder(root)}", flush=True)
    return 0


def _train_adapters(options: argparse.Namespace) -> int:
    root = find_root()
    for name in ("model", "seed"):
        if getattr(options, name) is None:
            raise UsageError(f"replib train {options.paper} needs --{name}")
    if options.seed < 0:
        raise UsageError(f"--seed is {options.seed}; give a whole number, 0 or more")
    if options.model in MADE_IN_MEMORY:
        raise UsageError(f"model {options.model!r} is made in memory and needs no adapter")
    model = absolute_model(options.model)
    from replib.chapters.context_knob.training import train_adapter

    for intent_format in [options.format] if options.format else INTENT_FORMATS:
        name = f"{options.paper}, {options.model}, {intent_format}-{options.seed}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' advice to themselves
            folder = train_adapter(
                root,
                options.paper,
                model,
                intent_format,
                options.seed,
                options.device,
                lambda line, name=name: _say(f"{name}: {line}"),
            )
        print(f"{name}: {folder}", flush=True)
    return 0


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """The user's parameters as text, by name."""
    settings: dict[str, str] = {}
    short = {name: getattr(options, name) for name, _, _ in SHORT}
    given = [f"{name}={text}" for name, text in short.items() if text is not None]
    for pair in [*options.parameters, *given]:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"-p {pair!r} is not name=value")
        if name.strip() in settings:
            raise UsageError(f"parameter {name.strip()} is given twice")
        settings[name.strip()] = text
    return settings


def _list(options: argparse.Namespace) -> int:
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


@contextlib.contextmanager
def _progress(run: Run) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, else a line at each quarter of the cells."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=run.name, unit="cell", leave=False, dynamic_ncols=True) as bar:

            def show(begun: int, total: int) -> None:
                bar.total, bar.n = total, begun - 1
                bar.refresh()

            yield show
        return
    told = -1

    def tell(begun: int, total: int) -> None:
        nonlocal told
        if (quarter := 4 * (begun - 1) // total) > told:
            told = quarter
            _say(f"{run.name}: cell {begun} of {total}")

    yield tell


def _say(text: str) -> None:
    print(f"replib: {one_line(text, 2000)}", file=sys.stderr, flush=True)


def _terminate(signal_number: int, frame: object) -> NoReturn:
    """Leave as after an interrupt: a run's processes and its hidden folder go with us."""
    raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    sys.exit(main())
