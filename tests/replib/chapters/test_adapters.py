"""Adapters: trained twice alike, stored whole, merged as peft merges, refused when they are not."""

import itertools
import json
import shutil
from unittest import mock

import pytest
import torch

from bookkit.cli import main
from bookkit.run.chapter import find_chapter
from bookkit.run.plan import plan
from replib.chapters.context_knob import training as finetuning
from replib.chapters.context_knob.adapters import adapted, load_adapter
from replib.chapters.context_knob.intents import FORMATS, SPLITS
from replib.chapters.context_knob.stored import CARD, CONFIG, INTENT_FORMATS, WEIGHTS
from replib.chapters.factual_recall.facts import readable, relations
from replib.chapters.stored import NotStored
from replib.errors import UsageError
from replib.files import find_root
from replib.models.bridge import model_info
from replib.models.load import load_bare, load_model
from replib.models.sources import SOURCES
from replib.models.tiny import tiny_parts

PAPER = "context-knob"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama with its tokenizer, saved as a user would have it."""
    where = tmp_path_factory.mktemp("models") / "llama"
    for part in tiny_parts("llama", seed=0):
        part.save_pretrained(where)
    return str(where)


@pytest.fixture(scope="module")
def small():
    """A few rows, and facts that a random model is taken to know."""

    def known(tokenizer, greedily, split, most):
        assert greedily(["The capital of France is"], ["Paris"])
        return readable(tokenizer, relations()["capital"])[list(SPLITS).index(split) :: 3][:most]

    settings = {"rows": 40, "batch": 8, "validation_rows": 8, "foils": 2, "validate_every": 2}
    with (
        mock.patch.object(finetuning, "known_facts", known),
        mock.patch.dict(finetuning.SETTINGS, settings),
    ):
        yield


@pytest.fixture(scope="module")
def trained(folder, small, tmp_path_factory):
    roots = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    return [finetuning.train_adapter(root, folder, "weight", 3) for root in roots], roots


def adapter_of(folder, root, seed=3):
    sha256 = model_info(load_model(folder)).sha256
    return load_adapter(root, folder, sha256, "weight", seed)


def test_two_trainings_with_one_seed_agree_in_every_byte(folder, small, trained, tmp_path):
    (first, second), _ = trained
    other = finetuning.train_adapter(tmp_path, folder, "weight", 4)
    assert (other / WEIGHTS).read_bytes() != (first / WEIGHTS).read_bytes()
    for name in (WEIGHTS, CONFIG):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    targets = json.loads((first / CONFIG).read_text())["target_modules"]
    assert targets == sorted(targets)  # not in the order of a set, which changes with each process
    assert str(first.parents[3]) not in (first / CONFIG).read_text()  # no path of this machine
    cards = [json.loads((path / CARD).read_text()) for path in (first, second)]
    assert all(card.pop("wall_time_s") >= 0 for card in cards)
    assert cards[0] == cards[1]


def test_the_card_tells_how_it_was_made(trained, folder):
    (first, _), (root, _) = trained
    card = json.loads((first / CARD).read_text())
    assert (card["seed"], card["intent_format"], card["settings"]["rows"]) == (3, "weight", 40)
    losses, validation = card["curve"]["loss"], card["curve"]["validation"]
    assert len(losses) == 5 and [step for step, _ in validation] == [0, 2, 4, 5]
    assert validation[-1][1] < validation[0][1]
    assert [path.name for path in first.parent.iterdir()] == ["weight-3"]  # nothing left over
    adapter = adapter_of(folder, root)
    assert not adapter.is_stale
    adapter.card["code_sha256"] = "0" * 64
    assert adapter.is_stale


def test_the_loss_is_that_of_the_answers_tokens_and_the_end_only(folder):
    network, tokenizer = load_bare(folder)
    rows = [
        ("When Mary and John went to the", "store"),
        ("The capital of France is", "red ball of"),
    ]
    each = []
    for prompt, answer in rows:
        ids = [*tokenizer(f"{prompt} {answer}").input_ids, tokenizer.eos_token_id]
        n = len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logits = network(torch.tensor([ids])).logits[0, n - 1 : -1]
        target = torch.tensor(ids[n:])
        each.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    with torch.no_grad():
        loss = finetuning._loss(network, tokenizer, rows)
    assert [len(values) for values in each] == [2, 4]
    torch.testing.assert_close(loss, torch.cat(each).mean(), atol=1e-4, rtol=1e-4)


def test_an_adapter_is_merged_as_peft_merges_it_and_taken_out_without_a_trace(trained, folder):
    from peft import PeftModel

    (first, _), (root, _) = trained
    model = load_model(folder)
    ids = torch.tensor([model.tokenizer("When Mary and John went to the store").input_ids])
    before = {name: p.clone() for name, p in model.original_model.state_dict().items()}
    with torch.no_grad():
        plain = model.original_model(ids).logits
        with adapted(model, adapter_of(folder, root)):
            merged = model.original_model(ids).logits
        network, _ = load_bare(folder)
        expected = PeftModel.from_pretrained(network, first)(ids).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(merged, plain, atol=1e-4)
    with pytest.raises(ZeroDivisionError), adapted(model, adapter_of(folder, root)):
        raise ZeroDivisionError
    after = model.original_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with adapted(model, None), torch.no_grad():
        assert torch.equal(model.original_model(ids).logits, plain)


def test_a_model_with_other_matrices_is_neither_adapted_nor_trained(trained, folder, tmp_path):
    with (
        pytest.raises(UsageError, match=r"the model has no model\.layers\.\d\.self_attn"),
        adapted(load_model("tiny"), adapter_of(folder, trained[1][0])),
    ):
        pass
    for part in tiny_parts("gpt2", seed=0):
        part.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UsageError, match="the model has no k_proj, o_proj, q_proj, v_proj"):
        finetuning.train_adapter(tmp_path, str(tmp_path / "gpt2"), "weight", 0)
    assert not (tmp_path / "notebooks").exists()


def edit_card(path, **changes):
    (path / CARD).write_text(json.dumps(json.loads((path / CARD).read_text()) | changes))


def test_a_spoilt_adapter_is_refused_with_the_command_that_makes_it(trained, folder, tmp_path):
    (first, _), (root, _) = trained
    command = f"replib train {PAPER} --model {folder} --format weight --seed 3"
    for spoil, message in (
        (lambda path: (path / WEIGHTS).unlink(), "is missing"),
        (lambda path: (path / WEIGHTS).write_bytes(b"other"), "was altered"),
        (lambda path: (path / CARD).write_text("{"), "cannot be read"),
        (lambda path: edit_card(path, model_sha256="0" * 64), "was trained on other weights"),
    ):
        where = tmp_path / first.relative_to(root)
        spoil(shutil.copytree(first, where, dirs_exist_ok=True))  # whole again each time
        with pytest.raises(NotStored) as caught:
            adapter_of(folder, tmp_path)
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert str(caught.value).endswith(f"make it with: {command}")


def test_a_run_without_its_adapters_is_refused_before_it_starts(tmp_path, folder, capsys):
    out = tmp_path / "runs"
    code = main(["run", PAPER, "--model", folder, "--out", str(out)])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and not out.exists()
    assert "is missing" in err and f"replib train {PAPER} --model {folder}" in err
    assert main(["run", PAPER, "--model", folder, "-p", "adapter_seeds=[]", "--out", str(out)]) == 2
    assert "adapter_seeds is []; give" in capsys.readouterr().err
    plan(find_chapter(find_root(), PAPER), "tiny", "smoke", {}, out=out)  # needs none


def test_every_stored_adapter_is_whole_and_small():
    assert tuple(FORMATS) == INTENT_FORMATS
    for model, name, seed in itertools.product(SOURCES, INTENT_FORMATS, (1, 2, 3)):
        adapter = load_adapter(find_root(), model, SOURCES[model].sha256, name, seed)
        assert (adapter.card["model"], adapter.card["seed"]) == (model, seed)
        assert sum(path.stat().st_size for path in adapter.folder.iterdir()) < 5_000_000
        curve = [loss for _, loss in adapter.card["curve"]["validation"]]
        assert curve[-1] < 0.25 * curve[0]
        assert not adapter.is_stale
