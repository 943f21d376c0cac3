"""Ordinal classes, successor scores, features: worked by hand, and a planted head that is found."""

import math

import numpy as np
import pytest
import torch

from replib.chapters.successor_heads import mlp0_features as ft
from replib.chapters.successor_heads import ordinals as od
from replib.chapters.successor_heads import ov_circuit as ov
from replib.chapters.successor_heads.direct_effects import Rows, direct_drop, observe
from replib.chapters.successor_heads.planted import (
    _WIDTHS,
    D_MODEL,
    PLANTED_BOOSTER,
    PLANTED_SUCCESSOR,
)
from replib.errors import UsageError
from replib.interventions.network import Network
from replib.metrics import rng
from replib.models.load import load_model
from replib.models.planted import make_slots
from replib.models.tiny import ARCHITECTURES, tiny_model
from replib.prompts.vocabulary import word_tokenizer


@pytest.fixture(scope="module")
def net():
    return Network(load_model("planted-successor"))


@pytest.fixture(scope="module")
def classes(net):
    return {k: c for k, c in od.ordinal_classes(net.model.tokenizer).items() if k != od.ROMAN}


def small_class(n=4):
    steps = torch.arange(n)
    pairs = torch.stack([steps[:-1], steps[1:]], 1)
    return od.OrdinalClass("toy", tuple("abcdefg"[:n]), steps, steps + 1, pairs)


# --- Scores ---------------------------------------------------------------------------------------


def test_a_score_by_hand():
    """Head 0 always says the next one, head 1 always the third, head 2 the token itself."""
    favoured = {"toy": torch.tensor([[1, 2, 3, 0], [2, 2, 2, 2], [0, 1, 2, 3]])}
    hit = ov.hits(favoured, {"toy": small_class()})
    assert hit["toy"].tolist() == [[True] * 3, [False, True, False], [False] * 3]
    assert ov.macro(hit).tolist() == pytest.approx([1, 1 / 3, 0])
    two = {"toy": hit["toy"], "other": torch.tensor([[False], [True], [False]])}
    assert ov.macro(two).tolist() == pytest.approx([1 / 2, 2 / 3, 0])  # classes count the same
    assert ov.micro(two).tolist() == pytest.approx([3 / 4, 2 / 4, 0])  # successions do
    assert ov.half(hit, 0)["toy"][1].tolist() == [False, False]  # to choose a head
    assert ov.half(hit, 1)["toy"][1].tolist() == [True]  # to report it


def test_interval_of_the_macro_score_adds_the_classes_errors():
    values = {"a": torch.tensor([True] * 8 + [False] * 2), "b": torch.tensor([True, False] * 5)}
    # Wilson: 0.8 (0.4902 to 0.9433) and 0.5 (0.2366 to 0.7634); mean 0.65
    low, high = ov.macro_interval(values, np.random.default_rng(0))
    assert low == pytest.approx(0.65 - math.hypot(0.3098, 0.2634) / 2, abs=1e-3)
    assert high == pytest.approx(0.65 + math.hypot(0.1433, 0.2634) / 2, abs=1e-3)


def test_in_the_micro_null_every_succession_counts_the_same():
    classes = {"toy": small_class(), "wide": small_class(7)}
    favoured = {"toy": torch.full((1, 4), 2), "wide": torch.full((1, 7), 3)}
    null = ov.shuffled_null(favoured, classes, rng(0, "null"), draws=20)
    assert np.allclose(null.macro, (1 / 3 + 1 / 6) / 2)
    assert np.allclose(null.micro, (1 + 1) / (3 + 6))


def test_the_null_takes_the_best_of_all_heads():
    favoured = {"toy": torch.tensor([[1, 2, 3, 0], [1, 1, 1, 1]])}
    null = ov.shuffled_null(favoured, {"toy": small_class()}, rng(0, "null"), draws=200)
    assert (null.best() >= 1 / 3).all()  # the second head has one right in every draw
    assert null.best("toy").max() == 1.0  # the identity is among the shuffles of three
    assert (null.best() == null.macro.max(-1)).all()


def test_upward_bias_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 2.0, 2.0]] * 4])
    bias = ov.upward_bias(logits, small_class())[0]
    # standard deviation 2/sqrt(3); item 0 has nothing below, items 2 and 3 nothing above
    assert bias.isnan().tolist() == [True, False, True, True]
    assert float(bias[1]) == pytest.approx(3**0.5)  # 2 (item 3) less 0 (item 0)


# --- The planted head, and random weights ---------------------------------------------------------


