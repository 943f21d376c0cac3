"""Ordinal classes, successor scores, direct effects: by hand, and a planted head that is found."""

import math

import numpy as np
import pytest
import torch

from replib.chapters.successor_heads import choice as ch
from replib.chapters.successor_heads import direct_effects as de
from replib.chapters.successor_heads import greater_than as gt
from replib.chapters.successor_heads import ordinals as od
from replib.chapters.successor_heads import ov_circuit as ov
from replib.chapters.successor_heads import running_text as rt
from replib.chapters.successor_heads.planted import PLANTED_BOOSTER, PLANTED_SUCCESSOR
from replib.errors import UsageError
from replib.interventions.network import Network
from replib.metrics import rng
from replib.models.load import load_model
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


def ov_logits(net, source, tokens):
    """As in the notebook: of every head, layer by layer."""
    writes = [ov.ov_writes(net, i, source.at(i), source.normed) for i in range(net.n_layers)]
    return torch.cat([torch.einsum("thm,vm->htv", write, net.W_U[tokens]) for write in writes])


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
    # Clopper-Pearson: 0.8 (0.4439 to 0.9748) and 0.5 (0.1871 to 0.8129); mean 0.65
    found = ov.macro_interval(values, np.random.default_rng(0))
    assert (found.value, found.n) == (pytest.approx(0.65), 20)
    assert found.low == pytest.approx(0.65 - math.hypot(0.3561, 0.3129) / 2, abs=1e-3)
    assert found.high == pytest.approx(0.65 + math.hypot(0.1748, 0.3129) / 2, abs=1e-3)
    heads = {name: torch.stack([~value, value]) for name, value in values.items()}
    assert ov.macro_interval(heads, np.random.default_rng(0), 1) == found


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
    bias = gt.upward_bias(logits, small_class())[0]
    # standard deviation 2/sqrt(3); item 0 has nothing below, items 2 and 3 nothing above
    assert bias.isnan().tolist() == [True, False, True, True]
    assert float(bias[1]) == pytest.approx(3**0.5)  # 2 (item 3) less 0 (item 0)
    both = {"toy": torch.stack([bias, 1 + bias]), "twice": torch.stack([2 * bias, bias])}
    assert gt.mean_bias(both).tolist() == pytest.approx([1.5 * 3**0.5, 3**0.5 + 0.5])
    assert gt.other_heads(both, 0).draws.tolist() == pytest.approx([3**0.5 + 0.5])


def test_errors_are_above_or_below_and_wrapping_is_no_error():
    """It says d after a (two too high), d after b (one too high), b after c (two too low)."""
    found = gt.errors({"toy": torch.tensor([3, 3, 1, 3])}, {"toy": small_class()})
    assert (found["errors"], found["upward"]) == (3, pytest.approx(2 / 3))
    # Of three wrong words two are above b, one above c, none above d: a third of nine.
    assert found["by_chance"] == pytest.approx(1 / 3)
    assert found["errors_p"] == pytest.approx(1 - (2 / 3) ** 3 - 3 * (1 / 3) * (2 / 3) ** 2)
    assert found["fewer_p"] == pytest.approx(1 - (1 / 3) ** 3)
    wraps = od.OrdinalClass(
        "w", ("a", "b"), *(torch.arange(2),) * 2, torch.tensor([[0, 1], [1, 0]])
    )
    none = gt.errors({"w": torch.tensor([1, 1])}, {"w": wraps})
    assert (none["errors"], none["upward"], none["errors_p"], none["fewer_p"]) == (0, 0.5, 1, 1)


