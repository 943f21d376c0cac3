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

FILE = "ro-crate-metadata.json"
# RO-Crate 1.1 has no word for a sha256; schema.org has.
CONTEXT = ("https://w3id.org/ro/crate/1.1/context", {"sha256": "http://schema.org/sha256"})
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
TEXT_LICENCE = "https://creativecommons.org/licenses/by/4.0/"
CODE_LICENCE = "https://opensource.org/license/mit/"
DONE, FAILED = "http://schema.org/CompletedActionStatus", "http://schema.org/FailedActionStatus"
Entity = dict[str, Any]
quote = partial(percent_encode, errors="replace")


def write(
    root: Path, book: Path, records: str, pages: Sequence[str], failed: Sequence[FailedRun]
) -> None:
    """Put the crate's file into the staged `book`, which Sphinx copies to the root of the pages.

    `records` is the folder of records in it, `pages` are named as in the table of contents. Title
    and author are those of `root`'s CITATION.cff.
    """
    about = citations.about(root)
    files = {
        path.relative_to(book / records).as_posix().removesuffix(".json"): path.read_bytes()
        for path in sorted((book / records).glob("*/*.json"))
    }
    names = about.title, about.abstract, about.authors
    content = crate(*names, f"_{records}", files, pages, failed)
    text = json.dumps(content, indent=1) + "\n"
    (book / FILE).write_text(text, encoding="utf-8")


def crate(
    title: str,
    about: str,
    authors: Sequence[str],
    folder: str,
    files: Mapping[str, bytes],
    pages: Sequence[str],
    failed: Sequence[FailedRun],
) -> Entity:
    """The metadata of a book; `files` are its records as they are on disk, by `paper/model`, and
    `folder` is where they stand among the built pages."""
    found: dict[str, Entity] = {}  # by id, each once

    def add(id: str, type: str | list[str], **properties: Any) -> Entity:
        """An entity, and a reference to it."""
        found.setdefault(id, {"@id": id, "@type": type} | _compact(properties))
        return {"@id": id}

    agents = [add(f"#author/{quote(name)}", "Organization", name=name) for name in authors]
    text = add(TEXT_LICENCE, "CreativeWork", name="Creative Commons Attribution 4.0 International")
    code = add(CODE_LICENCE, "CreativeWork", name="MIT License")
    profile = add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    parts = [add(_address(page), "File", name=page, encodingFormat="text/html") for page in pages]
    actions, papers, dates = [], [], []
    for key, file in files.items():
        record = json.loads(file)
        path = f"{folder}/{quote(key)}.json"
        name = f"{record['paper']} on {record['model']['name']}"
        facts = {"name": f"record of {name}", "encodingFormat": "application/json"}
        facts |= {"sha256": hashlib.sha256(file).hexdigest(), "contentSize": str(len(file))}
        parts.append(add(path, "File", **facts))
        paper = None  # of a page of the method
        if record["arxiv"] is not None:
            address = f"https://arxiv.org/abs/{quote(record['arxiv'])}"
            paper = add(address, "ScholarlyArticle", name=record["title"])
            papers.append(paper)
        software = [_software(add, *package) for package in record["versions"].items()]
        hashes = record["hashes"]
        notebook = add(
            f"#notebook/{record['paper']}/{hashes['notebook']}",
            "SoftwareSourceCode",
            name=f"notebooks/{record['paper']}/{record['paper']}.ipynb",
            description="The version is the sha256 of its cells: kind, tags and source.",
            version=hashes["notebook"],
            programmingLanguage="Python",
            license=code,
            citation=paper,
            softwareRequirements=software,
        )
        started = datetime.fromisoformat(record["started"])
        dates.append(started)
        page = f"chapters/{key}"
        actions.append(
            add(
                f"#run/{quote(key)}",
                "CreateAction",
                name=name,
                description=f"Profile {record['profile']}, seed {record['seed']}, on "
                f"{record['device']}; the record has all parameters.",
                instrument=notebook,
                object=_inputs(add, record),
                result=[{"@id": path}] + [{"@id": _address(page)}] * (page in pages),
                startTime=started.isoformat(),
                endTime=(started + timedelta(seconds=round(record["wall_time_s"]))).isoformat(),
                agent=agents,
                actionStatus=DONE,
            )
        )
    for run in failed:
        notebook = add(
            f"#notebook/{run.paper}",
            "SoftwareSourceCode",
            name=f"notebooks/{run.paper}/{run.paper}.ipynb",
            programmingLanguage="Python",
            license=code,
        )
        begun = [datetime.fromisoformat(run.started)] if run.started else []
        dates += begun
        actions.append(
            add(
                f"#run/{quote(run.key)}",
                "CreateAction",
                name=f"{run.paper} on {run.model}, failed",
                description="This run stopped before its end and has no result but its page.",
                instrument=notebook,
                result=[{"@id": _address(f"chapters/{run.key}")}],
                startTime=begun[0].isoformat() if begun else None,
                agent=agents,
                actionStatus=FAILED,
                error=run.reason,
            )
        )
    descriptor = {
        "@id": FILE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    book = {
        "name": title,
        "description": about,
        "license": text,
        "datePublished": max(dates, default=datetime.now(UTC)).date().isoformat(),
        "author": agents,
        "publisher": agents[0],
        "conformsTo": profile,
        "hasPart": parts,
        "mentions": actions,
        "citation": [{"@id": id} for id in dict.fromkeys(paper["@id"] for paper in papers)],
    }
    root = {"@id": "./", "@type": "Dataset"} | _compact(book)
    return {"@context": CONTEXT, "@graph": [descriptor, root, *found.values()]}


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


def _software(add: Any, name: str, version: str) -> Entity:
    """A package; all but Python and this library have an address on the package index."""
    at = f"{quote(name, safe='')}/{quote(version, safe='')}"
    url = None if name in ("python", "replib") else f"https://pypi.org/project/{at}/"
    words = {"name": name, "softwareVersion": version, "url": url}
    return add(url or f"#software/{at}", "SoftwareApplication", **words)


def _inputs(add: Any, record: Mapping[str, Any]) -> list[Entity]:
    """What a run read: the claims, the weights, the user's own files and stored trainings."""
    claims, weights = record["hashes"]["claims"], record["hashes"]["weights"]
    model = record["model"]["name"]
    found = [
        add(
            f"#claims/{claims}",
            "CreativeWork",
            name=f"notebooks/{record['paper']}/claims.yaml",
            sha256=claims,
        ),
        add(
            f"#weights/{quote(weights or model, safe='')}",
            "CreativeWork",
            name=f"weights of {model}",
            description=None if weights else "made in memory by the run",
            sha256=weights if re.fullmatch("[0-9a-f]{64}", weights or "") else None,
        ),
    ]
    for name, sha256 in record["hashes"]["inputs"].items():
        found.append(add(f"#input/{sha256}", "CreativeWork", name=name, sha256=sha256))
    return found
