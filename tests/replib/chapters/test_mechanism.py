"""The analysis finds the mechanism that we planted, and nothing in random networks."""

import pytest
import torch

from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.mechanism import (
    follows,
    has_heads,
    heads,
    lookup_scores,
    mean_ablated_accuracy,
    moved,
    previous_token_scores,
    read_letters,
    states,
    wiped,
    wrapped,
)
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
    return wrapped(planted_copier())


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def random_ssm(request):
    return wrapped(build(request.param, seed=0))


def test_the_planted_heads_are_found(planted, strings):
    lookup = lookup_scores(planted, strings).mean(-1)
    assert lookup[COPY_LAYER, COPY_HEAD] > 0.9
    others = lookup.clone()
    others[COPY_LAYER, COPY_HEAD] = 0
    assert others.max() < 0.3
    previous = previous_token_scores(planted, strings).mean(-1)
    # Head i of layer 0 sees the last i + 1 tokens alike; at the start there are fewer.
    assert previous[0, 0] == 0 and previous[0, 1].item() == pytest.approx(0.5, abs=1e-4)
    assert previous[0, 1:5].diff().max() < 0


def test_ablation_finds_the_heads_that_copying_needs(planted, strings):
    accuracy = {
        head: mean_ablated_accuracy(planted, strings, *head).mean().item()
        for head in heads(planted)
    }
    assert accuracy[COPY_LAYER, COPY_HEAD] < 0.2
    assert all(accuracy[0, h] < 0.9 for h in (0, 1))  # the last token, the one before
    idle = [h for h in heads(planted) if h != (COPY_LAYER, COPY_HEAD) and h[1] >= 5]
    assert all(accuracy[head] > 0.99 for head in idle)
    assert mean_ablated_accuracy(planted, strings, COPY_LAYER).mean() < 0.2


def test_the_planted_copier_follows_content(planted):
    shares = follows(planted_copier(), 100, 16, 4, seeded()).double().mean(1)
    assert shares[0] > 0.95 and shares.sum() == pytest.approx(1)


class Counter(torch.nn.Module):
    """Copies by position: says the letter as far behind `|` as it stands behind `$`."""

    def forward(self, tokens):
        bar = (tokens == copying.SEPARATOR).int().argmax(1)
        at = tokens.shape[1] - bar
        said = tokens.gather(1, at[:, None])[:, 0]
        logits = torch.zeros(*tokens.shape, 30)
        logits[torch.arange(len(tokens)), -1, said] = 1
        return logits


def test_a_copier_that_counts_follows_position():
    shares = follows(Counter(), 100, 16, 4, seeded()).double().mean(1)
    assert shares.tolist() == [0, 1, 0]
    with pytest.raises(UsageError, match="give 12 to 26"):
        follows(Counter(), 1, 11, 4, seeded())


def test_the_letter_moves_from_its_source_to_the_query_in_the_copy_layer(planted, strings):
    recovered = moved(planted, strings, letter=5).nanmean(-1)
    assert recovered[0].tolist() == pytest.approx([1, 0], abs=0.1)  # layer, place
    assert recovered[1].tolist() == pytest.approx([0, 1], abs=0.1)


@pytest.mark.parametrize("name", ["rope", "mamba2"])
def test_in_random_networks_nothing_is_found(name, strings):
    model = wrapped(build(name, seed=0))
    assert has_heads(model) == (name == "rope")
    assert moved(model, strings, letter=5).isnan().all()
    assert follows(model.original_model, 100, 16, 4, seeded())[0].double().mean() < 0.2
    if name == "rope":
        assert lookup_scores(model, strings).mean(-1).max() < 0.2
        assert (
            max(mean_ablated_accuracy(model, strings, *head).mean() for head in heads(model)) < 0.2
        )


def test_wiped_writes_change_what_a_state_says(random_ssm, strings):
    """Also in a random network the state is what carries the source."""
    with torch.no_grad():
        plain = random_ssm(strings.tokens)
    read = []
    hook = random_ssm.original_model.register_forward_hook(
        lambda module, args, out: read.append(out.logits)
    )
    right = wiped(random_ssm, strings, layer=1)
    hook.remove()
    assert right.shape == (24,) and not torch.allclose(read[0], plain, atol=1e-4)
    assert torch.allclose(random_ssm(strings.tokens), plain)  # no trace
    after = states(random_ssm, strings)
    assert after.shape[:2] == (3, 24) and after.std(1).max() > 0


def test_letters_are_read_from_states_that_hold_them_and_not_from_others():
    generator = seeded()
    letters = torch.randint(26, (400,), generator=generator)
    mixing = torch.randn(26, 60, generator=generator)
    states_with = mixing[letters] + 0.1 * torch.randn(400, 60, generator=generator)
    learn, test = slice(0, 300), slice(300, 400)
    read = read_letters(states_with[learn], letters[learn], states_with[test])
    assert (read == letters[test]).double().mean() > 0.95
    mixed = letters[torch.randperm(400, generator=generator)]
    read = read_letters(states_with[learn], mixed[learn], states_with[test])
    assert (read == mixed[test]).double().mean() < 4 * CHANCE


def test_a_transformer_has_no_state_and_an_lstm_no_hooks(planted, strings):
    with pytest.raises(UsageError, match="no state of fixed size"):
        wiped(planted, strings, 0)
    with pytest.raises(UsageError, match="LSTM has no hooks"):
        wrapped(build("lstm", 0))