def test_each_succession_is_scored_by_heads_that_it_did_not_choose():
    """Successions a-b, b-c, ...: six of them, 0 to 5. Head 0 knows 0, 2 and 4 and is chosen by
    these; head 1 knows 1 and 3 and is chosen by 1, 3 and 5. So each is scored where it knows
    nothing, and what it says there follows nothing, shuffled or not."""
    said = {"toy": torch.tensor([[1, 0, 3, 0, 5, 0, 0], [0, 2, 0, 4, 0, 0, 0]])}
    classes = {"toy": small_class(7)}
    scores = ch.Scores(
        said, ov.hits(said, classes), ov.shuffled_null(said, classes, rng(0, "null"), 50)
    )
    assert (scores.best, scores.top) == (0, pytest.approx(1 / 2))
    trial = ch.crossed(scores, classes, seed=0, draws=50)
    assert trial.rows == (1, 0) and trial.score.value == 0.0 and trial.score.n == 6
    assert trial.gap.value == pytest.approx(-5 / 6)  # the runner-up is the other head
    assert trial.gate == {"heldout": 0.0, "heldout_q95": 0.0} and trial.chance == 0.0
    better = {"toy": torch.tensor([[1, 2, 3, 4, 5, 0, 0], [0, 0, 0, 0, 0, 6, 0]])}
    scores = ch.Scores(
        better, ov.hits(better, classes), ov.shuffled_null(better, classes, rng(0, "null"), 50)
    )
    trial = ch.crossed(scores, classes, seed=0, draws=50)
    assert trial.rows == (0, 0) and trial.hit["toy"].tolist() == [True] * 5 + [False]
    assert trial.gap.value == pytest.approx(4 / 6) and 0.2 < trial.chance < 0.5
    bar, line = ch.by_class(scores, 0, "L0H0")["toy"].values()
    assert bar.value == pytest.approx(5 / 6) and line.value == scores.best_null().asdict()["q95"]
    found = ch.found({"MLP0": trial, "own residual": trial}, "MLP0", {"MLP0": 0.01})
    assert (found["p"], found["other_high"]) == (0.01, trial.score.high)
    own = {"toy": torch.tensor([[0, 1, 2, 3, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0]])}
    assert ch.copying(own, [(0, 0), (0, 1)]) == [(0, 0)]  # 4 of 7 are its own word, 3 are not


def test_a_class_is_scored_by_the_head_that_is_best_in_the_others():
    """Head 0 knows the first class only, head 1 the second only: each scores 0 in the other."""
    knows, not_ = torch.tensor([1, 2, 3, 0]), torch.tensor([0, 1, 2, 3])
    said = {"a": torch.stack([knows, not_]), "b": torch.stack([not_, knows])}
    classes = {"a": small_class(), "b": small_class()}

    def carried(said):
        null = ov.shuffled_null(said, classes, rng(0, "null"), 50)
        return ch.carried(ch.Scores(said, ov.hits(said, classes), null), classes, 0, 50)

    assert carried(said).numbers["value"] == 0 and carried(said).score.value == 0.0
    one = carried({"a": said["a"], "b": said["a"]})
    assert one.score.value == 1.0 and 0.2 < one.chance < 0.5
    assert one.above == []  # of three successions the right order is one shuffle in six


def test_the_tokens_of_all_classes_side_by_side():
    wide = od.OrdinalClass(
        "wide", ("x", "y"), torch.tensor([8, 9]), torch.tensor([30, 31]), torch.tensor([[0, 1]])
    )
    every = od.all_tokens({"toy": small_class(3), "wide": wide})
    assert every.tokens.tolist() == [0, 1, 2, 8, 9] and every.index.tolist() == [1, 2, 3, 30, 31]
    assert every.domain.tolist() == [0, 0, 0, 1, 1]
    assert every.pairs.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert every.of("wide").tolist() == [False] * 3 + [True] * 2 and not every.of("no").any()
    assert every.span("wide") == slice(3, 5)
    small = od.all_tokens({"wide": wide, "toy": small_class(3)}, largest=26)
    assert small.tokens.tolist() == [0, 1, 2] and small.pairs.tolist() == [[0, 1], [1, 2]]
    assert small.domain.tolist() == [1, 1, 1]
    gap = torch.tensor([*range(1, 15), 16])  # 1 to 14, and 16
    some = od.OrdinalClass("numbers", ("",) * 15, torch.arange(15), gap, torch.zeros(1, 2).long())
    assert od.counting(some).tolist() == list(range(10))


