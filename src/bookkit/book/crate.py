"""The book as a Research Object Crate: `ro-crate-metadata.json` at the root of the built pages.

It says in schema.org's words, for programs that collect research, what the pages and records are,
which run made each of them, when, from which notebook, claims, weights and software. The form is
RO-Crate 1.1 with the profile Process Run Crate 0.5. Everything comes from the records.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent_encode
from urllib.parse import unquote

from bookkit.book import citations
from bookkit.book.failed import FailedRun
from bookkit.book.runs import RECORDS

FILE = "ro-crate-metadata.json"
RO_CRATE = "https://w3id.org/ro/crate/1.1"
# It has no word for a sha256; schema.org has.
CONTEXT = (f"{RO_CRATE}/context", {"sha256": "http://schema.org/sha256"})
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
TEXT_LICENCE = "https://creativecommons.org/licenses/by/4.0/"
CODE_LICENCE = "https://opensource.org/license/mit/"
DONE, FAILED = "http://schema.org/CompletedActionStatus", "http://schema.org/FailedActionStatus"
Entity = dict[str, Any]
quote = partial(percent_encode, errors="replace")


class Graph:
    """The entities of a crate by id, each once."""

    def __init__(self) -> None:
        self.entities: dict[str, Entity] = {}

    def add(self, id: str, type: str, **properties: Any) -> Entity:
        """An entity, and a reference to it."""
        self.entities.setdefault(id, {"@id": id, "@type": type} | _compact(properties))
        return {"@id": id}

    def of_type(self, type: str) -> list[Entity]:
        """References to all entities of a type."""
        return [{"@id": id} for id, entity in self.entities.items() if entity["@type"] == type]


def write(root: Path, book: Path, pages: Sequence[str], failed: Sequence[FailedRun]) -> None:
    """Put the crate's file into the staged `book`, which Sphinx copies to the root of the pages;
    `pages` are named as in the table of contents."""
    about, graph = citations.about(root), Graph()
    add = graph.add
    add(FILE, "CreativeWork", conformsTo={"@id": RO_CRATE}, about={"@id": "./"})
    add("./", "Dataset", name=about.title, description=about.abstract)
    agents = [add(f"#author/{quote(name)}", "Organization", name=name) for name in about.authors]
    text = add(TEXT_LICENCE, "CreativeWork", name="Creative Commons Attribution 4.0 International")
    add(CODE_LICENCE, "CreativeWork", name="MIT License")
    profile = add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    for page in pages:
        add(_address(page), "File", name=page, encodingFormat="text/html")
    for file in sorted((book / RECORDS).glob("*/*.json")):
        content, key = file.read_bytes(), f"{file.parent.name}/{file.stem}"
        record = json.loads(content)
        path, name = f"_{RECORDS}/{quote(key)}.json", f"record of {_name(record)}"
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "contentSize": str(len(content))}
        made = [add(path, "File", name=name, encodingFormat="application/json", **facts)]
        if f"chapters/{key}" in pages:
            made.append({"@id": _address(f"chapters/{key}")})
        _add_finished(graph, key, record, made)
    for run in failed:
        _add_stopped(graph, run)
    now = datetime.now(UTC).isoformat()
    times = [one["startTime"] for one in graph.entities.values() if "startTime" in one]
    known_now = {
        "license": text,
        "datePublished": max(times, default=now)[:10],
        "author": agents,
        "publisher": agents[0],
        "conformsTo": profile,
        "hasPart": graph.of_type("File"),
        "mentions": graph.of_type("CreateAction"),
        "citation": graph.of_type("ScholarlyArticle"),
    }
    graph.entities["./"] |= _compact(known_now)
    crate = {"@context": CONTEXT, "@graph": list(graph.entities.values())}
    (book / FILE).write_text(json.dumps(crate, indent=1) + "\n", encoding="utf-8")


def _add_finished(graph: Graph, key: str, record: Mapping[str, Any], made: list[Entity]) -> None:
    """A run that finished: from which notebook, on what, when; `made` is what came out."""
    version, paper = record["hashes"]["notebook"], None
    if record["arxiv"] is not None:
        address = f"https://arxiv.org/abs/{quote(record['arxiv'])}"
        paper = graph.add(address, "ScholarlyArticle", name=record["title"])
    notebook = graph.add(
        f"#notebook/{record['paper']}/{version}",
        "SoftwareSourceCode",
        **_notebook(record["paper"]),
        description="The version is the sha256 of its cells: kind, tags and source.",
        version=version,
        citation=paper,
        softwareRequirements=[_software(graph, *one) for one in record["versions"].items()],
    )
    started = datetime.fromisoformat(record["started"])
    graph.add(
        f"#run/{quote(key)}",
        "CreateAction",
        name=_name(record),
        description=f"Profile {record['profile']}, seed {record['seed']}, on {record['device']}; "
        "the record has all parameters.",
        instrument=notebook,
        object=_inputs(graph, record),
        result=made,
        startTime=started.isoformat(),
        endTime=(started + timedelta(seconds=round(record["wall_time_s"]))).isoformat(),
        agent=graph.of_type("Organization"),
        actionStatus=DONE,
    )


def _name(record: Mapping[str, Any]) -> str:
    return f"{record['paper']} on {record['model']['name']}"


def _add_stopped(graph: Graph, run: FailedRun) -> None:
    """A run that failed."""
    notebook = graph.add(f"#notebook/{run.paper}", "SoftwareSourceCode", **_notebook(run.paper))
    graph.add(
        f"#run/{quote(run.key)}",
        "CreateAction",
        name=f"{run.paper} on {run.model}, failed",
        description="This run stopped before its end and has no result but its page.",
        instrument=notebook,
        result=[{"@id": _address(f"chapters/{run.key}")}],
        startTime=run.started.replace("Z", "+00:00") or None,
        agent=graph.of_type("Organization"),
        actionStatus=FAILED,
        error=run.reason,
    )


def _notebook(paper: str) -> Entity:
    name = f"notebooks/{paper}/{paper}.ipynb"
    return {"name": name, "programmingLanguage": "Python", "license": {"@id": CODE_LICENCE}}


def faults(html: Path) -> list[str]:
    """What is wrong with the crate of a built book, one line each: files that it names and that are
    not there, or that are others."""
    try:
        graph = json.loads((html / FILE).read_text(encoding="utf-8"))["@graph"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{FILE} is missing, or is no crate"]
    found = []
    for entity in graph:
        if entity.get("@type") != "File":
            continue
        path = html / unquote(entity["@id"])
        if not path.is_file():
            found.append(f"{FILE} names {entity['@id']}, which is not in the book")
        elif entity.get("sha256") not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
            found.append(f"{FILE} was made from another {entity['@id']} than the one in the book")
    return found


def _compact(properties: Mapping[str, Any]) -> Entity:
    """Without what is empty, and with a list of one thing as the thing, as RO-Crate likes it."""
    kept = {key: value for key, value in properties.items() if value not in (None, [])}
    one = {key: value[0] for key, value in kept.items() if type(value) is list and len(value) == 1}
    return kept | one


def _address(page: str) -> str:
    return f"{quote(page)}.html"


def _software(graph: Graph, name: str, version: str) -> Entity:
    """A package; all but Python and this library have an address on the package index."""
    at = f"{quote(name, safe='')}/{quote(version, safe='')}"
    url = None if name in ("python", "replib") else f"https://pypi.org/project/{at}/"
    words = {"name": name, "softwareVersion": version, "url": url}
    return graph.add(url or f"#software/{at}", "SoftwareApplication", **words)


def _inputs(graph: Graph, record: Mapping[str, Any]) -> list[Entity]:
    """What a run read: the claims, the weights, the user's own files and stored trainings."""
    claims, weights = record["hashes"]["claims"], record["hashes"]["weights"]
    model, file = record["model"]["name"], f"notebooks/{record['paper']}/claims.yaml"
    about = {"name": f"weights of {model}"}
    if not weights:
        about["description"] = "made in memory by the run"
    elif re.fullmatch("[0-9a-f]{64}", weights):
        about["sha256"] = weights
    entities = {f"#claims/{claims}": {"name": file, "sha256": claims}}
    entities[f"#weights/{quote(weights or model, safe='')}"] = about
    for name, sha256 in record["hashes"]["inputs"].items():
        entities[f"#input/{sha256}"] = {"name": name, "sha256": sha256}
    return [graph.add(id, "CreativeWork", **facts) for id, facts in entities.items()]