def test_the_planted_head_is_the_best_whatever_it_is_given(net, classes):
    tokens = ov.all_tokens(classes)
    for name, source in ov.sources(net, tokens).items():
        favoured = ov.predicted(ov.ov_logits(net, source, tokens), classes)
        score = ov.macro(ov.hits(favoured, classes))
        assert divmod(int(score.argmax()), net.n_heads) == PLANTED_SUCCESSOR, name
        assert float(score.max()) > 0.95
        booster = PLANTED_BOOSTER[0] * net.n_heads + PLANTED_BOOSTER[1]
        assert float(score[booster]) < 0.3
        null = ov.shuffled_null(favoured, classes, rng(0, name), draws=50)
        assert np.quantile(null.best(), 0.95) < 0.3


def test_random_weights_over_the_planted_vocabulary_beat_no_null():
    """The planted model's shape and tokenizer: nothing can be found in it."""
    beyond = 0
    for seed in range(4):
        model = load_model("planted-successor")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.original_model.parameters():
                noise = 0.1 * torch.randn(p.shape, generator=generator)
                p.copy_(noise if p.dim() > 1 else p + noise)
        net = Network(model)
        classes = od.ordinal_classes(model.tokenizer)
        tokens = ov.all_tokens(classes)
        source = ov.Source(ov.mlp0(net, tokens)[None], True)
        favoured = ov.predicted(ov.ov_logits(net, source, tokens), classes)
        null = ov.shuffled_null(favoured, classes, rng(seed, "null"), draws=100)
        beyond += float(ov.macro(ov.hits(favoured, classes)).max()) > np.quantile(null.best(), 0.95)
    assert beyond <= 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_ov_circuit_is_what_heads_write_of_a_token_alone_and_of_parts_of_it(arch):
    """Up to the biases, which two tokens have in common; grouped heads share values."""
    net = Network(tiny_model(arch, 0))
    block = net.blocks[1]
    seen = observe(net, torch.arange(10, 13)[:, None])  # whoever is alone attends to itself
    x, z = seen.resid_pre[1, :, 0], seen.z[1, :, 0]
    found = ov.ov_writes(net, 1, block.ln1(x), normed=False)
    wrote = torch.einsum("thd,hdm->thm", z, block.W_O)
    torch.testing.assert_close(found - found[:1], wrote - wrote[:1], atol=1e-4, rtol=1e-4)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    writes, twice, both = (
        ov.ov_writes(net, 1, part, direction=True) for part in (x, 2 * x, x[:1] + x[1:2])
    )
    torch.testing.assert_close(twice, 2 * writes, atol=1e-4, rtol=1e-4)
    if arch != "gemma3":  # it divides by the size of the heads' sum
        torch.testing.assert_close(both, writes[:1] + writes[1:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3"])
def test_direct_drop_is_the_loss_of_the_write_and_leaves_the_model_alone(arch):
    net = Network(tiny_model(arch, 0))
    tokens = torch.arange(10, 22).view(2, 6)
    before = net.model(tokens)
    seen = observe(net, tokens)
    assert torch.equal(before, net.model(tokens))
    assert torch.allclose(net.ln_final(seen.final) @ net.W_U.T, before, atol=1e-4)
    rows = seen.rows(torch.tensor([0, 1]), torch.tensor([5, 5]))
    answer = torch.tensor([3, 4])
    same = Rows(rows.z[:, :1], rows.o_out[:, :1], rows.final[:1])
    # A head that writes its own value again changes nothing.
    assert direct_drop(net, same, same.z[:, 0], answer[:1]).abs().max() < 1e-4
    # By hand, for one head of the last layer, where nothing but the MLP comes after.
    block, change = net.blocks[3], torch.zeros_like(rows.z[3])
    change[:, 1] = -rows.z[3, :, 1]
    o_out = torch.einsum("rhd,hdm->rm", change, block.W_O) + rows.o_out[3]
    resid = rows.final - block.write(rows.o_out[3]) + block.write(o_out)
    clean, cut = (net.logits(r, answer[:, None])[:, 0] for r in (rows.final, resid))
    drop = direct_drop(net, rows, torch.zeros_like(rows.z[:, 0]), answer)
    assert torch.allclose(drop[3, 1], clean - cut, atol=1e-4)


# --- Prompts and text -----------------------------------------------------------------------------


def test_lists_count_and_their_corruption_does_not(net, classes):
    tokenizer = net.model.tokenizer
    days = od.list_pairs(tokenizer, classes["days"], rng(0, "lists"))
    assert days.text[0] == " Monday, Tuesday, Wednesday,"
    assert tokenizer.decode([int(days.answer[0])]) == " Thursday"
    assert len(days) == 7  # the week wraps
    for clean, corrupted in zip(days.clean, days.corrupted, strict=True):
        assert sorted(clean.tolist()) == sorted(corrupted.tolist())
        assert clean[-2] != corrupted[-2]
    numbered = od.numbered_pairs(tokenizer, 12, rng(0, "numbered"))
    assert numbered.text[1].startswith("2. ") and numbered.text[1].endswith("\n")
    assert tokenizer.decode([int(numbered.answer[1])]) == "5"


def test_kinds_of_predictions():
    for word, attended, kind in (
        (" Tuesday", [" Monday", " the"], "successorship"),
        (" Monday", [" Sunday"], "successorship"),  # the week wraps
        (" Jan", [" Dec"], "other"),  # prefixes do not
        (" three", [" two", " three"], "successorship"),  # before copying
        (" three", [" three"], "copying"),
        (" five", [" two"], "greater-than"),
        (" two", [" five"], "other"),
        (" B", [" a"], "other"),  # the article is no letter
        (" NATO", [" North"], "acronym"),
    ):
        assert od.kind_of(word, attended) == kind, word


def test_a_tokenizer_without_ordinal_words_is_refused(monkeypatch):
    monkeypatch.setattr(od, "WORDS", {"days": od.WORDS["days"]})
    with pytest.raises(UsageError, match="writes none of them"):
        od.ordinal_classes(word_tokenizer())


# --- Features -------------------------------------------------------------------------------------


def test_modal_coverage_by_hand():
    residue = np.array([0, 0, 0, 1, 1])
    feature = np.array([[7, 7, 2, 5, 5], [1, 2, 3, 4, 5]])
    assert ft.modal_coverage(feature, residue).tolist() == pytest.approx([5 / 6, 5 / 12])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_training_takes_every_number_type_and_gives_it_back(kind):
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    saes = ft.train_saes(x.to(kind), 2, rng(0, "sae"), n_features=8, steps=30)
    weight, bias = ft.train_probe(x.to(kind), torch.arange(40) % 10, steps=30)
    assert {t.dtype for t in (saes.decoder, saes.codes, weight, bias)} == {kind}
    usual, _ = ft.train_probe(x, torch.arange(40) % 10, steps=30)
    assert usual.dtype == torch.float32
    assert torch.allclose(weight.float(), usual, atol=0.02 * float(usual.abs().max()))


def test_period_power_of_a_cosine_is_one():
    n = torch.arange(100).double()
    waves = torch.stack([torch.cos(2 * np.pi * n / period) for period in (10, 20)])
    assert ft.period_power(waves).tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    # A neuron that is silent, and one of which only the last bits move.
    still = torch.stack([torch.zeros(100), 7 + 1e-6 * waves[0], 7 + 1e-3 * waves[0]])
    assert ft.period_power(still).tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)
    with pytest.raises(UsageError, match="does not divide"):
        ft.period_power(torch.zeros(1, 99))


def test_directions_in_which_only_rounding_varies_are_left_out():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0].T
    x = torch.randn(50, 3, generator=generator) @ basis[:3]
    x[:40] += 1e-7 * torch.randn(40, 20, generator=generator)
    x[40:] += 5 * basis[4]  # where the first forty have nothing
    found = ft.principal(x, 8, slice(40))
    assert found.shape == (50, 3)
    assert torch.allclose(found.norm(dim=1)[:40], (x - x[:40].mean(0)).norm(dim=1)[:40], atol=1e-4)
    assert ft.principal(x, 2, slice(40)).shape == (50, 2)


