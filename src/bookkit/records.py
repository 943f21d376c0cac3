"""Records of finished runs: written whole and sealed, read with every check, looked up by key.

A record carries a seal, the sha256 of everything else in it, so that a number that was changed
afterwards, by hand or by a bad disk, is found whenever the record is read. A seal is no signature:
who recomputes it is found only by the run's notebook, which holds the same claims
(`differences`), or by the history of the repository.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from replib.claims.file import MIME
from replib.claims.schema import check_schema
from replib.errors import UsageError, did_you_mean
from replib.files import read_json, read_text, write_whole


def seal(record: Mapping[str, Any]) -> str:
    """sha256 of a record's content, whatever the order of its keys, without the seal itself."""
    content = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_bundle(notebook: Path) -> dict[str, Any]:
    """The claims that an executed notebook's last cell holds; UsageError if there are none."""
    try:
        cells = json.loads(read_text(notebook, "notebook"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        (bundle,) = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"notebook {notebook} does not hold one table of verdicts") from None
    return bundle


def differences(record: Mapping[str, Any], bundle: Mapping[str, Any]) -> Iterator[str]:
    """Where a record differs from what its notebook's last cell holds, one line each."""
    stored = {claim["id"]: claim for claim in bundle["claims"]}
    recorded = {claim["id"]: claim for claim in record["claims"]}
    for id in sorted(stored.keys() | recorded.keys()):
        ours, theirs = stored.get(id), recorded.get(id)
        if ours is None or theirs is None:
            yield f"claim {id} is in the {'record' if theirs else 'notebook'} only"
            continue
        for key, value in ours.items():
            if value != theirs[key]:
                yield f"claim {id}, {key} is {value!r}, in the record {theirs[key]!r}"
    for key in ("paper", "title", "arxiv", "model", "measurements", "heads", "changes"):
        if bundle[key] != record[key]:
            yield f"{key} differs from the record's"


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Seal a record, check it and write it by rename, so that no reader ever sees half of it."""
    path = Path(path)
    check_schema({**record, "seal": "0" * 64}, "record", f"record for {path}")
    record = {**record, "seal": seal(record)}
    check_record(record, f"record for {path}")
    text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def read_record(path: str | Path) -> dict[str, Any]:
    """A record from its file; UsageError if it is missing, broken, unfinished or was altered."""
    record = read_json(read_text(path, "record"), f"record {path}")
    check_record(record, f"record {path}")
    return record


def check_record(record: Any, where: str) -> None:
    """UsageError unless the record fits its schema, has each claim once, and its seal is whole."""
    check_schema(record, "record", where)
    ids = [claim["id"] for claim in record["claims"]]
    if twice := [i for i in ids if ids.count(i) > 1]:
        raise UsageError(f"{where}: claim {twice[0]} is there twice")
    if record["seal"] != seal(record):
        raise UsageError(
            f"{where} was altered after it was written: its seal does not fit; run it again"
        )


def record_value(record: Mapping[str, Any], key: str) -> str | int | float | bool | None:
    """What a page calls `key`: `claims.1.8.value`, `claims.1.8.null.q95`, `claims.1.8.<name>`,
    `measurements.ioi_accuracy.high`, `model.name`, `wall_time_s`.

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
        own = {name: claim[name] for name in ("statement", "reported", "outcome", "reason")}
        own |= measured | {"low": low, "high": high, "n": claim["n"], "scope": claim["scope"]}
        own |= {f"null.{name}": x for name, x in (claim["null"] or {}).items()}
        own |= {"source.mark": claim["source"]["mark"], "source.where": claim["source"]["where"]}
        own |= {f"decision_rule.{name}": x for name, x in claim["decision_rule"].items()}
        values |= {f"claims.{claim['id']}.{name}": x for name, x in own.items()}
    for key, entry in record["measurements"].items():
        low, high = entry["interval"] or (None, None)
        own = {"value": entry["value"], "n": entry["n"], "unit": entry["unit"]}
        own |= {"low": low, "high": high}
        values |= {f"measurements.{key}.{name}": x for name, x in own.items()}
    skipped = ("claims", "measurements", "changes", "heads")
    rest = {k: v for k, v in record.items() if k not in skipped}
    for key, entry in rest.items():
        values |= _flat(key, entry)
    return values


def _flat(key: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, Mapping):
        parts = [_flat(f"{key}.{name}", value) for name, value in entry.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {} if isinstance(entry, list) else {key: entry}
