"""The planted copier is right wherever a lookup of n letters must be; the analysis finds its
mechanism, and nothing in random networks."""

import pytest
import torch

from replib.chapters.copying_mamba import mechanism as m
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.planted import COPY_LAYER, planted_copier
from replib.errors import UsageError

COPY_HEAD = 5  # n_gram + 1
CHANCE = 1 / 26


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def strings():
    return copying.copy(24, 8, seeded())


@pytest.fixture(scope="module")
def planted():
    return m.wrapped(planted_copier())


@pytest.mark.parametrize("length", [1, 2, 5, 30, 100, 300])
def test_it_copies_strings_of_any_length_but_for_runs_that_occur_twice(length):
    n = 64 if length < 100 else 8
    strings = copying.copy(n, length, seeded(length))
    right = copying.teacher_forced(planted_copier(), strings).all(1)
    runs = strings.tokens[:, 1 : length + 1].unfold(1, min(4, length), 1)
    twice = torch.tensor([len({tuple(r) for r in row.tolist()}) < len(row) for row in runs])
    assert right[~twice].all()
    assert twice.float().mean() <= length**2 / 26**4 + 0.05  # the bound of Lemma 2.4


@pytest.mark.parametrize("n_gram", [2, 4])
def test_it_breaks_where_the_run_that_occurs_twice_is_as_long_as_the_lookup(n_gram):
    network = planted_copier(n_gram)
    for run in {1, n_gram - 1, n_gram, 6}:
        strings, after = copying.duplicate_ngram(200, 20, seeded(run), run)
        right = copying.teacher_forced(network, strings).gather(1, after).double().mean(0)
        if run < n_gram:
            assert right.min() > 0.94  # the letter before agrees in 1 of 26
        else:
            # Two answers tie; then the copy itself holds the first of them once more.
            assert 0.4 < right[0] < 0.6 and right[1] < 0.06


def test_free_running_is_as_right():
    strings = copying.copy(8, 40, seeded())
    assert copying.free_running(planted_copier(), strings).all()


def test_the_planted_heads_are_found(planted, strings):
    lookup = m.lookup_scores(planted, strings).mean(-1)
    assert lookup[COPY_LAYER, COPY_HEAD] > 0.9
    others = lookup.clone()
    others[COPY_LAYER, COPY_HEAD] = 0
    assert others.max() < 0.3
    previous = m.previous_token_scores(planted, strings).mean(-1)
    # Head i of layer 0 sees the last i + 1 tokens alike; at the start there are fewer.
    assert previous[0, 0] == 0 and previous[0, 1].item() == pytest.approx(0.5, abs=1e-4)
    assert previous[0, 1:5].diff().max() < 0


def test_ablation_finds_the_heads_that_copying_needs(planted, strings):
    accuracy = {
        head: m.mean_ablated_accuracy(planted, strings, *head).mean().item()
        for head in m.heads(planted)
    }
    assert accuracy[COPY_LAYER, COPY_HEAD] < 0.2
    assert all(accuracy[0, h] < 0.9 for h in (0, 1))  # the last token, the one before
    idle = [h for h in accuracy if h != (COPY_LAYER, COPY_HEAD) and h[1] >= 5]
    assert all(accuracy[head] > 0.99 for head in idle)
    assert m.mean_ablated_accuracy(planted, strings, COPY_LAYER).mean() < 0.2


class Counter(torch.nn.Module):
    """Copies by position: says the letter as far behind `|` as it stands behind `$`."""

    def forward(self, tokens):
        bar = (tokens == copying.SEPARATOR).int().argmax(1)
        at = tokens.shape[1] - bar
        said = tokens.gather(1, at[:, None])[:, 0]
        logits = torch.zeros(*tokens.shape, 30)
        logits[torch.arange(len(tokens)), -1, said] = 1
        return logits


def test_the_planted_copier_follows_content_and_one_that_counts_position():
    shares = m.follows(planted_copier(), 100, 16, 4, seeded()).double().mean(1)
    assert shares[0] > 0.95 and shares.sum() == pytest.approx(1)
    assert m.follows(Counter(), 100, 16, 4, seeded()).double().mean(1).tolist() == [0, 1, 0]


def test_the_letter_moves_from_its_source_to_the_query_in_the_copy_layer(planted, strings):
    recovered = m.moved(planted, strings, letter=5).nanmean(-1)
    assert recovered[0].tolist() == pytest.approx([1, 0], abs=0.1)  # layer, place
    assert recovered[1].tolist() == pytest.approx([0, 1], abs=0.1)


@pytest.mark.parametrize("name", ["rope", "mamba2"])
def test_in_random_networks_nothing_is_found(name, strings):
    model = m.wrapped(build(name, seed=0))
    assert m.has_heads(model) == (name == "rope")
    assert m.moved(model, strings, letter=5).isnan().all()
    assert m.follows(model.original_model, 100, 16, 4, seeded())[0].double().mean() < 0.2
    if name == "rope":
        assert m.lookup_scores(model, strings).mean(-1).max() < 0.2
        for head in m.heads(model):
            assert m.mean_ablated_accuracy(model, strings, *head).mean() < 0.2


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_wiped_writes_change_what_a_state_says(name, strings):
    """Also in a random network the state is what carries the source."""
    model, read = m.wrapped(build(name, seed=0)), []
    with torch.no_grad():
        plain = model(strings.tokens)
    keep = model.original_model.register_forward_hook(lambda *called: read.append(called[2].logits))
    right = m.wiped(model, strings, layer=1)
    keep.remove()
    assert right.shape == (24,) and not torch.allclose(read[0], plain, atol=1e-4)
    assert torch.allclose(model(strings.tokens), plain)  # no trace
    after = m.states(model, strings)
    assert after.shape[:2] == (3, 24) and after.std(1).max() > 0


def test_letters_are_read_from_states_that_hold_them_and_not_from_others():
    generator = seeded()
    letters = torch.randint(26, (400,), generator=generator)
    mixing = torch.randn(26, 60, generator=generator)
    states = mixing[letters] + 0.1 * torch.randn(400, 60, generator=generator)

    def share_read(said):
        read = m.read_letters(states[:300], said[:300], states[300:])
        return (read == said[300:]).double().mean()

    assert share_read(letters) > 0.95
    assert share_read(letters[torch.randperm(400, generator=generator)]) < 4 * CHANCE


def test_what_there_is_not_is_refused(planted, strings):
    for refused, words in (
        (lambda: m.wiped(planted, strings, 0), "no state of fixed size"),
        (lambda: m.wrapped(build("lstm", 0)), "LSTM has no hooks"),
        (lambda: m.follows(Counter(), 1, 11, 4, seeded()), "give 12 to 26"),
        (lambda: planted_copier(0), "n_gram is 0"),
    ):
        with pytest.raises(UsageError, match=words):
            refused()
