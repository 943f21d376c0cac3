"""The Research Object Crate of the small book, by a validator and by the gate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
import requests
from rocrate_validator import services
from rocrate_validator.utils.http import HttpRequester
from small_book import EXPECTED, gate, stage

from bookkit.book import crate

CONTEXT = Path(__file__).parents[2].joinpath("ro-crate-1.1-context.json")
METADATA = f"_build/html/{crate.FILE}"


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], list[str]]:
    """What the validator says of a crate's folder, with the one file that it asks the network for
    at hand (the words of RO-Crate 1.1, in the public domain) and no network."""

    def get(self: HttpRequester, url: str, **options: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url = 404, url
        if url == crate.CONTEXT[0]:
            response.status_code, response._content = 200, CONTEXT.read_bytes()
            response.headers["Content-Type"] = "application/ld+json"
        return response

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    monkeypatch.setattr(HttpRequester, "head", get, raising=False)

    def problems(folder: Path) -> list[str]:
        settings = services.ValidationSettings(
            rocrate_uri=str(folder),
            profile_identifier="process-run-crate",
            requirement_severity="REQUIRED",
            offline=True,
            cache_path=tmp_path / "cache",
        )
        result = services.validate(settings)
        found = [f"{issue.message} {issue.violatingEntity}" for issue in result.get_issues()]
        assert result.passed() == (not found)
        return found

    return problems


def entities(built: Path) -> dict[str, dict[str, Any]]:
    graph = json.loads((built / METADATA).read_text())["@graph"]
    assert len(graph) == len({entity["@id"] for entity in graph})
    return {entity["@id"]: entity for entity in graph}


def test_a_validator_accepts_the_book(built: Path, problems: Callable) -> None:
    assert problems(built / "_build/html") == []


def test_every_run_is_there_with_what_went_in_and_what_came_out(built: Path) -> None:
    found = entities(built)
    run = found[f"#run/{EXPECTED[0]}"]
    record = json.loads((built / f"build/runs/{EXPECTED[0]}/record.json").read_text())
    assert run["startTime"] == "2026-01-02T03:04:05+00:00"
    assert run["endTime"] == "2026-01-02T03:05:20+00:00"  # 75.2 s later
    notebook = found[run["instrument"]["@id"]]
    assert notebook["version"] == record["hashes"]["notebook"]
    assert found[notebook["softwareRequirements"]["@id"]]["softwareVersion"] == "2.13.0"
    inputs = [found[thing["@id"]] for thing in run["object"]]
    assert [thing.get("sha256") for thing in inputs] == [record["hashes"]["claims"], None]
    results = [found[thing["@id"]] for thing in run["result"]]
    assert [thing["encodingFormat"] for thing in results] == ["application/json", "text/html"]
    assert {"@id": run["@id"]} in found["./"]["mentions"]
    assert found["./"]["datePublished"] == "2026-01-02"
    assert {"@id": "https://arxiv.org/abs/2001.00001"} in found["./"]["citation"]


def test_a_failed_run_is_there_as_failed(built: Path) -> None:
    run = entities(built)[f"#run/{crate.quote(f'{hostile.PAPER}/{hostile.MODEL}.failed')}"]
    assert run["actionStatus"] == crate.FAILED
    assert run["error"].endswith("in cell [6], `fail()`")
    assert run["result"]["@id"].endswith(".failed.html")


def test_weights_and_files_carry_their_hash() -> None:
    record = {"paper": "p", "model": {"name": "m"}}
    record["hashes"] = {"claims": "c", "weights": "0" * 64, "inputs": {"facts_file": "1" * 64}}
    graph = crate.Graph()
    ids = [reference["@id"] for reference in crate._inputs(graph, record)]
    assert ids == ["#claims/c", f"#weights/{'0' * 64}", f"#input/{'1' * 64}"]
    assert [graph.entities[id]["sha256"] for id in ids] == ["c", "0" * 64, "1" * 64]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (METADATA, None, "", "is missing, or is no crate"),
        (METADATA, "{", "", "is missing, or is no crate"),
        (METADATA, '"scorecard.html",\n   "@type"', '"card.html",\n   "@type"', "names card.html"),
        (
            f"_build/html/_static/records/{EXPECTED[0]}.json",
            "900.0",
            "901.0",
            f"from another _static/records/{EXPECTED[0]}.json",
        ),
    ],
)
def test_the_gate_refuses(
    built: Path, broken: Callable, file: str, old: str | None, new: str, message: str
) -> None:
    broken(file, old, new)
    assert any(message in fault for fault in gate(built))


def test_the_authors_are_those_of_the_citation(project: Path) -> None:
    (project / "CITATION.cff").write_text(
        "title: T\nversion: 1\nabstract: About.\nauthors: [{name: A}, {name: B}]\n"
    )
    stage(project)
    graph = json.loads((project / "build/book" / crate.FILE).read_text())["@graph"]
    assert graph[1]["description"] == "About."
    assert [author["@id"] for author in graph[1]["author"]] == ["#author/A", "#author/B"]
