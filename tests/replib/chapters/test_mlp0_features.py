"""What the output of MLP0 is made of: worked by hand, and found where it was planted."""

import numpy as np
import pytest
import torch

from replib.chapters.successor_heads import arithmetic as ar
from replib.chapters.successor_heads import index_domain as split
from replib.chapters.successor_heads import mlp0_features as ft
from replib.chapters.successor_heads import ordinals as od
from replib.chapters.successor_heads import ov_circuit as ov
from replib.chapters.successor_heads.planted import _WIDTHS, D_MODEL, PLANTED_SUCCESSOR
from replib.errors import UsageError
from replib.interventions.network import Network
from replib.metrics import rng
from replib.models.load import load_model
from replib.models.planted import make_slots

# --- Sparse features, probe, neurons --------------------------------------------------------------


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


def test_the_modal_feature_of_a_residue_and_its_size():
    """Two dictionaries of 12 features; in the second, residue r has feature r + 2 in two of its
    three items, with codes 1 and 3, and feature 0 in the third, with code 100."""
    residue = torch.arange(10).repeat(3)
    feature = np.stack([np.zeros(30, int), np.r_[np.arange(2, 12), np.arange(2, 12), [0] * 10]])
    codes = torch.zeros(2, 31, 12)  # one token more: it is not among the items
    rows = torch.arange(30) + 1
    for i in range(10):
        codes[1, 1 + i, i + 2], codes[1, 11 + i, i + 2], codes[1, 21 + i, 0] = 1.0, 3.0, 100.0
    decoder = torch.eye(12).expand(2, -1, -1)
    modal = ft.modal_features(ft.Sae(decoder, codes, torch.ones(2)), feature, residue, rows, 1)
    assert torch.equal(modal.directions, torch.eye(12)[2:])
    assert torch.allclose(modal.sized, torch.eye(12)[2:] * (1 + 3 + 0) / 3)
    found = ft.coverage(feature, residue.numpy(), rng(0, "c"), 5)
    assert found.seeds.tolist() == pytest.approx([1.0, 2 / 3])
    assert found.excess == pytest.approx(5 / 6 - found.null.draws.mean())
    assert ft.middle(np.arange(101.0)).low == 2.5


def test_a_probe_reads_what_it_was_not_trained_on():
    """Three classes whose vectors say the residue; those of the last say the next one."""
    index = torch.arange(10).repeat(3)
    domain = torch.arange(3).repeat_interleave(10)
    every = od.AllTokens(("a", "b", "c"), torch.arange(30), index, domain, torch.zeros(0, 2).long())
    x = torch.eye(10)[(index + (domain == 2)) % 10]
    _, right = ft.read_by_probe(x, every, "a")
    assert {name: float(r.double().mean()) for name, r in right.items()} == {"b": 1.0, "c": 0.0}
    found = ft.pooled(right)
    assert (found["value"].value, found["tokens"], found["classes_above"]) == (0.5, 20, 1)
    assert ft.pooled({}) == {"value": None}
    assert ft.mean_share(right) == 0.5 and np.isnan(ft.mean_share({}))
    _, each = ft.read_by_probe(x, every)
    assert list(each) == ["a", "b", "c"] and not each["c"].any()
    cosine = ft.cosines(torch.eye(10), torch.eye(10) + 5)  # what all have in common is left out
    assert torch.allclose(cosine.diagonal(), torch.ones(10), atol=1e-6)
    assert abs(ft.mismatched(cosine, rng(0, "m")).draws).max() < 1


def test_a_probe_reads_what_comes_ten_places_later():
    """Two classes that write places modulo 10, and one that writes plain places; a short one."""
    index = torch.cat([torch.arange(1, 21)] * 3 + [torch.arange(1, 8)])
    domain = torch.arange(3).repeat_interleave(20)
    domain = torch.cat([domain, torch.full((7,), 3)])
    names, none = ("a", "b", "plain", "short"), torch.zeros(0, 2).long()
    every = od.AllTokens(names, torch.arange(67), index, domain, none)
    x = torch.eye(21)[torch.where(domain == 2, index, index % 10)]
    right = ft.read_later(x, every)
    share = {name: float(r.double().mean()) for name, r in right.items()}
    assert list(share) == ["a", "b", "plain"] and share["a"] == share["b"] == 1.0
    assert share["plain"] <= 0.1
    assert ft.read_later(x, every, others=True)["a"].all()


