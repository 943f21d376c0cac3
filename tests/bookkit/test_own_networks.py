"""Chapters that train their own networks: names, refusals, and what the pages say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bookkit.book import runs as listing
from bookkit.book.pages import _about, landing_page, model_switch
from bookkit.book.runs import find_runs, first_run
from bookkit.book.tables import scorecard, transfer
from bookkit.run.chapter import find_chapter
from bookkit.run.plan import plan
from bookkit.sweep import models_of
from replib.errors import UsageError
from replib.files import sha256_text
from replib.models import sources
from replib.models.load import load_model, prepare_model
from replib.models.sources import (
    CONTROLS,
    check_network,
    is_ready,
    network_info,
    networks_of,
    weights_hash,
)

HERE = Path(__file__).parents[1]  # has notebooks/toy
OWN = ("trained-toy", "planted-toy", "untrained-toy")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chapter `toy` trains its own networks."""
    for name in OWN:
        monkeypatch.setitem(sources.NETWORKS, name, "toy")


def test_a_chapter_has_three_networks_of_which_two_are_controls() -> None:
    own = networks_of("copying-mamba")
    assert own == ("trained-copying", "planted-copying", "untrained-copying")
    assert networks_of("successor-heads") == ()
    assert [name for name in own if name in CONTROLS] == list(own[1:])
    assert "planted-ioi" in CONTROLS and "smollm2-135m" not in CONTROLS
    assert all(is_ready(name) and weights_hash(name) is None for name in own)


def test_own_networks_and_language_models_do_not_mix(toy: None) -> None:
    for name in OWN:
        check_network("toy", name)
    check_network("other", "gpt2")
    with pytest.raises(UsageError, match=f"choose one of: {', '.join(OWN)}"):
        check_network("toy", "gpt2")
    with pytest.raises(UsageError, match="trained-toy is no language model; it belongs to toy"):
        check_network("other", "trained-toy")
    chapter = find_chapter(HERE, "toy")
    assert plan(chapter, "trained-toy", "smoke", {}, out=HERE / "never").model == "trained-toy"
    with pytest.raises(UsageError, match="toy trains its own networks"):
        plan(chapter, "tiny", "smoke", {}, out=HERE / "never")


def test_no_network_of_a_chapter_is_loaded_as_a_language_model() -> None:
    with pytest.raises(UsageError, match="belongs to copying-mamba"):
        load_model("trained-copying")
    assert prepare_model("trained-copying") is None


def test_a_record_names_the_source_and_one_hash_of_all_weights() -> None:
    info = network_info("trained-copying", {"b": "2", "a": "1"}, n_params=7)
    assert info == {
        "name": "trained-copying",
        "sha256": sha256_text("1  a\n2  b\n"),
        "source": "trained here and stored with the book",
        "n_params": 7,
    }
    planted = network_info("planted-copying", {})
    assert planted["sha256"] is None and planted["source"] == "weights set by hand"


def test_a_book_on_other_models_has_the_usual_networks_of_a_chapter(toy: None) -> None:
    assert models_of("toy", [], ["trained-toy"]) == ["trained-toy"]
    assert models_of("toy", ["gpt2"], ["trained-toy"]) == ["trained-toy"]
    assert models_of("toy", ["gpt2", "planted-toy"], ["trained-toy"]) == ["planted-toy"]
    assert models_of("other", ["gpt2", "planted-toy"], ["tiny"]) == ["gpt2"]
    assert models_of("other", ["planted-toy"], ["tiny"]) == []
    assert models_of("other", [], ["tiny"]) == ["tiny"]


def test_pages_say_trained_here_and_replication(
    project: Path, toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = find_runs(project / "build/runs", None)
    claims = [claim | {"scope": "replication"} for claim in run.record["claims"]]
    model = run.record["model"] | {"name": "trained-toy"}
    trained = replace(
        run, model="trained-toy", record={**run.record, "claims": claims, "model": model}
    )
    runs = [trained]
    for name in OWN[1:]:
        monkeypatch.setattr(listing, "CONTROLS", (*listing.CONTROLS, name))
        record = {**run.record, "model": model | {"name": name}}
        runs.append(replace(run, model=name, record=record))
    switch = model_switch(trained.key, runs[::-1])
    assert re.findall(r'label">([\w ]+)<', switch) == [
        "Trained here",
        "Planted by hand",
        "Untrained",
    ]
    assert first_run(runs[::-1]) is trained
    assert "replication (the paper trains its own networks)" in _about(trained, "x", "again")
    assert "a control of the procedure" in _about(runs[1], "x", "again")
    card, table = scorecard(runs), transfer(runs)
    assert card.count("outcomes-table") == 2 and card.count("<strong>Controls.</strong>") == 1
    assert "<small>replication</small>" in card
    assert "networks trained here as in the paper" in table and "planted-toy" not in table
    file = find_chapter(project, "fake-paper").claims
    assert "The paper's own model is" in landing_page(runs, file, "")
    first = landing_page(runs, replace(file, model="trained-toy"), "")
    assert "The paper trains its own networks, and so does this chapter." in first
