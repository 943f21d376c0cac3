"""Records of finished runs: written whole and sealed, read with every check, looked up by key,
certified, and compared with certified ones.

A record carries a seal, the sha256 of everything else in it, so that a number that was changed
afterwards is found whenever the record is read. A seal is no signature: who recomputes it is found
only by the run's notebook, which holds the same claims (`differences`), or by the repository's
history. `results/<paper>/<model>/record.json` holds one certified record for each paper and model.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from replib.claims.file import MIME, Change
from replib.claims.judge import judge
from replib.claims.schema import (
    Count,
    Key,
    MeasuredClaim,
    Measurement,
    Role,
    Scalar,
    Slug,
    Strict,
    Text,
    Whole,
    Words,
    fit,
)
from replib.errors import UsageError, did_you_mean
from replib.files import read_json, read_text, sha256_text, write_whole
from replib.models.sources import model_slug

FOLDER = "results"  # certified records
# Two machines add in another order. What is measured without an interval may differ by so much:
TOLERANCE = 0.01  # of the larger of the two values
# or, where the value is itself a rounding error, as far as sums of some thousand float32 products
# do: each is rounded by 2^-24 of its size, and the errors of many add up like a random walk.
ROUNDING = 2**-24 * 1000**0.5  # of the largest number of the claim, and of 1 if all are smaller

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[Whole, Field(ge=1)]
Layers = Annotated[int, Field(ge=0, le=1000)]
Time = Annotated[str, Field(pattern="^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]


class ModelInfo(Strict, extra="allow"):
    """Where the weights came from."""

    name: Words
    sha256: Text | None
    n_params: Positive = 1
    n_layers: Layers | None = None
    n_heads: Layers | None = None
    __pydantic_extra__: dict[str, Scalar]


class Hashes(Strict):
    """sha256 in hexadecimal digits of what the numbers depend on."""

    notebook: Sha256
    claims: Sha256
    library: Sha256  # of the code that the notebook computes with
    weights: Text | None  # None: made from the seed, or by hand
    requirements: Sha256 | None
    environment: Sha256  # of the names and versions of all packages that were installed
    parameters: Sha256  # of the profile's values and the notebook's defaults
    inputs: dict[str, Sha256]  # the user's own files, by parameter, and stored trainings, by name


class Calibration(Strict):
    """The model's size and the machine's speed, from which other runs are estimated."""

    n_params: Positive
    n_embedding: Count
    d_model: Positive
    speed: Annotated[float, Field(gt=0)]  # FLOP/s
    batch_scale: Annotated[float, Field(gt=0)]


class Numerics(Strict):
    """What decides the last digits of a sum: in which order it is added up, and by what."""

    threads: Positive
    instructions: Words  # "all", or the set that the libraries were limited to
    processor: Words


class Again(Strict):
    """The second run of a certified record, with other numerics."""

    numerics: Numerics
    wall_time_s: Annotated[float, Field(ge=0)]
    started: Time


class Record(Strict):
    """One finished run of one paper on one model."""

    schema_version: Literal[1]
    paper: Slug
    title: Words
    arxiv: Text | None  # None: a page of the method, about no paper
    model: ModelInfo
    profile: Words
    parameters: dict[str, Scalar | list[Scalar]]
    seed: Whole
    claims: Annotated[list[MeasuredClaim], Field(min_length=1)]
    measurements: dict[Key, Measurement]
    heads: dict[str, Role]
    changes: list[Change]
    status: Literal["finished"]
    hashes: Hashes
    versions: dict[str, Text]
    device: Words
    threads: Positive
    wall_time_s: Annotated[float, Field(ge=0)]
    peak_memory_mb: Annotated[float, Field(ge=0)]
    started: Time
    calibration: Calibration | None  # None: a model made in memory
    numerics: Numerics | None = None  # None: a record from before they were kept
    again: Again | None = None  # only of a certified record
    seal: Sha256  # of everything else in the record


# --- writing and reading --------------------------------------------------------------------------


def seal(record: Mapping[str, Any]) -> str:
    """sha256 of a record's content, whatever the order of its keys, without the seal itself."""
    content = {key: value for key, value in record.items() if key != "seal"}
    return sha256_text(json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False))


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Seal a record, check it and write it by rename, so that no reader ever sees half of it."""
    where = f"record for {path}"
    fit(Record, {**record, "seal": "0" * 64}, where)
    record = {**record, "seal": seal(record)}
    check_record(record, where)
    text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(Path(path), text.encode())


def read_record(path: str | Path) -> dict[str, Any]:
    """A record from its file; UsageError if it is missing, broken, unfinished or was altered."""
    record = read_json(read_text(path, "record"), f"record {path}")
    check_record(record, f"record {path}")
    return record


def check_record(record: Any, where: str) -> None:
    """UsageError unless the record is whole, has each claim once, and its seal fits."""
    fit(Record, record, where)
    ids = [claim["id"] for claim in record["claims"]]
    if twice := [i for i in ids if ids.count(i) > 1]:
        raise UsageError(f"{where}: claim {twice[0]} is there twice")
    if record["seal"] != seal(record):
        raise UsageError(
            f"{where} was altered after it was written: its seal does not fit; run it again"
        )


def bundles(cells: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Every table of verdicts in a notebook: the cell that put it out, and its claims."""
    outputs = [(cell, output) for cell in cells for output in cell.get("outputs", ())]
    return [(cell, one["data"][MIME]) for cell, one in outputs if MIME in one.get("data", {})]