# --- The planted head, and random weights ---------------------------------------------------------


def test_the_planted_head_is_the_best_whatever_it_is_given(net, classes):
    every = od.all_tokens(classes)
    for name, source in ov.sources(net, every.tokens).items():
        favoured = ov.predicted(ov_logits(net, source, every.tokens), classes)
        score = ov.macro(ov.hits(favoured, classes))
        assert divmod(int(score.argmax()), net.n_heads) == PLANTED_SUCCESSOR, name
        assert float(score.max()) > 0.95
        booster = PLANTED_BOOSTER[0] * net.n_heads + PLANTED_BOOSTER[1]
        assert float(score[booster]) < 0.3
        null = ov.shuffled_null(favoured, classes, rng(0, name), draws=50)
        assert np.quantile(null.best(), 0.95) < 0.3
    x = ov.mlp0(net, every.tokens)
    said, raised = (
        ov.head_write(net, h, x) @ net.W_U.T for h in (PLANTED_SUCCESSOR, PLANTED_BOOSTER)
    )
    rank = ov.ranks(said, every)
    assert len(rank) == len(every.pairs) and (rank == 1).double().mean() > 0.95
    assert ov.ranks(raised, every).double().median() > 1
    table = ov.said_instead(net.model.tokenizer, {"head": said}, every)
    assert table.loc["days", "head"] == "' Tuesday', ' Wednesday', ' Thursday'"


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
        tokens = od.all_tokens(classes).tokens
        source = ov.Source(ov.mlp0(net, tokens)[None], True)
        favoured = ov.predicted(ov_logits(net, source, tokens), classes)
        null = ov.shuffled_null(favoured, classes, rng(seed, "null"), draws=100)
        beyond += float(ov.macro(ov.hits(favoured, classes)).max()) > np.quantile(null.best(), 0.95)
    assert beyond <= 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_ov_circuit_is_what_heads_write_of_a_token_alone_and_of_parts_of_it(arch):
    """Up to the biases, which two tokens have in common; grouped heads share values."""
    net = Network(tiny_model(arch, 0))
    block = net.blocks[1]
    seen = de.observe(net, torch.arange(10, 13)[:, None])  # whoever is alone attends to itself
    x, z = seen.resid_pre[1, :, 0], seen.z[1, :, 0]
    found = ov.ov_writes(net, 1, block.ln1(x), normed=False)
    wrote = torch.einsum("thd,hdm->thm", z, block.W_O)
    torch.testing.assert_close(found - found[:1], wrote - wrote[:1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ov.head_write(net, (1, 2), x), ov.ov_writes(net, 1, x)[:, 2])
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
    seen = de.observe(net, tokens)
    assert torch.equal(before, net.model(tokens))
    assert torch.allclose(net.ln_final(seen.final) @ net.W_U.T, before, atol=1e-4)
    rows = seen.rows(torch.tensor([0, 1]), torch.tensor([5, 5]))
    answer = torch.tensor([3, 4])
    same = de.Rows(rows.z[:, :1], rows.o_out[:, :1], rows.final[:1])
    # A head that writes its own value again changes nothing.
    assert de.direct_drop(net, same, same.z[:, 0], answer[:1]).abs().max() < 1e-4
    # By hand, for one head of the last layer, where nothing but the MLP comes after.
    block, change = net.blocks[3], torch.zeros_like(rows.z[3])
    change[:, 1] = -rows.z[3, :, 1]
    o_out = torch.einsum("rhd,hdm->rm", change, block.W_O) + rows.o_out[3]
    resid = rows.final - block.write(rows.o_out[3]) + block.write(o_out)
    clean, cut = (net.logits(r, answer[:, None])[:, 0] for r in (rows.final, resid))
    drop = de.direct_drop(net, rows, torch.zeros_like(rows.z[:, 0]), answer)
    assert torch.allclose(drop[3, 1], clean - cut, atol=1e-4)
    # The stream that the notebook's own step ends in is the same.
    more = torch.einsum("rd,dm->rm", change[:, 1], block.W_O[1])
    assert torch.allclose(de.changed_stream(net, rows, 3, more[:, None])[:, 0], resid, atol=1e-5)
    lost = de.loss(net, rows.final, answer)
    assert torch.allclose(lost, -before[:, 5].log_softmax(-1)[torch.arange(2), answer], atol=1e-4)
    at = de.effects_at(net, seen.ends(), answer)
    assert torch.equal(at.mean_z, rows.z.mean(1)) and torch.equal(seen.ends().z, rows.z)
    assert at.winner.tolist() == [int(one.argmax()) for one in at.drop.flatten(0, 1).T]
    said = de.said_instead(net, seen.ends(), torch.tensor([False, True]))
    assert said.columns == [repr(net.model.tokenizer.decode([int(before[0, 5].argmax())]))]
    assert said.loc["lists"].tolist() == [1]
    second = at[torch.tensor([False, True])]
    assert torch.equal(second.drop[..., 0], at.drop[..., 1]) and second.tokens.tolist() == [4]
    assert torch.equal(second.mean_z, at.mean_z)


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


def test_the_planted_head_has_a_lift_and_the_booster_has_none(net):
    numbered = od.numbered_pairs(net.model.tokenizer, 12, rng(0, "numbered"))
    at, lift, gap = de.lifts(net, numbered)
    assert len(at.tokens) == 12 and lift.shape == (3, 4, 12) and (gap > 1).all()
    assert (lift[PLANTED_SUCCESSOR] > 1).all()
    others = lift.flatten(0, 1)[[i for i in range(12) if i != 6]]
    assert others.abs().max() < 0.2 * lift[PLANTED_SUCCESSOR].min()


def test_wins_by_hand():
    """Four lists, two heads and one that never wins. On the first two lists head 1 wins one, which
    makes it the rival; on the last two it wins none."""
    lift = torch.tensor([[2.0, 0, 2, 2], [1, 1, 1, 1], [0, 0, 0, 0]])
    nats, gap = torch.ones(4) * 0.5, torch.arange(4.0)
    found = de.wins(lift, 0, nats, gap, ["a", "b", "c", "d"], 0)
    assert found.winner.tolist() == [0, 1, 0, 0] and found.share.tolist() == [0.75, 0.25, 0]
    number = {name: getattr(x, "value", x) for name, x in found.numbers.items()}
    assert (number["value"], number["lead"], number["lift"], number["gap"]) == (0.75, 1, 1.5, 1.5)
    assert number["other_share"] == 0.25


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
        assert rt.kind_of(word, attended) == kind, word


def test_positions_of_passages_and_shares_of_their_kinds():
    windows = torch.tensor([[5, 6, 7, 8], [1, 0, 3, 4]])
    at = rt.positions(windows, unknown=0, first=0)  # whose next token is known
    assert at.prompt.tolist() == [0, 0, 0, 1, 1] and at.pos.tolist() == [0, 1, 2, 1, 2]
    assert at.following.tolist() == [6, 7, 8, 3, 4]
    kinds = np.array(["successorship", "other", "copying", "other", "successorship"])
    won = torch.tensor([True, True, False, False, False])
    found = rt.shares(kinds, at.prompt, won)
    assert [e.value for e in found["successorship"]] == [0.5, 0.4]
    assert [e.value for e in found["copying"]] == [0.0, 0.2]
    assert rt.numbers(found)["positions"] == 5 and rt.numbers(found)["wins"] == 2
    none = rt.shares(kinds, at.prompt, won & False)
    assert none["other"][0].n == 0 and none["other"][1] == found["other"][1]


def test_a_tokenizer_without_ordinal_words_is_refused(monkeypatch):
    monkeypatch.setattr(od, "WORDS", {"days": od.WORDS["days"]})
    with pytest.raises(UsageError, match="writes none of them"):
        od.ordinal_classes(word_tokenizer())