def test_the_neuron_of_period_ten_is_found_in_decades_that_did_not_choose_it():
    n = torch.arange(100).double()
    noise = torch.from_numpy(rng(0, "neurons").standard_normal((6, 100)))
    noise[2] += 3 * torch.cos(2 * np.pi * n / 10)
    noise[4] += 3 * torch.sin(2 * np.pi * n / 10)
    found = ft.periodic(noise, rng(0, "period"))
    assert found.best in (2, 4) and found.n == 50
    assert found.numbers["neurons"] == 2 and found.numbers["value"].low > 0.5
    only = torch.where(n % 20 < 10, torch.cos(2 * np.pi * n / 10), 0.0)  # in decades 0, 2, ...
    assert ft.periodic(torch.stack([only, noise[0]]), rng(0, "p")).numbers["value"].value < 0.2


def test_features_without_training_are_residue_means_within_classes():
    index = torch.tensor([1, 11, 2, 1, 2, 1])
    domain = torch.tensor([0, 0, 0, 1, 1, 2])
    every = od.AllTokens(("a", "b", "c"), torch.arange(6), index, domain, torch.zeros(0, 2).long())
    x = torch.tensor([[1.0], [2.0], [6.0], [10.0], [20.0], [1e6]])
    f = ar.mean_features(x, every, leave="c")  # class means 3 and 15
    assert f[1:3, 0].tolist() == pytest.approx([(-2 - 1 - 5) / 3, (3 + 5) / 2])
    assert not f[0].any() and not f[3:].any()


# --- Index and domain -----------------------------------------------------------------------------


def words(classes=("a", "b", od.ROMAN), n=3):
    """Classes of n tokens each, with the indices 1 to n."""
    index = torch.arange(n).repeat(len(classes)) + 1
    domain = torch.arange(len(classes)).repeat_interleave(n)
    tokens = torch.arange(n * len(classes))
    return od.AllTokens(classes, tokens, index, domain, torch.zeros(0, 2).long())


def test_a_triple_is_a_target_one_of_its_index_and_one_of_its_class():
    word = words()
    some = torch.tensor([True] * 5 + [False] * 4)  # the third of b, and Roman numerals: not
    found = split.triples(word.index, word.domain, some, some, some, rng(0, "t"), per_target=4)
    for t, same_index, same_class in found.tolist():
        assert word.index[t] == word.index[same_index] and word.domain[t] != word.domain[same_index]
        assert word.domain[t] == word.domain[same_class] and t != same_class
    assert sorted({t for t, *_ in found.tolist()}) == [0, 1, 3, 4]  # no partner for the third of a
    assert len(found) == 16 and found.max() < 5
    near = split.nearest(torch.eye(2) * 3, torch.tensor([[5.0, 1], [1, 0], [0, 1]]), some[-6:-3])
    assert near.tolist() == [1, 0]  # the third may not be
    share = split.share_right(torch.tensor([7, 8, 7]), torch.tensor([0, 0, 1]), near.new([2, 1, 1]))
    assert share.tolist() == [0.5, 1.0]  # item 2 is the same token as item 0


def test_rounds_hold_out_each_token_once_and_romans_from_every_fit():
    word = words(n=5)
    rounds, roman = split.rounds(word, seed=0), word.of(od.ROMAN)
    assert sum(one.held_out.int() for one in rounds["2.6"]).tolist() == [1] * 10 + [0] * 5
    for one in rounds["2.6"]:
        assert torch.equal(one.seen, ~one.held_out & ~roman) and torch.equal(one.mates, one.seen)
        assert torch.equal(one.among, ~roman)
    (one,) = rounds["2.7"]
    assert torch.equal(one.seen, ~roman)
    assert all(torch.equal(x, roman) for x in (one.held_out, one.mates, one.among))
    assert list(split.rounds(words(("a", "b")), 0)) == ["2.6"]
    assert split.rounds(words(("a", od.ROMAN)), 0) == {}
    assert split.chances(word) == {"2.6": {"chance": 0.1}, "2.7": {"chance": 0.2, "roman": 5}}
    for index in split.shuffled_indices(word, seed=0, draws=3):
        assert torch.equal(index[roman], word.index[roman])
        assert sorted(index[:5].tolist()) == [1, 2, 3, 4, 5] == sorted(index[5:10].tolist())


