"""The copying chapter as its users run it: small, with a second model, and with nothing stored."""

import json
import shutil

import pytest
from transformers import MambaConfig, MambaForCausalLM

from bookkit.cli import main
from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import training_grid as grid
from replib.files import find_root
from replib.models.tiny import tiny_parts

PAPER = "copying-mamba"


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    """A folder with a tiny random Mamba that shares its tokenizer with no other model here."""
    folder = tmp_path_factory.mktemp("models") / "mamba"
    _, tokenizer = tiny_parts("llama", seed=0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, pad_token_id=0
    )
    MambaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def record(mamba, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    smoke = [PAPER, "--model", "tiny", "--profile", "smoke", "--out", str(out)]
    assert main(["run", *smoke, "-p", f"against={mamba}"]) == 0
    return json.loads((out / PAPER / "tiny" / "record.json").read_text())


@pytest.mark.slow
def test_every_claim_has_an_outcome_and_random_models_claim_nothing(record):
    outcomes = {claim["id"]: claim["outcome"] for claim in record["claims"]}
    assert len(outcomes) == 13 and "not_attempted" not in outcomes.values()
    pretrained = {outcomes[f"5.{i}"] for i in (8, 9, 10, 11)}
    assert pretrained == {"not_testable"}
    assert outcomes["5.12"] != "holds"
    assert record["measurements"]["live_networks"]["value"] == 2


@pytest.mark.slow
def test_what_is_about_stored_networks_is_read_from_them(record):
    n = sum(len(study.architectures) * len(study.seeds) for study in grid.STUDIES.values())
    assert record["measurements"]["stored"]["value"] == n
    assert record["measurements"]["stale"]["value"] == 0
    names = [name for name in record["hashes"]["inputs"] if name.startswith("training ")]
    assert len(names) == n


def test_a_missing_or_altered_training_is_one_line_before_the_run(monkeypatch, tmp_path, capsys):
    root = tmp_path / "checkout"
    shutil.copytree(find_root() / "notebooks", root / "notebooks")
    shutil.copy(find_root() / "requirements.txt", root)
    monkeypatch.chdir(root)
    cell = stored.reported(root, "copy", "rope")[0]
    run = ["run", PAPER, "--model", "tiny", "--profile", "smoke", "--out", str(tmp_path / "runs")]
    stored.weights_path(root, cell).write_bytes(b"other")
    assert main(run) == 2
    err = capsys.readouterr().err
    assert f"replib train copying-mamba --cell {cell.name}" in err and err.count("\n") == 1
    stored.card_path(root, cell).unlink()
    assert main(run) == 2
    assert f"training {cell.name} of copying-mamba is missing" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
