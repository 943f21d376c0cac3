"""Facts, their scoring, generation with scaled heads and regression, by worked examples."""

import json

import numpy as np
import pytest
import torch

from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import TEMPLATES, Fact
from replib.chapters.factual_recall.regression import logistic, standardised
from replib.errors import UsageError
from replib.interventions.generation import continuations, scaled_heads, text_loss
from replib.models.load import load_model
from replib.models.tiny import ARCHITECTURES, tiny_model

PROMPTS = [
    "The capital of France is the city of",
    "Q: What is the capital of Spain?\nA:",
    "The capital city of Peru is called",
    "When Mary and John arrived at the park, John handed the lemon to",
] * 2


# --- scoring and templates ------------------------------------------------------------------------


def test_outcomes_and_texts_that_cannot_change_theirs():
    for text, answer, expected in (
        (" Paris.", "Paris", "memorised"),
        (" Lima, not Paris.", "Paris", "memorised"),  # memorised wins ties
        (" Lima.\nQ: The capital of Peru?\nA: Paris", "Paris", "in-context"),  # up to the next Q:
        (" Parisian life", "Paris", "other"),  # whole words only
        (" as iron", "As", "other"),  # a symbol keeps its case
        (" As.", "As", "memorised"),
    ):
        assert facts.outcome(text, answer, "Lima") == expected, text
    assert facts.settled(" Paris.", "Paris") and facts.settled(" Lima\nQ:", "Paris")
    assert not facts.settled(" Lima.", "Paris")  # Paris may still come
    assert not facts.settled(" Niger", "Niger")  # may become Nigeria


def test_the_paper_s_prompt_letter_by_letter():
    fact = Fact("capital", "France", "Paris")
    text = "The capital of France is Lima.\nQ: What is the capital of France?\nA:"
    assert TEMPLATES[0].conflict(fact, "Lima") == text
    peru = Fact("currency", "Peru", "sol", lead="the")
    assert TEMPLATES[1].conflict(peru, "yen") == (
        "The currency of Peru is the yen. The currency of Peru is the"
    )


def test_template_choice():
    rows = {"paper": (30, 0.1, 0.2), "b": (30, 0.4, 0.4), "c": (90, 0.0, 1.0)}
    assert facts.choose_template(rows) == "paper"
    assert facts.choose_template(rows | {"paper": (19, 0.5, 0.5)}) == "b"
    assert facts.choose_template(rows | {"paper": (30, 0.0, 1.0), "b": (40, 0.0, 1.0)}) == "c"
    assert facts.choose_template({"paper": (0, 0.0, 0.0), "b": (3, 0.0, 0.0)}) == "b"


# --- facts, splits, foils -------------------------------------------------------------------------

RELATIONS = facts.relations()


def test_facts_from_packages():
    answers = {name: {f.subject: f.answer for f in some} for name, some in RELATIONS.items()}
    capitals = answers["capital"]
    assert capitals["France"] == "Paris" and len(capitals) > 200
    assert "Mexico" not in capitals and "Vatican" not in capitals  # the answer holds the subject
    assert len(set(capitals.values())) == len(capitals)
    symbols, languages = answers["chemical symbol"], answers["official language"]
    assert symbols["iron"] == "Fe" and "neutron" not in symbols
    assert languages["Brazil"] == "Portuguese" and "Switzerland" not in languages
    assert answers["currency"]["Japan"] == "yen"


def test_too_few_readable_facts():
    tokenizer = tiny_model("gpt2").tokenizer
    some = [Fact("capital", "France", "Paris"), Fact("capital", "Xqzzy", "Paris")]
    assert facts.readable(tokenizer, some) == some[:1]
    with pytest.raises(UsageError, match=r"1 of 2 facts .* 2 are needed"):
        facts.readable(tokenizer, some, at_least=2)


def test_splits_share_no_name_if_possible():
    first, second, shared = facts.split_facts(RELATIONS["capital"], 0.4, seed=1)
    assert shared == 0 and not set(first) & set(second)
    assert len(first) == round(0.4 * (len(first) + len(second)))
    chain = [Fact("r", f"s{i}", f"a{i}", foils=(f"a{i + 1 - 2 * (i % 2)}",)) for i in range(8)]
    first, second, shared = facts.split_facts(chain, 0.5, seed=0)  # pairs: 0-1, 2-3, ...
    assert shared == 0 and len(first) == len(second) == 4
    star = [Fact("r", f"s{i}", f"a{i}", foils=("same",)) for i in range(8)]
    first, second, shared = facts.split_facts(star, 0.5, seed=0)
    assert shared == 1 and len(first) == len(second) == 4
    with pytest.raises(UsageError, match="1 facts cannot be split"):
        facts.split_facts(star[:1], 0.5, seed=0)


@pytest.fixture(scope="module")
def planted():
    """The planted model and eighty conflicts about capitals that it can read."""
    model = load_model("planted-facts")
    some = facts.readable(model.tokenizer, RELATIONS["capital"])[:40]
    return model, facts.draw_foils(model.tokenizer, some, 2, seed=0)


def test_foils_do_not_collide(planted):
    model, conflicts = planted
    assert len(conflicts) == 80
    pairs = facts.conflict_pairs(model.tokenizer, conflicts, TEMPLATES[0])
    assert not (pairs.answer == pairs.foil).any()
    assert max(np.unique([c.foil for c in conflicts], return_counts=True)[1]) <= 4
    row = torch.arange(len(pairs))
    assert torch.equal(pairs.clean[row, pairs.positions["in_context"]], pairs.foil)