def test_directions_in_which_only_rounding_varies_are_left_out():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0].T
    x = torch.randn(50, 3, generator=generator) @ basis[:3]
    x[:40] += 1e-7 * torch.randn(40, 20, generator=generator)
    x[40:] += 5 * basis[4]  # where the first forty have nothing
    fitted = torch.arange(50) < 40
    found = split.principal(x, fitted, 8)
    assert found.shape == (50, 3)
    assert torch.allclose(found.norm(dim=1)[:40], (x - x[:40].mean(0)).norm(dim=1)[:40], atol=1e-4)
    assert split.principal(x, fitted, 2).shape == (50, 2)
    assert split.principal(x, torch.arange(50) < 4, 8).shape == (50, 2)  # half as many as items


def test_index_and_domain_are_found_where_they_are_planted_and_not_when_shuffled():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 30, generator=generator), torch.randn(4, 30, generator=generator)
    word = words(tuple("abcd"), 8)
    x = (a[word.index - 1] + b[word.domain]).double()
    held_out = torch.zeros(32, dtype=torch.bool)
    held_out[::7] = True
    one = split.Round(held_out, ~held_out, ~held_out, torch.ones_like(held_out), ())

    def right(index):
        y = split.principal(x, one.seen)
        fit, case = split.cases(index, word.domain, one, rng(0, "split"))
        built = y[case[:, 1:]].flatten(1) @ split.fit_maps(y, fit)
        return (split.nearest(built, y, one.among) == case[:, 0]).double().mean()

    assert right(word.index) > 0.95
    assert right(split.shuffle_within(word.index, word.domain, rng(1, "shuffle"))) < 0.6
    with pytest.raises(UsageError, match="in common"):
        split.fit_maps(x, torch.zeros(0, 3).long())


# --- Vector arithmetic ----------------------------------------------------------------------------


def test_success_is_the_residue_after_the_target_and_the_scale_is_tuned_on_other_tokens():
    """Items 1 to 4. The first says 3, which follows target 2; the second 1, which follows 0."""
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3]])
    c = od.OrdinalClass("toy", tuple("abcd"), torch.arange(4), torch.arange(4) + 1, pairs)
    says = torch.zeros(4, 10, 4)
    says[0, :, 2] = says[1, :, 0] = says[2:, :, 3] = 1.0
    success = ar.follows(says, c)
    n = np.nan
    assert success[0].tolist() == pytest.approx([0, n, 1, 0, n, n, n, n, n, n], nan_ok=True)
    assert success[1].tolist() == pytest.approx([1, 0, n, 0, n, n, n, n, n, n], nan_ok=True)
    low, high = torch.full((4, 2), 0.5), torch.tensor([[1.0, 1], [0.2, n], [0, 1], [n, n]])
    assert ar.tuned([low, high]).tolist() == pytest.approx([0.2, n], nan_ok=True)
    assert ar.tuned([low, high * 0.6]).tolist() == [0.5, 0.5]


def test_exchanging_the_planted_features_moves_the_answer_and_random_ones_do_not():
    net = Network(load_model("planted-successor"))
    c = od.ordinal_classes(net.model.tokenizer)["letters"]
    x = ov.mlp0(net, c.tokens)
    features = make_slots(_WIDTHS, D_MODEL)["f_residue"].T
    layer, h = PLANTED_SUCCESSOR

    def exchange(name, f, scale):
        moved = x[:, None] - scale * f[c.index % 10][:, None] + scale * f
        writes = ov.ov_writes(net, layer, moved)[..., h, :]
        return ar.follows(torch.einsum("itm,vm->itv", writes, net.W_U[c.tokens]), c)

    success = exchange("letters", features, 1.0)
    assert success[0].isnan().tolist() == [False, True] + [False] * 8  # A has residue 1
    assert float(success[:8].nanmean()) > 0.9
    noise = ar.random_like(features, rng(0, "noise"))
    assert torch.allclose(noise.norm(dim=-1), features.norm(dim=-1), atol=1e-5)
    found = ar.against_random(exchange, "letters", features, 0, draws=3, scales=(1.0,))
    assert found.success.n == 13 and found.success.value > 0.8
    assert len(found.null.draws) == 3 and found.null.draws.max() < 0.2
    some = ar.exchanged(torch.tensor([1.0, torch.nan, 0.5]), [0.1, 0.2])
    assert (some.success.value, some.success.n) == (0.75, 2)
