"""Certification: a run's record becomes one of the project's results, after a second run.

The second run has the same chapter, model, seed and hashes, but other numerics
(`bookkit.run.numerics`). A claim whose outcome differs between the two is *unclear*, because
rounding decides it; what both runs gave stands in its `unstable`. The run's own record becomes the
certified one, so that a book of runs says the same as a book of certified records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookkit.project import words
from bookkit.records import (
    Numerics,
    alterations,
    certified_path,
    read_record,
    write_record,
)
from bookkit.run.chapter import Chapter, to_text
from bookkit.run.numerics import in_words, other
from bookkit.run.plan import OPTIONS, Run, plan
from replib.claims.schema import Found
from replib.claims.tables import show_number
from replib.errors import UsageError
from replib.models.sources import MADE_IN_MEMORY

SECOND = Path("build/certify")  # second runs, in the project
SAME = ("paper", "model", "profile", "parameters", "seed", "device", "hashes")
DECIDED = ("holds", "fails", "unclear")


def check(folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The record of a run that may be certified.

    UsageError when there are `changes` since (`plan.changed_since`), when the record was altered or
    is from before numerics were recorded, and when its model or a file that it read is of this
    machine, which nobody else has.
    """
    record = read_record(folder / "record.json")
    name = record["model"]["name"]
    if altered := alterations(folder):
        raise UsageError(f"{record['paper']} on {name} was altered since it ran: {altered[0]}")
    stale = [*changes] if record.get("numerics") else [*changes, "the form of records"]
    if stale:
        raise UsageError(
            f"{record['paper']} on {name} is stale and cannot be certified: {words(stale)} "
            f"changed since; run it again"
        )
    if Path(name).is_absolute():
        raise UsageError(f"{name} is a folder of this machine; certify a model that others can get")
    for key, value in record["parameters"].items():
        if key.endswith("_file") and value:
            raise UsageError(f"the run read a file of yours ({key}); certify one without")
    return record


def second_run(chapter: Chapter, record: Mapping[str, Any]) -> Run:
    """The same run once more, with other numerics; its place is among the second runs."""
    given = record["parameters"].items()
    settings = {name: to_text(value) for name, value in given if name not in OPTIONS}
    run = plan(
        chapter,
        record["model"]["name"],
        record["profile"],
        settings,
        out=chapter.root / SECOND,
        device=record["device"],
        time_limit_s=0.0,  # it has ended once; older instructions are slower
    )
    return replace(run, numerics=other(Numerics(**record["numerics"])))


def is_second(record: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Is `second` the same computation with other numerics?"""
    return not _apart(record, second) and second.get("numerics") not in (None, record["numerics"])


def _apart(record: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In what two runs differ that have to be of the same computation. Weights that are made in
    memory are computed anew, with the numerics of each run, and do not count."""
    if record["model"]["name"] in MADE_IN_MEMORY:
        record, second = _without_weights(record), _without_weights(second)
    return [key for key in SAME if record[key] != second[key]]


def _without_weights(record: Mapping[str, Any]) -> dict[str, Any]:
    model, hashes = ({**record[key]} for key in ("model", "hashes"))
    model.pop("sha256", None)
    hashes.pop("weights", None)
    return {**record, "model": model, "hashes": hashes}


def certify(
    root: Path, folder: Path, changes: Sequence[str], second: Mapping[str, Any] | None
) -> Path:
    """Put a run's record, together with that of its second run, into the project's results, in
    place of an earlier one. UsageError as for `check`, and if the second run is another's.
    """
    record = check(folder, changes)
    if second is not None:
        record = unite(record, second)
        write_record(folder / "record.json", record)
    elif not record.get("again"):
        raise UsageError(f"{folder} was not run a second time")
    path = certified_path(root, record)
    write_record(path, record)
    return path


def unite(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The first run's record, with what the second run says otherwise."""
    if not is_second(first, second):
        apart = _apart(first, second) or ["numerics, which are equal"]
        raise UsageError(f"the second run of {first['paper']} is another's: {words(apart)}")
    again = {key: second[key] for key in ("numerics", "wall_time_s", "started")}
    said = [in_words(record["numerics"]) for record in (first, second)]
    pairs = zip(first["claims"], second["claims"], strict=True)
    return {**first, "again": again, "claims": [_united(*pair, said) for pair in pairs]}


def unstable(record: Mapping[str, Any]) -> list[str]:
    """The claims of a certified record whose outcome rounding decides."""
    return [claim["id"] for claim in record["claims"] if claim.get("unstable")]


def _united(
    first: Mapping[str, Any], second: Mapping[str, Any], said: Sequence[str]
) -> dict[str, Any]:
    """A claim of two runs. Its numbers are those of the first one that decided it."""
    found = [{key: one[key] for key in Found.model_fields} for one in (first, second)]
    decided = [one for one in found if one["outcome"] in DECIDED]
    if first["outcome"] == second["outcome"] or not decided:
        return dict(first)
    told = [f"{_outcome(one)} with {numerics}" for one, numerics in zip(found, said, strict=True)]
    both = {"first": found[0], "second": found[1]}
    outcome = {"outcome": "unclear", "reason": f"unstable: {'; '.join(told)}", "unstable": both}
    return {**first, **decided[0], **outcome}


def _outcome(found: Mapping[str, Any]) -> str:
    """`holds (0.6 [0.41, 0.73])`."""
    word, measured = found["outcome"].replace("_", " "), found["measured"]
    if measured is None:
        return word
    text = show_number(measured["value"], measured["unit"])
    if found["interval"] is not None:
        text += f" [{', '.join(map(show_number, found['interval']))}]"
    return f"{word} ({text})"