# --- a reader's file ------------------------------------------------------------------------------

GOOD = {"subject": "France", "prompt": "{subject} is ruled from", "answer": "Paris", "foil": "Rome"}


def test_own_facts(tmp_path):
    rows = [GOOD, GOOD | {"subject": "Peru", "answer": "Lima", "prompt": "Peru is ruled from"}]
    path = tmp_path / "f.json"
    path.write_text(json.dumps([row | {"relation": "seat"} for row in rows]))
    fact, other = facts.facts_from_file(path)
    assert fact.relation == other.relation == "seat"
    assert other.prompt == "Peru is ruled from"
    assert facts.OWN_TEMPLATE.conflict(fact, fact.foils[0]) == (
        "France is ruled from Rome.\nFrance is ruled from"
    )


def test_bad_rows_are_named(tmp_path):
    path = tmp_path / "bad.json"
    for change, reason in (
        ({"prompt": "The capital is"}, "neither"),
        ({"prompt": "{subject} and {city} is"}, "brace"),
        ({"prompt": "Paris in {subject} is"}, "already says the answer 'Paris'"),
        ({"prompt": "{subject}, unlike Rome, is"}, "already says the foil 'Rome'"),
        ({"foil": "Paris Nord"}, "cannot be told apart"),
        ({}, "repeats an earlier row"),
    ):
        path.write_text(json.dumps([GOOD, GOOD | change]))
        with pytest.raises(UsageError, match=rf"bad\.json row 2: .*{reason}"):
            facts.facts_from_file(path)


# --- generation with scaled heads -----------------------------------------------------------------


def slow_continuation(model, prompt, n_new, heads, most):
    """Token by token, whole forward passes, z scaled by the bridge's own hook; until the text has
    more than `most` letters."""
    ids = model.tokenizer(prompt).input_ids
    start, text = len(ids), ""

    def scale(head, alpha):
        def hook(z, hook):
            z = z.clone()
            z[:, :, head] *= alpha
            return z

        return hook

    hooks = [(f"blocks.{layer}.attn.hook_z", scale(h, a)) for (layer, h), a in heads.items()]
    while len(ids) < start + n_new and len(text) <= most:
        logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)
        token = int(logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
        text = model.tokenizer.decode(ids[start:])
    return text


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_continuations_are_those_of_whole_forward_passes(arch):
    """Under grouped-query attention heads 2 and 3 share a value vector; only 2 is scaled."""
    model = tiny_model(arch)
    heads = {(1, 2): -3.0, (3, 0): 4.0}
    fast = continuations(model, PROMPTS, 6, heads, lambda i, text: i == 1 and len(text) > 12)
    for i, prompt in enumerate(PROMPTS):
        most = 12 if i == 1 else 1000
        assert fast[i] == slow_continuation(model, prompt, 6, heads, most)
    assert fast != continuations(model, PROMPTS, 6)
    assert not model.blocks[1].attn.o.original_component._forward_pre_hooks
    assert not model.original_model.get_output_embeddings()._forward_pre_hooks


def test_scaling_proves_that_it_happened():
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="no forward pass"), scaled_heads(model, {(1, 0): 2.0}):
        pass
    with pytest.raises(UsageError, match="no head L9H0"), scaled_heads(model, {(9, 0): 2.0}):
        pass
    assert torch.equal(text_loss(model), text_loss(model, scales={(1, 0): 1.0}))
    assert not torch.equal(text_loss(model), text_loss(model, scales={(1, 0): -2.0}))


# --- regression -----------------------------------------------------------------------------------


def test_logistic_regression_finds_the_coefficients_and_widens_for_clusters():
    generator = np.random.default_rng(0)
    x = standardised(generator.normal(size=(4000, 2)))
    y = generator.random(4000) < 1 / (1 + np.exp(-(1.0 * x[:, 0] - 0.5 * x[:, 1] + 0.3)))
    alone = [str(i) for i in range(4000)]
    fit = logistic(x, y, [alone])
    assert fit.coefficient == pytest.approx([1.0, -0.5, 0.3], abs=0.15)
    first = fit.effect(0)
    assert 0.1 < first.high - first.low < 0.25 and first.n == 4000
    # every observation ten times over, as clusters: the same interval as without the copies
    copies = np.repeat(np.arange(400), 10)
    of_copies = logistic(x[copies], y[copies], [[str(i) for i in copies]])
    once = logistic(x[:400], y[:400], [alone[:400]], ridge=0.01)
    assert of_copies.effect(0).interval == pytest.approx(once.effect(0).interval, rel=0.02)
    # two kinds of clusters that are the same are one
    twice = logistic(x, y, [alone, alone])
    assert twice.effect(0).interval == pytest.approx(first.interval, rel=1e-6)


def test_logistic_regression_at_its_edges():
    x = np.column_stack([np.linspace(-1, 1, 20), np.ones(20)])
    names = [str(i) for i in range(20)]
    separated = logistic(100 * x, x[:, 0] > 0, [names])
    assert np.isnan(separated.coefficient).all()
    mixed = logistic(x, np.arange(20) % 3 == 0, [names])
    constant = mixed.effect(1)
    assert (constant.value, constant.n) == (0, 20) and np.isnan(constant.interval).all()
    one = logistic(x, np.arange(20) % 3 == 0, [["all"] * 20]).effect(0)
    assert np.isfinite(one.value) and np.isnan(one.interval).all()
    with pytest.raises(UsageError, match="both outcomes"):
        logistic(x, np.ones(20, dtype=bool), [names])