def differences(record: Mapping[str, Any], bundle: Mapping[str, Any]) -> Iterator[str]:
    """Where a record differs from what its notebook's last cell holds, one line each."""
    stored = {claim["id"]: claim for claim in bundle["claims"]}
    recorded = {claim["id"]: claim for claim in record["claims"]}
    for id in sorted(stored.keys() | recorded.keys()):
        ours, theirs = stored.get(id), recorded.get(id)
        if ours is None or theirs is None:
            yield f"claim {id} is in the {'record' if theirs else 'notebook'} only"
            continue
        if theirs.get("unstable"):  # the notebook is the first run's
            theirs = {**theirs, **theirs["unstable"]["first"]}
        for key, value in ours.items():
            if value != theirs[key]:
                yield f"claim {id}, {key} is {value!r}, in the record {theirs[key]!r}"
    for key in ("paper", "title", "arxiv", "model", "measurements", "heads", "changes"):
        if bundle[key] != record[key]:
            yield f"{key} differs from the record's"


# --- looking up -----------------------------------------------------------------------------------


def record_value(record: Mapping[str, Any], key: str) -> str | int | float | bool | None:
    """What a page calls `key`: `claims.1.8.null.q95`, `measurements.ioi_accuracy.n`, `model.name`.

    None: the number was not finite, or the claim was not measured. UsageError: no such key.
    """
    values = record_values(record)
    if key in values:
        return values[key]
    for claim in record["claims"]:
        if claim["measured"] is None and key.startswith(f"claims.{claim['id']}."):
            return None
    where = f"{record['paper']} on {record['model']['name']}"
    raise UsageError(f"no {key!r} in the record of {where}{did_you_mean(key, values)}")


def record_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Every single value of a record by its dotted key."""
    values: dict[str, Any] = {}
    for claim in record["claims"]:
        measured = claim["measured"] or {"value": None, "unit": "", "note": ""}
        low, high = claim["interval"] or (None, None)
        own = {k: v for k, v in claim.items() if k not in ("id", "measured", "interval")}
        own |= {**measured, "low": low, "high": high, "null": claim["null"] or {}}
        values |= _flat(f"claims.{claim['id']}", own)
    for key, entry in record["measurements"].items():
        low, high = entry["interval"] or (None, None)
        own = {k: v for k, v in entry.items() if k != "interval"}
        values |= _flat(f"measurements.{key}", own | {"low": low, "high": high})
    for key, entry in record.items():
        if key not in ("claims", "measurements", "changes", "heads"):
            values |= _flat(key, entry)
    return values


def _flat(key: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        return {} if isinstance(entry, list) else {key: entry}
    parts = [_flat(f"{key}.{name}", value) for name, value in entry.items()]
    return {name: value for part in parts for name, value in part.items()}


# --- certified records ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One claim in two records: where they agree, and in what they do not."""

    claim: str
    outcome: str  # in the fresh run
    disagreement: str  # empty: none


def find_run(run: str, out: Path) -> Path:
    """The folder of a finished run: a path, or PAPER/MODEL among the runs in `out`."""
    with contextlib.suppress(OSError, RuntimeError):  # a path that cannot be looked at
        for folder in (Path(run).expanduser(), out / run):
            if (folder / "record.json").is_file():
                return folder
    raise UsageError(f"no finished run {run!r}: neither {run}/record.json nor {out / run}")


