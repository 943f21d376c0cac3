"""Records that were checked in, and the comparison of a fresh run with them.

`results/<paper>/<model>/record.json` holds one record for each paper and model. A record is put
there by `certify`, only while it belongs to the code as it is; `compare` says claim by claim where
another run, on another machine perhaps, agrees.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkit.project import words
from bookkit.records import differences, read_bundle, read_record, write_record
from bookkit.run.chapter import find_chapter
from bookkit.run.plan import changed_since
from bookkit.run.resources import FOLDER
from replib.claims.judge import judge
from replib.errors import UsageError
from replib.models.sources import model_slug

# Two machines add in another order; what is measured without an interval may differ by so much.
TOLERANCE = 0.01  # of the larger of the two values


@dataclass(frozen=True)
class Verdict:
    """One claim in two records: where they agree, and in what they do not."""

    claim: str
    outcome: str  # in the fresh run
    disagreement: str  # empty: none


def find_run(run: str, out: Path) -> Path:
    """The folder of a run: a path, or PAPER/MODEL among the runs in `out`.

    Raises UsageError when there is no finished run.
    """
    with contextlib.suppress(OSError, RuntimeError):  # a path that cannot be looked at
        for folder in (Path(run).expanduser(), out / run):
            if (folder / "record.json").is_file():
                return folder
    raise UsageError(f"no finished run {run!r}: neither {run}/record.json nor {out / run}")


def certified_path(root: Path, record: Mapping[str, Any]) -> Path:
    """Where the certified record of this paper and model stands."""
    return root / FOLDER / record["paper"] / model_slug(record["model"]["name"]) / "record.json"


def certify(root: Path, folder: Path) -> Path:
    """Put a run's record into the project's results, in place of an earlier one.

    Raises UsageError when the record was altered, when what it depends on has changed since, or
    when its model is a folder of this machine, which nobody else has.
    """
    record = read_record(folder / "record.json")
    name = record["model"]["name"]
    if altered := alterations(folder):
        raise UsageError(f"{record['paper']} on {name} was altered since it ran: {altered[0]}")
    if changes := changed_since(record, find_chapter(root, record["paper"])):
        raise UsageError(
            f"{record['paper']} on {name} is stale and cannot be certified: {words(changes)} "
            f"changed since; run it again"
        )
    if Path(name).is_absolute():
        raise UsageError(f"{name} is a folder of this machine; certify a model that others can get")
    if files := [
        key for key, value in record["parameters"].items() if key.endswith("_file") and value
    ]:
        raise UsageError(f"the run read a file of yours ({files[0]}); certify one without")
    path = certified_path(root, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return path


def compare(root: Path, folder: Path) -> tuple[list[str], list[Verdict]]:
    """(what the two runs do not have in common, a verdict for every claim).

    Raises UsageError when there is no certified record of this paper and model.
    """
    fresh = read_record(folder / "record.json")
    path = certified_path(root, fresh)
    if not path.is_file():
        raise UsageError(
            f"no certified record of {fresh['paper']} on {fresh['model']['name']} ({path})"
        )
    old = read_record(path)
    kinds = ("notebook", "claims", "library", "weights", "requirements", "environment")
    kinds += ("parameters", "inputs")
    apart = [kind for kind in kinds if fresh["hashes"][kind] != old["hashes"][kind]]
    apart += [key for key in ("profile", "seed", "device") if fresh[key] != old[key]]
    apart += [
        f"parameter {key}"
        for key, value in fresh["parameters"].items()
        if key not in ("device", "profile", "seed") and old["parameters"].get(key) != value
    ]
    before = {claim["id"]: claim for claim in old["claims"]}
    verdicts = [
        Verdict(claim["id"], claim["outcome"], _disagreement(claim, before.get(claim["id"])))
        for claim in fresh["claims"]
    ]
    ids = {claim["id"] for claim in fresh["claims"]}
    verdicts += [
        Verdict(id, "missing", "certified, not in this run") for id in before if id not in ids
    ]
    return apart, verdicts


def alterations(folder: Path) -> list[str]:
    """What shows that a run's record is not what the run wrote, beyond its seal; none if nothing.

    Outcomes that do not follow from the record's own rules and numbers; and, where the executed
    notebook stands beside the record, everything in which the two differ.
    """
    record = read_record(folder / "record.json")
    found = [
        f"claim {claim['id']} is {claim['outcome']!r}, by its own rule and numbers {ruled!r}"
        for claim in record["claims"]
        if (ruled := judge(claim)) is not None and ruled != claim["outcome"]
    ]
    path = folder / "notebook.ipynb"
    if path.is_file():
        found += differences(record, read_bundle(path))
    return found


def _disagreement(fresh: Mapping[str, Any], old: Mapping[str, Any] | None) -> str:
    if old is None:
        return "not in the certified record"
    if fresh["outcome"] != old["outcome"]:
        return f"outcome {fresh['outcome']}, certified {old['outcome']}"
    if fresh["measured"] is None or old["measured"] is None:
        same = (fresh["measured"] is None) == (old["measured"] is None)
        return "" if same else "measured in one of the two only"
    a, b = fresh["measured"]["value"], old["measured"]["value"]
    if a is None or b is None:
        return "" if a == b else f"value {_show(a)}, certified {_show(b)}"
    spans = [claim["interval"] for claim in (fresh, old)]
    if all(span is not None and None not in span for span in spans):
        (low, high), (low_old, high_old) = spans
        if low > high_old or high < low_old:
            return (
                f"interval [{_show(low)}, {_show(high)}], "
                f"certified [{_show(low_old)}, {_show(high_old)}]"
            )
        return ""
    if abs(a - b) > TOLERANCE * max(abs(a), abs(b)):
        return f"value {_show(a)}, certified {_show(b)}"
    return ""


def _show(number: int | float | None) -> str:
    return "not finite" if number is None else f"{number:.4g}"
