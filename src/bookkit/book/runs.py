"""The runs that the book shows."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bookkit.book.html import outcome_word
from bookkit.project import words
from bookkit.records import FOLDER, read_record, record_value
from bookkit.run.chapter import find_chapter
from bookkit.run.plan import changed_since
from replib.claims.rules import OUTCOMES
from replib.errors import UsageError
from replib.files import sha256_file
from replib.models.sources import CONTROLS, NETWORKS

STALE = "static/stale.json"  # the keys of stale runs, with what has changed
RECORDS = "static/records"  # in the staged book; `_static/records` in the built one
_WAYS = {"trained": "Trained here", "planted": "Planted by hand", "untrained": "Untrained"}
_NAME = re.compile(r"[^./][^/]{0,199}/(?!index$)[A-Za-z0-9][A-Za-z0-9_.@-]{0,199}")


@dataclass(frozen=True)
class Run:
    """One finished run: `runs/<paper>/<model>/` with its record, already checked."""

    paper: str
    model: str  # the folder's name; `record["model"]["name"]` is the model's own
    record: Mapping[str, Any]
    sha256: str  # of record.json as it is on disk
    folder: Path
    stale: tuple[str, ...] = ()  # what has changed since

    @property
    def key(self) -> str:
        return f"{self.paper}/{self.model}"

    @property
    def executed(self) -> bool:
        """Is its notebook there too, or, as in a checkout's results, the record alone?"""
        return (self.folder / "notebook.ipynb").is_file()

    @property
    def control(self) -> bool:
        """Is it a model made to check the procedure: the planted or a random one?"""
        return self.model in CONTROLS

    @property
    def kind(self) -> str:
        """Under which word the switcher of a chapter's pages has it."""
        if self.model in NETWORKS:
            return _WAYS[self.model.partition("-")[0]]
        return "Controls" if self.control else "Models"

    @property
    def is_method(self) -> bool:
        return self.record["arxiv"] is None

    @property
    def scope(self) -> str:
        """Does it replicate the paper on its own model, or show transfer to another one?"""
        return " and ".join(sorted({claim["scope"] for claim in self.record["claims"]}))

    @property
    def tally(self) -> str:
        """`3 holds, 1 fails, …` in the order of OUTCOMES, without those that do not occur."""
        found = Counter(claim["outcome"] for claim in self.record["claims"])
        return ", ".join(f"{found[name]} {outcome_word(name)}" for name in OUTCOMES if found[name])

    @property
    def last_verified(self) -> str:
        """The day on which it was computed, if that was with the code as it is."""
        if self.stale:
            return f"not since {words(self.stale)} changed"
        return self.record["started"][:10]

    def value(self, key: str) -> Any:
        return record_value(self.record, key)

    def claim(self, id: str) -> Mapping[str, Any] | None:
        return next((claim for claim in self.record["claims"] if claim["id"] == id), None)


def finished(runs: Path) -> list[str]:
    """Every finished run in a folder of runs, as `paper/model`."""
    folders = [path.parent.relative_to(runs) for path in runs.glob("*/*/record.json")]
    # Names with a dot in front are the runner's own, of runs that go on or were replaced.
    return sorted(f.as_posix() for f in folders if not f.name.startswith("."))


def find_runs(
    runs: Path, expected: Sequence[str] | None, certified: Path | None = None
) -> list[Run]:
    """The runs named `paper/model` in `expected`, in that order; without it all that finished.

    One that is not in `runs` may be among the `certified` records of a checkout.
    """
    if expected is None:
        expected = finished(runs)
    if not expected:
        raise UsageError(f"no finished run in {runs}; {_instead(runs)}")
    found = []
    for pair in expected:
        if not _NAME.fullmatch(pair):
            raise UsageError(
                f"a run is named paper/model, not {pair!r}; letters, digits, . _ - and @ name a "
                "model's page, but not index, which is the chapter's first"
            )
        paper, model = pair.split("/")
        folder = runs / pair
        if certified and not (folder / "record.json").is_file():
            folder = certified / pair
        path = folder / "record.json"
        if not path.is_file():
            raise UsageError(f"no finished run of {paper} on {model}: {runs / pair}/record.json")
        record = read_record(path)
        if record["paper"] != paper:
            raise UsageError(f"{path} is of paper {record['paper']}, not {paper}")
        found.append(Run(paper, model, record, sha256_file(path), folder))
    return found


def _instead(runs: Path) -> str:
    """What to give in place of the folder of one run, of one paper or of a sweep."""
    folder = runs.absolute()
    if (folder / "record.json").is_file():
        right = {folder.parents[1]}
    elif any(folder.glob("*/record.json")):
        right = {folder.parent}
    else:
        right = {path.parents[2] for path in folder.glob("*/*/*/record.json")}
    if right:
        return f"give {' or '.join(sorted(map(str, right))[:5])}"
    return "make one with: replib run PAPER --model M"


def find_shown(
    root: Path, runs: Path, expected: Sequence[str] | None, *, may_be_none: bool = False
) -> list[Run]:
    """The expected runs, or all that finished, and the certified ones of which the prose shows
    numbers. Each knows what has changed since."""
    if expected is None:
        expected = finished(runs)
        if not expected and not may_be_none:
            find_runs(runs, None)  # says that there is none
    certified = root / FOLDER
    text = "".join(path.read_text() for path in (root / "book").rglob("*.md"))
    named = sorted({*re.findall(r"\{record\}`([^\s`]+/[^\s`]+) ", text)} - {*expected})
    pairs = [*expected, *(pair for pair in named if (certified / pair / "record.json").is_file())]
    found = find_runs(runs, pairs, certified) if pairs else []
    changes = [changed_since(run.record, find_chapter(root, run.paper)) for run in found]
    return [replace(run, stale=tuple(of)) for run, of in zip(found, changes, strict=True)]


def by_paper(runs: Iterable[Run]) -> dict[str, list[Run]]:
    papers: dict[str, list[Run]] = {}
    for run in runs:
        papers.setdefault(run.paper, []).append(run)
    return papers


def of_papers(runs: Iterable[Run]) -> list[Run]:
    """Without the pages of the method, about which no table of results says anything."""
    return [run for run in runs if not run.is_method]


def kinds(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """The runs on models, then those on controls, each with a word for them, without what is empty.
    Networks that a chapter trains itself are told apart by how they came about."""
    found: dict[str, list[Run]] = {label: [] for label in ("Models", *_WAYS.values(), "Controls")}
    for run in runs:
        found[run.kind].append(run)
    return [(label, members) for label, members in found.items() if members]


def first_run(members: Sequence[Run]) -> Run:
    """The run whose page stands for a method: on a model, if there is one, not on a control."""
    return kinds(members)[0][1][0]