def test_index_and_domain_are_found_where_they_are_planted_and_not_when_shuffled():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 30, generator=generator), torch.randn(4, 30, generator=generator)
    index, domain = torch.arange(8).repeat(4), torch.arange(4).repeat_interleave(8)
    x = a[index] + b[domain]
    held_out = torch.zeros(32, dtype=torch.bool)
    held_out[::7] = True
    split = ft.split_index_domain(x, index, domain, held_out, rng(0, "split"))
    assert (split.near == split.target).double().mean() > 0.95
    mixed = ft.shuffle_within(index, domain, rng(1, "shuffle"))
    assert sorted(mixed[:8].tolist()) == list(range(8))
    wrong = ft.split_index_domain(x, mixed, domain, held_out, rng(0, "split"))
    assert (wrong.near == wrong.target).double().mean() < 0.6


def test_exchanging_the_planted_features_moves_the_answer_and_random_ones_do_not(net, classes):
    c = classes["letters"]
    x = ov.mlp0(net, c.tokens)
    features = make_slots(_WIDTHS, D_MODEL)["f_residue"].T
    success = ft.exchange(net, PLANTED_SUCCESSOR, x, c, features, 1.0)
    assert success[0].isnan().tolist() == [False, True] + [False] * 8  # A has residue 1
    assert float(success[:8].nanmean()) > 0.9
    noise = ft.random_like(features, rng(0, "noise"))
    assert torch.allclose(noise.norm(dim=-1), features.norm(dim=-1), atol=1e-5)
    assert float(ft.exchange(net, PLANTED_SUCCESSOR, x, c, noise, 1.0).nanmean()) < 0.2