def certified_path(root: Path, record: Mapping[str, Any]) -> Path:
    """Where the certified record of this paper and model stands."""
    return root / FOLDER / record["paper"] / model_slug(record["model"]["name"]) / "record.json"


def compare(root: Path, folder: Path) -> tuple[list[str], list[Verdict]]:
    """(what a run and the certified one do not have in common, a verdict for every claim);
    UsageError when there is no certified record of this paper and model."""
    fresh = read_record(folder / "record.json")
    path = certified_path(root, fresh)
    if not path.is_file():
        raise UsageError(
            f"no certified record of {fresh['paper']} on {fresh['model']['name']} ({path})"
        )
    old = read_record(path)
    apart = [kind for kind in Hashes.model_fields if fresh["hashes"][kind] != old["hashes"][kind]]
    apart += [key for key in ("profile", "seed", "device") if fresh[key] != old[key]]
    apart += [
        f"parameter {key}"
        for key, value in fresh["parameters"].items()
        if key not in ("device", "profile", "seed") and old["parameters"].get(key) != value
    ]
    before = {claim["id"]: claim for claim in old["claims"]}
    then, now = old.get("numerics") or {}, fresh.get("numerics") or {}
    apart += [key for key in then if now and now[key] != then[key]]
    verdicts = []
    for claim in fresh["claims"]:
        certified = before.pop(claim["id"], None)
        known = ", certified as unstable" if certified and certified.get("unstable") else ""
        said = _disagreement(claim, certified)
        verdicts.append(Verdict(claim["id"], f"{claim['outcome']}{known}", said))
    return apart, verdicts + [Verdict(id, "missing", "certified, not in this run") for id in before]


def alterations(folder: Path) -> list[str]:
    """What shows that a run's record is not what the run wrote, beyond its seal: outcomes that do
    not follow from its own rules and numbers, and every difference from the notebook beside it."""
    record = read_record(folder / "record.json")
    found = [
        f"claim {claim['id']} is {claim['outcome']!r}, by its own rule and numbers {ruled!r}"
        for claim in record["claims"]
        if (ruled := judge(claim)) is not None and ruled != claim["outcome"]
    ]
    path = folder / "notebook.ipynb"
    if path.is_file():
        try:
            ((_, bundle),) = bundles(json.loads(read_text(path, "notebook"))["cells"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"notebook {path} does not hold one table of verdicts") from None
        found += differences(record, bundle)
    return found


def _disagreement(fresh: Mapping[str, Any], old: Mapping[str, Any] | None) -> str:
    if old is None:
        return "not in the certified record"
    both = old.get("unstable") or {}
    if fresh["outcome"] not in {old["outcome"], *(one["outcome"] for one in both.values())}:
        return f"outcome {fresh['outcome']}, certified {old['outcome']}"
    if both or fresh["outcome"] == "not_testable":
        return ""  # rounding decides its outcome, and so its numbers; or they say nothing
    if fresh["measured"] is None or old["measured"] is None:
        same = fresh["measured"] == old["measured"]
        return "" if same else "measured in one of the two only"
    a, b = fresh["measured"]["value"], old["measured"]["value"]
    shown = ["not finite" if x is None else f"{x:.4g}" for x in (a, b)]
    said = f"value {shown[0]}, certified {shown[1]}"
    rounding = ROUNDING * _magnitude(fresh, old)
    spans = [claim["interval"] for claim in (fresh, old)]
    if a is None or b is None:
        apart = a != b
    elif all(span is not None and None not in span for span in spans):
        (low, high), (low_old, high_old) = spans
        apart = max(low - high_old, low_old - high) > rounding
        said = f"interval [{low:.4g}, {high:.4g}], certified [{low_old:.4g}, {high_old:.4g}]"
    else:
        apart = abs(a - b) > max(TOLERANCE * max(abs(a), abs(b)), rounding)
    return said if apart else ""


def _magnitude(*claims: Mapping[str, Any]) -> float:
    """The largest number that was measured for a claim, but 1 at least; what was counted has no
    rounding."""
    parts = [claim.get(name) or {} for claim in claims for name in ("measured", "null")]
    numbers = [number for part in parts for number in part.values() if isinstance(number, float)]
    return max([1.0, *map(abs, numbers)])
